"""From pairs.jsonl to TRL's data set: a conversation with two image slots, the images, answer and truth.

All random choices are made here, from the seed and the pair's id. So a row is always the same, and all completions of a group
answer one question. Images are opened only when a row is read. Knows nothing of trainers or rewards.
"""

import hashlib
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image

from differad.answers.formats import AnswerFormat
from differad.answers.parsing import Frame, format_answer, to_units
from differad.answers.prompts import QUESTION, SYSTEM, prompt_text, training_question
from differad.answers.resize import ResizeRule
from differad.boxes import Boxes, area, as_boxes, centers
from differad.core import Pair
from differad.data.manifest import check_readable, read_pairs
from differad.data.truth import check_boxes
from differad.errors import InputWarning, ManifestError
from differad.images import ImageSource, image_size, read_images
from differad.locators.tiny.evidence import PATCH
from differad.locators.tiny.known import PairFeatureIndex, key_image
from differad.training.recipe import Data

# Size of the cache of decoded pairs: the completions of a group share their images.
_CACHED_PAIRS = 16
_SIZES = ((0.005, "a speck"), (0.02, "small"), (0.1, "of medium size"), (1.01, "large"))


@dataclass(frozen=True)
class AnswerConvention:
    """How a checkpoint writes boxes: its family's format, and its image processor's resize rule if known."""

    format: AnswerFormat
    rule: ResizeRule | None

    def frame(self, width: int, height: int) -> Frame:
        """The frame of a target of this size in pixels. Raises ImageError for a shape that the processor refuses."""
        return Frame(width, height, resized=None if self.rule is None else self.rule.resized(width, height))

    def image_tokens(self, *frames: Frame) -> int | None:
        """Number of tokens of images with these frames in a prompt; None if the resize rule is not known."""
        if self.rule is None:
            return None
        sizes = [frame.units("resized") for frame in frames]
        return sum(width * height for width, height in sizes) // self.rule.factor**2

    def units(self, frame: Frame) -> tuple[int, int]:
        """Width and height of the target in the units of an answer."""
        return frame.units(self.format.space)


def build_dataset(data: Data, convention: AnswerConvention, *, with_answer: bool) -> Dataset:
    """The labelled pairs of a recipe as a data set that opens images row by row.

    Columns: `prompt`, `images` (two), and with an answer `completion`, else `solution` (true boxes (M, 4) in thousandths,
    none for a normal target) and `units` for the rewards, and `id`, `category`. Pairs that are unlabelled, or abnormal without a
    known location, have no answer to learn: they are left out, and an InputWarning counts them. Raises ManifestError, ImageError.
    """
    rows = list(build_rows(_labelled(data), data, convention))
    if not rows:
        names = ", ".join(map(str, data.pairs))
        raise ManifestError(f"{names}: no pair to train on; expected `boxes` or `mask` on some line ([] says normal)")
    return Dataset.from_list(rows).with_transform(_OpenImages(with_answer))


def build_rows(pairs: Iterable[Pair], data: Data, convention: AnswerConvention) -> Iterator[dict[str, Any]]:
    """One row of plain values per pair: question, correct answer and image paths.

    Raises ManifestError for a pair without boxes (it may not be normal) or with boxes that cannot be pixels of its target, and
    ImageError.
    """
    index = (
        None if data.evidence is None or convention.rule is None else PairFeatureIndex(data.evidence, convention.rule)
    )
    for pair in pairs:
        if pair.boxes is None:
            raise ManifestError(
                f"pair {pair.id!r}: nothing says where it is abnormal; expected `boxes` ([] says normal)"
            )
        size = image_size(pair.target)
        boxes = as_boxes(check_boxes(pair, size))
        frame = convention.frame(*size)
        rng = np.random.default_rng([data.seed, zlib.crc32(pair.id.encode())])
        question = training_question(rng) if data.question == "drawn" else QUESTION
        reasoning = describe_defect(pair, frame) if data.reasoning else ""
        width, height = convention.units(frame)
        written = to_units(boxes, convention.format, frame).astype(np.float64)
        yield {
            "id": pair.id,
            "category": pair.category,
            "reference": str(pair.reference),
            "target": str(pair.target),
            "evidence": _feature_key(index, pair, frame),
            "mask": "" if pair.mask is None else str(pair.mask),
            "boxes": boxes.tolist(),
            "question": prompt_text(convention.format, question),
            "image_tokens": convention.image_tokens(frame, convention.frame(*image_size(pair.reference))),
            "answer": format_answer(_largest(boxes), convention.format, frame, reasoning=reasoning),
            # The rounded box that an answer can express, not the exact one, so that a perfect answer has IoU 1.
            "solution": (written * 1000.0 / np.array([width, height, width, height])).tolist(),
            "units": [width, height],
        }


def describe_defect(pair: Pair, frame: Frame) -> str:
    """One sentence from the pair's metadata: the target's defect, its location and its size."""
    boxes = _largest(as_boxes(pair.boxes))
    if len(boxes) == 0:
        return "The target shows the part as the reference does. Nothing is missing, added or damaged."
    x, y = centers(boxes)[0] / (frame.width, frame.height)
    share = float(area(boxes)[0]) / (frame.width * frame.height)
    what = str(pair.extra.get("kind") or "defect").replace("_", " ")
    row = "upper" if y < 1 / 3 else "middle" if y < 2 / 3 else "lower"
    column = "left" if x < 1 / 3 else "centre" if x < 2 / 3 else "right"
    size = next(name for limit, name in _SIZES if share < limit)
    return f"The target differs from the reference: {what}, in the {row} {column}, {size}."


def checksum(manifests: Sequence[str | Path]) -> dict[str, str]:
    """SHA-256 of each manifest, by its path; images are not read. Raises ManifestError."""
    check_readable(map(Path, manifests))
    return {str(path): hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in manifests}


def prompt_messages(question: str) -> list[dict[str, Any]]:
    """The conversation up to the answer: system text, then reference, target and question."""
    slot = {"type": "image"}
    return [
        {"role": "system", "content": [{"type": "text", "text": SYSTEM}]},
        {"role": "user", "content": [slot, slot, {"type": "text", "text": question}]},
    ]


def _labelled(data: Data) -> Iterator[Pair]:
    """The first `data.limit` pairs with boxes; warns of pairs that are unlabelled, or abnormal without a known location."""
    skipped: Counter[str] = Counter()

    def with_boxes() -> Iterator[Pair]:
        for manifest in data.pairs:
            for pair in read_pairs(manifest):
                if pair.boxes is not None:
                    yield pair
                else:
                    skipped["abnormal pairs without a known location" if pair.anomalous else "unlabelled pairs"] += 1

    yield from islice(with_boxes(), data.limit)
    for what, count in skipped.items():
        names = ", ".join(map(str, data.pairs))
        warnings.warn(
            f"{names}: {count} {what} are left out of training; give their boxes or masks",
            InputWarning,
            stacklevel=2,
        )


def _largest(boxes: Boxes) -> Boxes:
    """The largest box, (1, 4) or (0, 4): the method's answers and rewards have one box."""
    return boxes[[int(np.argmax(area(boxes)))]] if len(boxes) else boxes


def _feature_key(index: PairFeatureIndex | None, pair: Pair, frame: Frame) -> str:
    """The hexadecimal cache key of a pair's features; empty if its images have to be opened."""
    if index is None or frame.resized is None:
        return ""
    key = index.key(pair.reference, pair.target, (frame.resized[1] // PATCH, frame.resized[0] // PATCH))
    return "" if key is None else key.hex()


@lru_cache(maxsize=_CACHED_PAIRS)
def _open(reference: ImageSource, target: ImageSource, key: str) -> tuple[Image.Image, Image.Image]:
    """The two images, or placeholders with the key if their features are cached."""
    if key:
        return Image.fromarray(key_image(bytes.fromhex(key))), Image.fromarray(key_image(bytes.fromhex(key)))
    first, second = read_images(reference, target)
    return Image.fromarray(first), Image.fromarray(second)


class _OpenImages:
    """The transform of a data set: from rows of paths to rows of images and conversations."""

    def __init__(self, with_answer: bool) -> None:
        self._with_answer = with_answer

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        opened: dict[str, list[Any]] = {
            "prompt": [prompt_messages(question) for question in rows["question"]],
            "images": [
                list(_open(*paths)) for paths in zip(rows["reference"], rows["target"], rows["evidence"], strict=True)
            ],
        }
        if self._with_answer:
            opened["completion"] = [_assistant(text) for text in rows["answer"]]
            return opened | {name: rows[name] for name in ("mask", "boxes", "target")}
        return opened | {name: rows[name] for name in ("solution", "units", "id", "category")}


def _assistant(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]
