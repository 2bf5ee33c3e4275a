"""Locks: one run per output folder or file, and waiting for workers of a killed run that have not ended yet.

These are system locks, by portalocker, which a kill releases; a lock file left by a kill is unlocked and has no effect.
Without such locks (some network file systems; shared locks on Windows without pywin32) runs are not separated.
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
def exclusive_run(out: Path) -> Iterator[None]:
    """Hold an exclusive lock on `out`, an existing folder or a file.

    The lock file is in the folder, or beside the file, and is removed at the end. Raises InputError if another run holds the
    lock, and WriteError.
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
        _release_and_remove(lock, descriptor)


@contextmanager
def as_worker(file: Path) -> Iterator[None]:
    """Make `wait_for_workers` wait until the context ends."""
    descriptor = _lock_shared(file)
    try:
        yield
    finally:
        os.close(descriptor)


def hold_worker_lock(file: Path) -> None:
    """Make `wait_for_workers` wait until this process ends."""
    _lock_shared(file)


def wait_for_workers(file: Path) -> None:
    """Wait until no process is a worker of this file."""
    descriptor = os.open(file, os.O_RDONLY)
    _lock(descriptor, LockFlags.EXCLUSIVE)
    os.close(descriptor)


def _lock_shared(file: Path) -> int:
    descriptor = os.open(file, os.O_RDONLY)
    _lock(descriptor, LockFlags.SHARED)
    return descriptor


def _lock_file(path: Path) -> int:
    """The descriptor of a lock file with an exclusive lock. Raises AlreadyLocked, OSError."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, LockFlags.EXCLUSIVE | LockFlags.NON_BLOCKING)
        except portalocker.AlreadyLocked:
            os.close(descriptor)
            raise
        # A run that ended meanwhile may have removed the file that was opened; then the lock belongs to no path: try again.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)


def _release_and_remove(path: Path, descriptor: int) -> None:
    if os.name == "nt":  # an open file cannot be removed there
        os.close(descriptor)
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return
    with suppress(OSError):
        path.unlink(missing_ok=True)
    os.close(descriptor)


def _lock(descriptor: int, flags: LockFlags) -> None:
    """Lock, or continue without a lock if the system has none. Raises AlreadyLocked for non-blocking locks."""
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
