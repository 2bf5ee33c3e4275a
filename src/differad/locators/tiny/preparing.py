"""What of a pair's evidence is worked out on a core, in a process of its own: reading, resizing, the search for a motion.

Knows neither torch nor transformers, so that a process starts quickly.
"""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.answers.resize import ResizeRule
from differad.images import RGB, ImageSource, digest, read_images
from differad.locators.threads import one_blas_thread
from differad.locators.tiny.evidence import laid_on, steepest
from differad.locators.tiny.pairs import PairEvidence, evidence_file, resized, write_evidence

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
    """Two resized images, the key of their evidence, and how far pixels differ at both strides where they could be aligned."""

    key: bytes
    reference: RGB
    target: RGB
    pixels: tuple[NDArray[np.float32], NDArray[np.float32]] | None


def prepare(task: Task) -> Prepared | bool:
    """The pair made ready; True where its evidence was computed here, False where it was there already. Raises ImageError."""
    reference, target = (resized(image, task.rule) for image in read_images(task.reference, task.target))
    key = digest(reference, target)
    if evidence_file(task.cache, key).exists():
        return False
    if task.whole:
        with one_blas_thread():
            write_evidence(task.cache, key, _evidence()(reference, target))
        return True
    pixels = laid_on(reference, target)
    if pixels is None:
        return Prepared(key, reference, target, None)
    fine, coarse = (steepest(pixels, (target.shape[0] // s, target.shape[1] // s)) for s in _STRIDES)
    return Prepared(key, reference, target, (fine, coarse))


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
