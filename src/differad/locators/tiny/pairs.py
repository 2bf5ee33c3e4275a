"""From two images to their pair features: resized as the policy sees them; features of references are cached.

Used by the locator and, in training, by the policy's image processor. Needs neither torch nor transformers; knows nothing
of networks or of answers.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np

from differad.answers.resize import ResizeRule
from differad.images import RGB, digest
from differad.locators.features.backbone import Backbone
from differad.locators.remembered import LRUCache
from differad.locators.tiny.evidence import (
    PairFeatures,
    ReferenceFeatures,
    aligned_difference,
    pair_features,
    reference_features,
)

# References whose features are cached: a line compares one normal sample with thousands of others. About 1 MB each.
CACHED_REFERENCES = 8


class PairFeatureExtractor:
    """Computes pair features. Safe to use from several threads."""

    def __init__(self) -> None:
        self._backbone = Backbone()
        self._reference_cache: LRUCache[bytes, list[ReferenceFeatures]] = LRUCache(CACHED_REFERENCES)

    def __call__(
        self, reference: RGB, target: RGB, pool: ThreadPoolExecutor | None = None, *, align: bool = True
    ) -> PairFeatures:
        """Rows (h, w, WIDTH) of two images as `resized` returns them; a `pool` takes a share of the work.

        Without `align` no registration is tried: it takes most of the time if it fails.
        """
        if not align:
            return pair_features(self._backbone.patches(target), self._reference_features(reference))
        if pool is None:
            return pair_features(
                self._backbone.patches(target),
                self._reference_features(reference),
                aligned_difference(reference, target),
            )
        pixels = pool.submit(aligned_difference, reference, target)
        return pair_features(self._backbone.patches(target), self._reference_features(reference), pixels.result())

    def __deepcopy__(self, memo: dict[int, Any]) -> "PairFeatureExtractor":
        # An image processor deep-copies its attributes to list its settings; this is none, and a lock cannot be copied.
        return self

    def _reference_features(self, reference: RGB) -> list[ReferenceFeatures]:
        return self._reference_cache.recall(digest(reference), lambda: reference_features(self._backbone, reference))


def resized(image: RGB, rule: ResizeRule) -> RGB:
    """An image (H, W, 3) resized as the policy sees it. Raises ImageError for a shape that the rule refuses."""
    columns, rows = rule.resized(image.shape[1], image.shape[0])
    how = cv2.INTER_AREA if rows * columns < image.shape[0] * image.shape[1] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (columns, rows), interpolation=how), dtype=np.uint8)
