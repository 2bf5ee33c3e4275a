"""Progress on stderr: a bar on a terminal, an occasional line if the output goes to a file or a pipe."""

import logging
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from differad.text import printable

Item = TypeVar("Item")

# Its level sets the verbosity: from ERROR on neither bars nor lines are shown (`differad -q`).
LOGGER = logging.getLogger("differad")
# A shorter run needs no line, and a log of hours stays readable.
SECONDS_BETWEEN_LINES = 15.0


# The innermost bar that is open or was interrupted, for `latest_position`.
_latest: Progress | None = None
_open: list[Progress] = []


def is_quiet() -> bool:
    """Whether only errors are printed (`differad -q`)."""
    return LOGGER.getEffectiveLevel() >= logging.ERROR


def is_verbose() -> bool:
    """Whether all messages are printed (`differad -v`)."""
    return LOGGER.getEffectiveLevel() <= logging.DEBUG


@contextmanager
def progress_bar(
    shown: bool = True,
    *,
    seconds_between_lines: float | None = SECONDS_BETWEEN_LINES,
    after_bar: Sequence[ProgressColumn] | None = None,
    threaded: bool = True,
) -> Iterator[Progress]:
    """A bar that vanishes at the end; lines of text, `seconds_between_lines` apart, if stderr is no terminal.

    `after_bar` are the columns after "n/N" (default: elapsed and remaining time). With `seconds_between_lines` None the caller
    writes its own lines. Without `threaded` the bar is drawn only on updates, which is safe if the process forks.
    """
    global _latest
    if after_bar is None:
        after_bar = (TimeElapsedColumn(), TimeRemainingColumn())
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), *after_bar)
    shown = shown and not is_quiet()
    console = Console(stderr=True)
    on_terminal = shown and console.is_terminal
    progress = Progress(*columns, console=console, transient=True, disable=not on_terminal, auto_refresh=threaded)
    outer, _latest = _latest, progress
    _open.append(progress)
    try:
        with progress, _lines(progress, seconds_between_lines if shown and not on_terminal else None):
            yield progress
    finally:
        _open.remove(progress)
    _latest = outer if outer in _open else None


def track(items: Iterable[Item], description: str, total: int | None = None, *, shown: bool = True) -> Iterator[Item]:
    """Yield the items and show a bar."""
    with progress_bar(shown) as bar:
        yield from bar.track(items, total=total, description=description)


def latest_position() -> str:
    """Position of the innermost bar, as "pairs: 12 of 40"; empty if it is finished or there is none."""
    return _position(_latest) if _latest is not None and not _latest.finished else ""


def _position(progress: Progress) -> str:
    tasks = [task for task in progress.tasks if not task.finished]
    if not tasks:
        return ""
    task = tasks[0]
    total = "" if task.total is None else f" of {task.total:.0f}"
    return printable(f"{task.description}: {task.completed:.0f}{total}")


@contextmanager
def _lines(progress: Progress, seconds: float | None) -> Iterator[None]:
    """Write the position to stderr every `seconds` seconds; None writes nothing."""
    if seconds is None:
        yield
        return
    ended = threading.Event()

    def write() -> None:
        while not ended.wait(seconds):
            if line := _position(progress):
                print(line, file=sys.stderr, flush=True)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
