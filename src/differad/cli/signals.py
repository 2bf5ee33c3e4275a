"""SIGTERM and SIGHUP end a command as Ctrl-C does: files are closed, the cursor is restored, one line says where it stopped.

Imports nothing heavy: it must be loaded before anything else.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from differad.text import printable

_ENDING = ("SIGTERM", "SIGHUP")
# A shell's exit code of a process that a signal ended is this plus the signal's number.
_BASE = 128


class Signalled(KeyboardInterrupt):
    """A signal that ends the process, raised at the current point of the program; its number is the argument."""


def describe(interrupt: BaseException) -> str:
    """The cause of the interruption in a word or two."""
    signalled = _signalled(interrupt)
    return "interrupted" if signalled is None else f"ended by {signal.Signals(signalled).name}"


def exit_code(interrupt: BaseException) -> int:
    """128 plus the signal's number."""
    return _BASE + (_signalled(interrupt) or signal.SIGINT)


def _signalled(interrupt: BaseException | None) -> int | None:
    """The signal that caused an interrupt, even if a library replaced the exception by another."""
    while interrupt is not None:
        if isinstance(interrupt, Signalled):
            return int(interrupt.args[0])
        interrupt = interrupt.__cause__ or interrupt.__context__
    return None


@contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """Raise the first SIGTERM or SIGHUP inside as Signalled; the second one ends the process at once.

    A signal that is ignored (nohup) stays ignored. Processes of a launcher are excluded: while one waits for the others inside
    a library, nothing could be raised, and the launcher would wait.
    """
    numbers = [getattr(signal, name) for name in _ENDING if hasattr(signal, name)]
    own_pid = os.getpid()
    if "RANK" in os.environ or threading.current_thread() is not threading.main_thread():
        numbers = []

    def handle(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != own_pid:  # a forked worker, which ends as without this handler
            os.kill(os.getpid(), number)
            return
        raise Signalled(number)

    handled = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in handled:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)


def fail(message: str, code: int) -> int:
    """Print an error's line; return its exit code."""
    print(f"differad: {printable(' '.join(message.split()))}", file=sys.stderr)
    return code
