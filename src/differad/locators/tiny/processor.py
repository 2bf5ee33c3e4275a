"""The embedded policy's image processor: from pairs of images to rows of pair features, in Qwen2-VL's layout.

It takes the place of `Qwen2VLImageProcessor` in a Qwen2-VL checkpoint, so that processor, chat template, TRL and generate work
unchanged. Images come in pairs, reference first. The target's rows are its patches. The reference's rows are few and zero: the
target's rows hold everything about it. Pair features can be cached on disk, since training reads a pair often.
"""

from pathlib import Path
from typing import Any

import numpy as np
from transformers import BatchFeature
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from differad.answers.resize import ResizeRule
from differad.errors import InputError
from differad.images import RGB, digest
from differad.locators.remembered import LRUCache
from differad.locators.tiny.cache import pair_features_file, read_pair_features, write_pair_features
from differad.locators.tiny.evidence import AREA, PATCH, WIDTH, PairFeatures
from differad.locators.tiny.known import read_key
from differad.locators.tiny.pairs import PairFeatureExtractor, resized
from differad.locators.tiny.proposals import PROPOSALS

# One token stands for MERGE x MERGE patches.
MERGE = 4
# The reference's tokens carry the box proposals; this is its grid in patches.
REFERENCE_GRID = (1, MERGE, MERGE * PROPOSALS)
# Pairs whose features are cached: the answers of a group share them. About 1 MB each.
_LAST_PAIRS = 64


class EvidenceProcessor(Qwen2VLImageProcessorPil):
    """`pixel_values` (patches of all images, WIDTH) and `image_grid_thw` (images, 3) of pairs of images.

    `cache` is a folder that caches pair features by the content of the images, or None. Raises ValueError for an odd number of
    images.
    """

    patch_size = PATCH
    merge_size = MERGE
    size = {"shortest_edge": AREA, "longest_edge": AREA}  # noqa: RUF012 - as the class it extends declares it

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.cache: Path | None = None
        self._pair_features = PairFeatureExtractor()
        self._pairs: LRUCache[bytes, PairFeatures] = LRUCache(_LAST_PAIRS)

    def to_dict(self) -> dict[str, Any]:
        """The settings to save, without the caches of this process."""
        transient = ("cache", "_pair_features", "_pairs")
        settings = {name: value for name, value in super().to_dict().items() if name not in transient}
        return {**settings, "least_side": PATCH}

    def _preprocess(self, images: list[Any], size: Any, return_tensors: Any = None, **_settings: Any) -> BatchFeature:
        images = [np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(1, 2, 0)) for image in images]
        if len(images) % 2:
            raise ValueError(f"{len(images)} images: expected pairs, each a reference and its target")
        rule = ResizeRule(PATCH * MERGE, size.shortest_edge, size.longest_edge, least_side=PATCH)
        rows: list[PairFeatures] = []
        grids: list[tuple[int, int, int]] = []
        for reference, target in zip(images[::2], images[1::2], strict=True):
            features = self._of(reference, target, rule)
            height, width = features.shape[:2]
            rows += [np.zeros((int(np.prod(REFERENCE_GRID)), WIDTH), np.float32), to_rows(features)]
            grids += [REFERENCE_GRID, (1, height, width)]
        data = {"pixel_values": np.concatenate(rows), "image_grid_thw": np.array(grids, dtype=np.int64)}
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _of(self, reference: RGB, target: RGB, rule: ResizeRule) -> PairFeatures:
        """The features of a pair, or of the key images that stand for a cached one: see `known`."""
        key, cache = read_key(target), self.cache
        if key is None or cache is None:
            return self._pair(resized(reference, rule), resized(target, rule))
        return self._pairs.recall(key, lambda: _read_cached(cache, key))

    def _pair(self, reference: RGB, target: RGB) -> PairFeatures:
        """The features (h, w, WIDTH) of a pair of resized images."""
        key = digest(reference, target)
        return self._pairs.recall(key, lambda: self._cached(key, reference, target))

    def _cached(self, key: bytes, reference: RGB, target: RGB) -> PairFeatures:
        """The features from the cache, or computed and cached; in half precision in both cases."""
        if self.cache is None:
            return self._pair_features(reference, target)
        cached = read_pair_features(self.cache, key, (target.shape[0] // PATCH, target.shape[1] // PATCH))
        if cached is not None:
            return cached
        return np.asarray(
            write_pair_features(self.cache, key, self._pair_features(reference, target)), dtype=np.float32
        )


def _read_cached(cache: Path, key: bytes) -> PairFeatures:
    """Features that were cached when training began. Raises InputError if they no longer are."""
    cached = read_pair_features(cache, key)
    if cached is None:
        raise InputError(
            f"{pair_features_file(cache, key)}: missing or incomplete; expected a pair's features; the next run computes them"
        )
    return cached


def to_rows(features: PairFeatures) -> PairFeatures:
    """(h, w, WIDTH) as rows (h * w, WIDTH) in Qwen2-VL's order: blocks of MERGE x MERGE patches, row by row."""
    height, width = features.shape[:2]
    blocks = features.reshape(height // MERGE, MERGE, width // MERGE, MERGE, -1)
    return np.ascontiguousarray(blocks.transpose(0, 2, 1, 3, 4)).reshape(height * width, -1)
