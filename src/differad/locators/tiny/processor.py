"""The embedded policy's image processor: pairs of pictures in, rows of evidence out, in Qwen2-VL's own layout.

It stands where a Qwen2-VL checkpoint has `Qwen2VLImageProcessor`, so that processor, chat template, TRL and generate need to know
nothing of it. Pictures come in pairs, reference first. The target's rows are its patches; the reference's rows are empty and
few: all that is known of it stands in the target's. Evidence of a pair can be kept on disk, for training sees a pair often.
"""

from pathlib import Path
from typing import Any

import numpy as np
from transformers import BatchFeature
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from differad.answers.resize import ResizeRule
from differad.errors import InputError
from differad.images import RGB, digest
from differad.locators.remembered import Remembered
from differad.locators.tiny.cache import evidence_file, read_evidence, write_evidence
from differad.locators.tiny.evidence import AREA, PATCH, WIDTH, Evidence
from differad.locators.tiny.known import read_key
from differad.locators.tiny.pairs import PairEvidence, resized
from differad.locators.tiny.proposals import PROPOSALS

# One token stands for MERGE x MERGE patches.
MERGE = 4
# The reference's tokens carry what the comparison proposes; its grid in patches.
REFERENCE_GRID = (1, MERGE, MERGE * PROPOSALS)
# The answers of a group share the evidence of theirs. About 1 MB each.
_LAST_PAIRS = 64


class EvidenceProcessor(Qwen2VLImageProcessorPil):
    """`pixel_values` (patches of all pictures, WIDTH) and `image_grid_thw` (pictures, 3) of pairs of pictures.

    `cache` is a folder in which the evidence of a pair is kept by its content, or None. Raises ValueError for a picture
    without a partner.
    """

    patch_size = PATCH
    merge_size = MERGE
    size = {"shortest_edge": AREA, "longest_edge": AREA}  # noqa: RUF012 - as the class it extends declares it

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.cache: Path | None = None
        self._evidence = PairEvidence()
        self._pairs: Remembered[bytes, Evidence] = Remembered(_LAST_PAIRS)

    def to_dict(self) -> dict[str, Any]:
        """The settings that are saved: not what this process has open or remembers."""
        own = ("cache", "_evidence", "_pairs")
        kept = {name: value for name, value in super().to_dict().items() if name not in own}
        return {**kept, "least_side": PATCH}

    def _preprocess(self, images: list[Any], size: Any, return_tensors: Any = None, **_settings: Any) -> BatchFeature:
        pictures = [np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(1, 2, 0)) for image in images]
        if len(pictures) % 2:
            raise ValueError(f"{len(pictures)} pictures: expected pairs, each a reference and its target")
        rule = ResizeRule(PATCH * MERGE, size.shortest_edge, size.longest_edge, least_side=PATCH)
        rows: list[Evidence] = []
        grids: list[tuple[int, int, int]] = []
        for reference, target in zip(pictures[::2], pictures[1::2], strict=True):
            found = self._of(reference, target, rule)
            height, width = found.shape[:2]
            rows += [np.zeros((int(np.prod(REFERENCE_GRID)), WIDTH), np.float32), to_rows(found)]
            grids += [REFERENCE_GRID, (1, height, width)]
        data = {"pixel_values": np.concatenate(rows), "image_grid_thw": np.array(grids, dtype=np.int64)}
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _of(self, reference: RGB, target: RGB, rule: ResizeRule) -> Evidence:
        """The evidence of a pair, or of what stands for one that is known: see `known`."""
        key, cache = read_key(target), self.cache
        if key is None or cache is None:
            return self._pair(resized(reference, rule), resized(target, rule))
        return self._pairs.recall(key, lambda: _known(cache, key))

    def _pair(self, reference: RGB, target: RGB) -> Evidence:
        """The evidence of a pair of resized pictures, (h, w, WIDTH)."""
        key = digest(reference, target)
        return self._pairs.recall(key, lambda: self._kept(key, reference, target))

    def _kept(self, key: bytes, reference: RGB, target: RGB) -> Evidence:
        """The evidence from the cache, or computed and put there; half precision, whether it was there or not."""
        if self.cache is None:
            return self._evidence(reference, target)
        kept = read_evidence(self.cache, key, (target.shape[0] // PATCH, target.shape[1] // PATCH))
        if kept is not None:
            return kept
        return np.asarray(write_evidence(self.cache, key, self._evidence(reference, target)), dtype=np.float32)


def _known(cache: Path, key: bytes) -> Evidence:
    """Evidence that was there when training began. Raises InputError where it no longer is."""
    kept = read_evidence(cache, key)
    if kept is None:
        raise InputError(
            f"{evidence_file(cache, key)}: gone or not whole; expected the evidence of a pair, and the next run computes it anew"
        )
    return kept


def to_rows(found: Evidence) -> Evidence:
    """(h, w, WIDTH) as rows (h * w, WIDTH) in Qwen2-VL's order: blocks of MERGE x MERGE patches, row by row."""
    height, width = found.shape[:2]
    blocks = found.reshape(height // MERGE, MERGE, width // MERGE, MERGE, -1)
    return np.ascontiguousarray(blocks.transpose(0, 2, 1, 3, 4)).reshape(height * width, -1)
