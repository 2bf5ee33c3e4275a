"""From two pictures to the evidence of their pair: resized as the policy sees them, the reference's features remembered.

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
from differad.locators.remembered import Remembered
from differad.locators.tiny.evidence import Evidence, ReferenceFeatures, evidence, laid_on, reference_features

# References remembered with their features, for a line shows one good part beside thousands of others. About 1 MB each.
REMEMBERED = 8


class PairEvidence:
    """Evidence of pairs; may be asked by several threads."""

    def __init__(self) -> None:
        self._backbone = Backbone()
        self._remembered: Remembered[bytes, list[ReferenceFeatures]] = Remembered(REMEMBERED)

    def __call__(
        self, reference: RGB, target: RGB, pool: ThreadPoolExecutor | None = None, *, lay: bool = True
    ) -> Evidence:
        """Rows (h, w, WIDTH) of two pictures that `resized` has made ready; a `pool` takes a share of the work.

        Without `lay` the reference is not laid on the target: the search for how to takes most of the time where it fails.
        """
        if not lay:
            return evidence(self._backbone.patches(target), self._features(reference))
        if pool is None:
            return evidence(self._backbone.patches(target), self._features(reference), laid_on(reference, target))
        pixels = pool.submit(laid_on, reference, target)
        return evidence(self._backbone.patches(target), self._features(reference), pixels.result())

    def __deepcopy__(self, memo: dict[int, Any]) -> "PairEvidence":
        # An image processor copies all it has to say what its settings are; this is none, and a lock cannot be copied.
        return self

    def _features(self, reference: RGB) -> list[ReferenceFeatures]:
        return self._remembered.recall(digest(reference), lambda: reference_features(self._backbone, reference))


def resized(picture: RGB, rule: ResizeRule) -> RGB:
    """A picture (H, W, 3) as the policy sees it. Raises ImageError for a shape that the rule refuses."""
    columns, rows = rule.resized(picture.shape[1], picture.shape[0])
    how = cv2.INTER_AREA if rows * columns < picture.shape[0] * picture.shape[1] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, (columns, rows), interpolation=how), dtype=np.uint8)
