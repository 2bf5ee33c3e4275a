"""A disk that is full, and a power cut, for tests: every call that needs room below a folder fails from the n-th on."""

import errno
import os
import resource
import sys
from contextlib import contextmanager
from pathlib import Path

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
# Calls that take room in a folder, with the place of the path among their arguments.
_TAKE_ROOM = {"open": 0, "os.mkdir": 0, "os.rename": 1, "os.link": 1, "os.symlink": 1}
_state = {"root": None, "left": None, "calls": 0}


def _hook(event, arguments):
    """An audit hook; it cannot be removed, so it checks whether it is active."""
    if _state["root"] is None or event not in _TAKE_ROOM:
        return
    path = arguments[_TAKE_ROOM[event]]
    if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & _WRITING):
        return
    if not isinstance(path, str | os.PathLike) or not Path(path).absolute().is_relative_to(_state["root"]):
        return
    _state["calls"] += 1
    if _state["left"] is not None and _state["calls"] > _state["left"]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


sys.addaudithook(_hook)


@contextmanager
def full_after(root, calls=None):
    """From the next but `calls` on, no call below `root` finds room; None counts them only. Gives the count so far."""
    _state.update(root=Path(root).absolute(), left=calls, calls=0)
    try:
        yield lambda: _state["calls"]
    finally:
        _state["root"] = None


@contextmanager
def no_file_above(size):
    """No file of this process or its children can grow beyond `size` bytes: writes are cut off there, then fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Disk:
    """Simulates a power cut on the files below a folder: only content that was flushed by fsync remains."""

    def __init__(self, root, monkeypatch, copies=None):
        """`copies`: a folder that receives, at each sync, the files that a power cut right after it would leave."""
        self._root, self._copies = Path(root), copies
        self._synced = {}
        self._seen = set()
        self._sync = os.fsync
        monkeypatch.setattr(os, "fsync", self._note)

    def _note(self, descriptor):
        status = os.fstat(descriptor)
        self._synced[status.st_ino] = status.st_size
        self._sync(descriptor)
        if self._copies is not None:
            self._copy()

    def _copy(self):
        """Copies the remaining files once, since most syncs change nothing else."""
        left = {}
        for path in self._root.rglob("*"):
            if path.is_file() and not path.is_symlink():
                status = path.stat()
                size = min(status.st_size, self._synced.get(status.st_ino, 0))
                left[path.relative_to(self._root)] = path.read_bytes()[:size]
        key = hash(tuple(sorted(left.items())))
        if key in self._seen:
            return
        folder = self._copies / f"{len(self._seen):03d}"
        self._seen.add(key)
        for name, content in left.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    def cut_power(self):
        """Truncate every file to its flushed size, which is 0 for most."""
        for path in self._root.rglob("*"):
            if path.is_file() and not path.is_symlink():
                with path.open("r+b") as file:
                    file.truncate(min(path.stat().st_size, self._synced.get(path.stat().st_ino, 0)))
