"""SIGTERM and SIGHUP end a command as Ctrl-C does: files are closed, the cursor is shown again, one line says where it stopped.

Imports nothing heavy: it must be there before anything else is loaded.
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
# The exit code of a process that a signal ended, as a shell gives it.
_BASE = 128


class Signalled(KeyboardInterrupt):
    """A signal that ends the process, raised where the program stands; its number is the argument."""


def describe(interrupt: BaseException) -> str:
    """What ended the work, in a word or two."""
    signalled = _signalled(interrupt)
    return "interrupted" if signalled is None else f"ended by {signal.Signals(signalled).name}"


def exit_code(interrupt: BaseException) -> int:
    """128 and the signal's number."""
    return _BASE + (_signalled(interrupt) or signal.SIGINT)


def _signalled(interrupt: BaseException | None) -> int | None:
    """The signal behind an interrupt, which a library may have put another exception in the place of."""
    while interrupt is not None:
        if isinstance(interrupt, Signalled):
            return int(interrupt.args[0])
        interrupt = interrupt.__cause__ or interrupt.__context__
    return None


@contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """Raise the first SIGTERM or SIGHUP inside as Signalled; the second one ends the process at once.

    A signal that is ignored (nohup) stays so. The processes of a launcher are left alone: where one waits for the others inside
    a library, nothing could be raised, and the launcher would wait.
    """
    numbers = [getattr(signal, name) for name in _ENDING if hasattr(signal, name)]
    mine = os.getpid()
    if "RANK" in os.environ or threading.current_thread() is not threading.main_thread():
        numbers = []

    def handle(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != mine:  # a forked worker, which ends as it always did
            os.kill(os.getpid(), number)
            return
        raise Signalled(number)

    taken = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def fail(message: str, code: int) -> int:
    """Print an error's line; return its exit code."""
    print(f"differad: {printable(' '.join(message.split()))}", file=sys.stderr)
    return code
