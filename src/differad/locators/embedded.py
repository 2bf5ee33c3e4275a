"""What the embedded locators do alike: read a pair, refuse what cannot be compared, answer a stream on several threads,
take a threshold from normal pairs, name a bad pair.

Knows nothing of how any of them looks at a pair.
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


class Embedded:
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
        """As `compare`, of the images without repeated rows or plain margins; boxes in pixels of the target as it is given."""
        given = target.shape
        reference, target = without_repeats(reference), without_repeats(target)
        back = stretch(target.shape, given)
        reference, target, corner = common_margins(reference, target)
        location = self._compare_whole(reference, target)
        if target.shape == given:
            return location
        return replace(location, boxes=(location.boxes + np.array(corner * 2)) * back)

    def _compare_whole(self, reference: RGB, target: RGB) -> Location:
        """As `compare`, but normal only of a whole frame; of a broken one what is left is compared once more."""
        location = self._compare_alike(reference, target)
        doubted = doubt_normal(location, reference, target)
        rest = None if doubted is location else beside_band(reference, target)
        if rest is None:
            return doubted
        there, here, (x, y) = rest
        found = self._compare_alike(there, here)
        if not found.anomalous:
            return doubted
        return replace(
            found, boxes=found.boxes + np.array([x, y, x, y]), reasoning=f"{doubted.reasoning} {found.reasoning}"
        )

    def _compare_alike(self, reference: RGB, target: RGB) -> Location:
        """As `compare`, of images that show as much detail; boxes in pixels of the target as it is given here."""
        given = target.shape
        reference, target = matched(reference, target)
        location = self.compare(reference, target)
        if target.shape == given:
            return location
        return replace(location, boxes=location.boxes * stretch(target.shape, given))

    def compare(self, reference: RGB, target: RGB) -> Location:
        """Where the target (H, W, 3) is abnormal, without `model` and `seconds`, which `locate` fills in."""
        raise NotImplementedError

    def with_options(self, options: Any) -> Self:
        """This locator with other options, sharing what it has loaded and what it remembers."""
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
    """Images that OpenCV cannot compare, or memory does not suffice for, cost their pair only. Raises LocatorError, naming it."""
    try:
        yield
    except (cv2.error, MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise LocatorError(f"{pair.label}: not enough memory to compare it; {REMEDY}") from None
        if not isinstance(error, cv2.error):
            raise
        raise LocatorError(f"{pair.label}: OpenCV cannot compare it ({error}); check the two images") from None
