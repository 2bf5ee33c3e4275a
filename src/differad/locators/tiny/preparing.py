"""What of a pair's evidence is worked out on a core, in a process of its own: reading, resizing, the search for a motion.

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
from differad.locators.tiny.cache import has_evidence, write_evidence
from differad.locators.tiny.evidence import PATCH, laid_on, steepest
from differad.locators.tiny.known import describe
from differad.locators.tiny.pairs import PairEvidence, resized

# Strides of the backbone in pixels.
_STRIDES = (8, 16)


@dataclass(frozen=True)
class Task:
    """A pair whose evidence is to be kept in `cache`; `whole` says that it is computed here, to its end."""

    reference: ImageSource
    target: ImageSource
    rule: ResizeRule
    cache: Path
    whole: bool


@dataclass(frozen=True, eq=False)
class Prepared:
    """Two resized images, and how far pixels differ at both strides where they could be aligned."""

    reference: RGB
    target: RGB
    pixels: tuple[NDArray[np.float32], NDArray[np.float32]] | None


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a task: the key of its evidence, whether it was there before, what is left to compute, and what the
    pair's files are called in the index of known ones."""

    key: bytes
    kept: bool
    left: Prepared | None
    described: str | None


def prepare(task: Task) -> Outcome:
    """A pair made ready, or its evidence computed. Raises ImageError, WriteError."""
    described = describe(task.reference, task.target, list(astuple(task.rule)))  # first: a file may change meanwhile
    reference, target = (resized(image, task.rule) for image in read_images(task.reference, task.target))
    key = digest(reference, target)
    if has_evidence(task.cache, key, (target.shape[0] // PATCH, target.shape[1] // PATCH)):
        return Outcome(key, True, None, described)
    if task.whole:
        with one_blas_thread():
            write_evidence(task.cache, key, _evidence()(reference, target))
        return Outcome(key, False, None, described)
    pixels = laid_on(reference, target)
    if pixels is None:
        return Outcome(key, False, Prepared(reference, target, None), described)
    fine, coarse = (steepest(pixels, (target.shape[0] // s, target.shape[1] // s)) for s in _STRIDES)
    return Outcome(key, False, Prepared(reference, target, (fine, coarse)), described)


@contextmanager
def own_processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that use one core each, and end when this one does, however it ends."""
    # Spawned: a fork would copy the locks of whatever threads the caller runs.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@cache
def _evidence() -> PairEvidence:
    return PairEvidence()


def _start() -> None:
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
