"""A progress bar on stderr, where a person is watching."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")


def progress_bar(shown: bool = True) -> Progress:
    """A bar that vanishes when it is done; none where stderr is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal))


def track(items: Iterable[Item], description: str, total: int | None = None, *, shown: bool = True) -> Iterator[Item]:
    """The items, with a bar while they pass."""
    with progress_bar(shown) as bar:
        yield from bar.track(items, total=total, description=description)
