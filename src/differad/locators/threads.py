"""How many cores there are, and OpenCV kept from taking all of them in each of several workers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import cv2


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def one_thread_each(workers: int) -> Iterator[None]:
    """OpenCV's own threads off while several workers run: they would fight over the cores."""
    before = cv2.getNumThreads()
    if workers > 1:
        cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
