"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_ENDING = ".tmp"


@contextmanager
def in_one_step(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, which becomes `path` when the block ends well and is removed when it does not.

    A kill leaves the old file, or none, and a file ending in `.tmp`. Raises OSError.
    """
    # Named by process: one that outlives its run for a moment does not write into the next run's file.
    fresh = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY_ENDING}")
    try:
        yield fresh
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
