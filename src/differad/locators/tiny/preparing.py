"""The part of pair features that worker processes compute on the CPU: reading, resizing, registration.

Knows neither torch nor transformers, so that a process starts quickly.
"""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.answers.resize import ResizeRule
from differad.images import RGB, ImageSource, digest, read_images
from differad.locators.threads import one_blas_thread
from differad.locators.tiny.cache import has_pair_features, write_pair_features
from differad.locators.tiny.evidence import PATCH, aligned_difference, cell_maxima
from differad.locators.tiny.known import file_signature
from differad.locators.tiny.pairs import PairFeatureExtractor, resized

# Strides of the backbone in pixels.
_STRIDES = (8, 16)


@dataclass(frozen=True)
class Task:
    """A pair whose features go into `cache`; with `whole` the worker computes all of them."""

    reference: ImageSource
    target: ImageSource
    rule: ResizeRule
    cache: Path
    whole: bool


@dataclass(frozen=True, eq=False)
class Prepared:
    """Two resized images, and the pixel differences at both strides, or None if they could not be aligned."""

    reference: RGB
    target: RGB
    pixels: tuple[NDArray[np.float32], NDArray[np.float32]] | None


@dataclass(frozen=True, eq=False)
class Outcome:
    """The outcome of a task: the key of its features, whether they were cached before, what is left to compute, and the
    signature of the pair's files in the index."""

    key: bytes
    kept: bool
    left: Prepared | None
    described: str | None


def prepare(task: Task) -> Outcome:
    """Prepare a pair, or compute its features. Raises ImageError, WriteError."""
    # First: a file may change in between.
    signature = file_signature(task.reference, task.target, list(astuple(task.rule)))
    reference, target = (resized(image, task.rule) for image in read_images(task.reference, task.target))
    key = digest(reference, target)
    if has_pair_features(task.cache, key, (target.shape[0] // PATCH, target.shape[1] // PATCH)):
        return Outcome(key, True, None, signature)
    if task.whole:
        with one_blas_thread():
            write_pair_features(task.cache, key, _pair_features()(reference, target))
        return Outcome(key, False, None, signature)
    pixels = aligned_difference(reference, target)
    if pixels is None:
        return Outcome(key, False, Prepared(reference, target, None), signature)
    fine, coarse = (cell_maxima(pixels, (target.shape[0] // s, target.shape[1] // s)) for s in _STRIDES)
    return Outcome(key, False, Prepared(reference, target, (fine, coarse)), signature)


@contextmanager
def own_processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes that use one core each and end with this process, however it ends."""
    # Spawned: a fork would copy the locks of the caller's threads.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@cache
def _pair_features() -> PairFeatureExtractor:
    return PairFeatureExtractor()


def _start() -> None:
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
