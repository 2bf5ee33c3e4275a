"""The number of usable cores, and limits on the threads of libraries in workers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import cv2
from threadpoolctl import ThreadpoolController


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def one_thread_each(workers: int) -> Iterator[None]:
    """Switch off the threads of OpenCV and BLAS while several workers run: they would compete for the cores."""
    if workers == 1:
        yield
        return
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with one_blas_thread():
            yield
    finally:
        cv2.setNumThreads(before)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Switch off the threads of BLAS: for products of a few hundred rows they cost more than they save."""
    with _libraries().limit(limits=1, user_api="blas"):
        yield


@cache
def _libraries() -> ThreadpoolController:
    # Finding them takes milliseconds; NumPy's BLAS is loaded before anything is located.
    return ThreadpoolController()
