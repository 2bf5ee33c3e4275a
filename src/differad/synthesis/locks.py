"""Keeps two runs out of one folder, and a run apart from workers of a killed one that have not ended yet.

Locks of the kernel (flock): a kill releases them. Where there are none (Windows, some network file systems), nothing is kept
apart, and the caller has to see to it.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from differad.errors import InputError

if sys.platform != "win32":
    import fcntl


@contextmanager
def sole_run(out: Path) -> Iterator[None]:
    """Keep every other run out of the folder `out` while inside. Raises InputError where there is one."""
    try:
        lock = _lock(out, exclusive=True, wait=False)
    except BlockingIOError:
        raise InputError(f"{out}: another run writes to it; wait for it, or choose another --out") from None
    try:
        yield
    finally:
        _unlock(lock)


@contextmanager
def as_worker(file: Path) -> Iterator[None]:
    """Let `wait_for_workers` wait while inside."""
    lock = _lock(file, exclusive=False, wait=True)
    try:
        yield
    finally:
        _unlock(lock)


def be_worker(file: Path) -> None:
    """Let `wait_for_workers` wait until this process ends."""
    _lock(file, exclusive=False, wait=True)


def wait_for_workers(file: Path) -> None:
    """Wait until no process is a worker by this file."""
    _unlock(_lock(file, exclusive=True, wait=True))


def _lock(path: Path, *, exclusive: bool, wait: bool) -> int | None:
    """A locked descriptor, None where there are no locks. Raises BlockingIOError where it is not to `wait`."""
    if sys.platform == "win32":
        return None
    descriptor = os.open(path, os.O_RDONLY)
    how = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        fcntl.flock(descriptor, how if wait else how | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None  # this file system has none
    return descriptor


def _unlock(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)
