"""Keeps two runs out of one folder or file, and a run apart from workers of a killed one that have not ended yet.

Locks of the system, by portalocker: a kill releases them. A lock file that a kill leaves behind is free and counts for nothing.
Where there are no locks (some network file systems; shared ones on Windows without pywin32), nothing is kept apart.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import portalocker
from portalocker import LockFlags

from differad.errors import InputError
from differad.files import unwritable

LOCK = ".differad.lock"


@contextmanager
def sole_run(out: Path) -> Iterator[None]:
    """Keep every other run out of `out`, a folder that exists or a file, while inside.

    The lock lies in the folder, or beside the file, and is removed at the end. Raises InputError where another run is at work,
    and WriteError.
    """
    lock = out / LOCK if out.is_dir() else out.with_name(f".{out.name}.lock")
    try:
        descriptor = _lock_file(lock)
    except portalocker.AlreadyLocked:
        raise InputError(f"{out}: another run writes to it; wait for it, or write to another place") from None
    except OSError as error:
        raise unwritable(out, error) from None
    try:
        yield
    finally:
        _remove(lock, descriptor)


@contextmanager
def as_worker(file: Path) -> Iterator[None]:
    """Let `wait_for_workers` wait while inside."""
    descriptor = _lock_shared(file)
    try:
        yield
    finally:
        os.close(descriptor)


def be_worker(file: Path) -> None:
    """Let `wait_for_workers` wait until this process ends."""
    _lock_shared(file)


def wait_for_workers(file: Path) -> None:
    """Wait until no process is a worker by this file."""
    descriptor = os.open(file, os.O_RDONLY)
    _lock(descriptor, LockFlags.EXCLUSIVE)
    os.close(descriptor)


def _lock_shared(file: Path) -> int:
    descriptor = os.open(file, os.O_RDONLY)
    _lock(descriptor, LockFlags.SHARED)
    return descriptor


def _lock_file(path: Path) -> int:
    """The descriptor of a lock file that this process alone has locked. Raises AlreadyLocked, OSError."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, LockFlags.EXCLUSIVE | LockFlags.NON_BLOCKING)
        except portalocker.AlreadyLocked:
            os.close(descriptor)
            raise
        # A run that ended meanwhile has removed the file that was opened here: the next one is another file.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)


def _remove(path: Path, descriptor: int) -> None:
    if os.name == "nt":  # an open file cannot be removed there
        os.close(descriptor)
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return
    with suppress(OSError):
        path.unlink(missing_ok=True)
    os.close(descriptor)


def _lock(descriptor: int, flags: LockFlags) -> None:
    """Lock, or go on without where there are no such locks. Raises AlreadyLocked where it is not to wait."""
    while True:
        try:
            portalocker.lock(descriptor, flags)
        except portalocker.AlreadyLocked:
            if LockFlags.NON_BLOCKING in flags:
                raise
            continue  # Windows waits ten seconds at most
        except (portalocker.LockException, ImportError):
            return
        return
