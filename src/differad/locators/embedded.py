"""The common base of the embedded locators: read a pair, refuse what cannot be compared, answer a stream on several threads,
set a threshold from normal pairs, name the pair in errors.

Knows nothing of how any of them compares a pair.
"""

import copy
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self

import cv2
import numpy as np

from differad.boxes import stretch
from differad.core import Location, Pair
from differad.errors import LocatorError
from differad.images import RGB, read_images
from differad.locators.base import Outcome, locate_concurrently
from differad.locators.broken_frames import beside_band
from differad.locators.comparable import doubt_normal, why_incomparable
from differad.locators.conformal import conformal_threshold
from differad.locators.resolution import common_margins, matched, without_repeats
from differad.locators.threads import one_thread_each, usable_cores
from differad.memory import REMEDY, is_out_of_memory


class EmbeddedLocator:
    """Mixin for a locator whose `options` are a frozen dataclass that has `threshold` and `workers`."""

    name: str
    options: Any

    def locate(self, pair: Pair) -> Location:
        """Where the target is abnormal. Raises ImageError, LocatorError."""
        start = time.perf_counter()
        with _naming(pair):
            reference, target = read_images(pair.reference, pair.target)
            reason = why_incomparable(reference, target)
            if reason is not None:
                location = Location(comparable=False, reasoning=reason)
            else:
                location = self._compare_bare(reference, target)
        return replace(location, model=self.name, seconds=time.perf_counter() - start)

    def _compare_bare(self, reference: RGB, target: RGB) -> Location:
        """As `compare`, for the images without repeated rows and plain margins; boxes in pixels of the full target."""
        full_shape = target.shape
        reference, target = without_repeats(reference), without_repeats(target)
        to_full = stretch(target.shape, full_shape)
        reference, target, corner = common_margins(reference, target)
        location = self._compare_whole(reference, target)
        if target.shape == full_shape:
            return location
        return replace(location, boxes=(location.boxes + np.array(corner * 2)) * to_full)

    def _compare_whole(self, reference: RGB, target: RGB) -> Location:
        """As `compare`, but normal only for a complete frame; of an incomplete one the intact rest is compared."""
        location = self._compare_alike(reference, target)
        doubted = doubt_normal(location, reference, target)
        rest = None if doubted is location else beside_band(reference, target)
        if rest is None:
            return doubted
        rest_reference, rest_target, (x, y) = rest
        partial = self._compare_alike(rest_reference, rest_target)
        if not partial.anomalous:
            return doubted
        return replace(
            partial, boxes=partial.boxes + np.array([x, y, x, y]), reasoning=f"{doubted.reasoning} {partial.reasoning}"
        )

    def _compare_alike(self, reference: RGB, target: RGB) -> Location:
        """As `compare`, after both images are brought to one resolution; boxes in pixels of this target."""
        full_shape = target.shape
        reference, target = matched(reference, target)
        location = self.compare(reference, target)
        if target.shape == full_shape:
            return location
        return replace(location, boxes=location.boxes * stretch(target.shape, full_shape))

    def compare(self, reference: RGB, target: RGB) -> Location:
        """Where the target (H, W, 3) is abnormal, without `model` and `seconds`, which `locate` fills in."""
        raise NotImplementedError

    def with_options(self, options: Any) -> Self:
        """This locator with other options, sharing what it has loaded and its caches."""
        other = copy.copy(self)
        other.options = options
        return other

    def locate_many(self, pairs: Iterable[Pair]) -> Iterator[Outcome]:
        """Locate a stream in order; at most two pairs per worker are read ahead."""
        workers = self.options.workers or usable_cores()
        with one_thread_each(workers):
            yield from locate_concurrently(self.with_options(replace(self.options, workers=1)), pairs, workers)

    def calibrate(self, normals: Iterable[Pair], false_alarms: float = 0.05) -> Self:
        """A locator whose threshold leaves a box on at most a share `false_alarms` of normal pairs like these.

        See `conformal_threshold`. Raises InputError for too few pairs, and the error of a pair that cannot be read.
        """
        return self.with_options(replace(self.options, threshold=conformal_threshold(self, normals, false_alarms)))


@contextmanager
def _naming(pair: Pair) -> Iterator[None]:
    """Turn errors of OpenCV and a lack of memory into a LocatorError that names the pair."""
    try:
        yield
    except (cv2.error, MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise LocatorError(f"{pair.label}: not enough memory to compare it; {REMEDY}") from None
        if not isinstance(error, cv2.error):
            raise
        raise LocatorError(f"{pair.label}: OpenCV cannot compare it ({error}); check the two images") from None
