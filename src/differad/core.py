"""The two central values: a `Pair` is the input of a locator, a `Location` its output."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from differad.boxes import Boxes, as_boxes, no_boxes, to_list
from differad.errors import InputError, shortened
from differad.images import ImageSource


@dataclass(frozen=True, eq=False)
class Pair:
    """An image of a normal part, one of a part to inspect, and the true boxes if known.

    `boxes` are pixels of the target (EXIF orientation applied), shape (N, 4), x2/y2 exclusive; (0, 4) means that the
    target is normal. `anomalous` follows from the boxes if there are any. Without boxes, True means that the target is
    abnormal at an unknown place, False becomes boxes (0, 4), and None means unlabelled. Images may be paths, bytes of image
    files, PIL images, or arrays in the order RGB (OpenCV's `imread` returns BGR: reverse the channels).

    Two pairs are equal if they have the same images and labels; paths are compared as written, images in memory by content.
    A path is not equal to the image in its file.
    """

    reference: ImageSource
    target: ImageSource
    id: str = ""
    category: str = ""
    boxes: Boxes | None = None
    mask: Path | None = None
    group: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    anomalous: bool | None = None

    def __post_init__(self) -> None:
        if self.boxes is None and self.anomalous is False:
            object.__setattr__(self, "boxes", no_boxes())
        if self.boxes is None:
            return
        boxes = as_boxes(self.boxes)
        object.__setattr__(self, "boxes", boxes)
        object.__setattr__(self, "anomalous", len(boxes) > 0)

    @property
    def label(self) -> str:
        """Name of the pair in messages: its id, else its target."""
        if self.id:
            return f"pair {self.id!r}"
        return str(self.target) if isinstance(self.target, str | Path) else "the pair"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Pair):
            return NotImplemented
        images = ((self.reference, other.reference), (self.target, other.target))
        same_images = all(_same_image(first, second) for first, second in images)
        return self._key() == other._key() and self.extra == other.extra and same_images

    def __hash__(self) -> int:
        return hash(self._key())  # without images: equal pairs have equal hashes anyway

    def _key(self) -> tuple[Any, ...]:
        """The values that are equal in equal pairs, except images and further keys."""
        boxes = None if self.boxes is None else tuple(np.ravel(self.boxes).tolist())
        mask = None if self.mask is None else Path(self.mask)
        return self.id, self.category, boxes, mask, self.group, self.anomalous


@dataclass(frozen=True, eq=False)
class Location:
    """Answer of a locator about a target: where it is abnormal, with which confidence, and why.

    `boxes` (N, 4) are pixels of the target as it is on disk (EXIF orientation applied), best first; none means normal if
    `valid`. `scores` (N,) are in [0, 1]. `confidence` in [0, 1] is how likely the target is abnormal, for normal targets too;
    None if the model gives none. `valid` is False if a model's answer could not be read; it then has no boxes, and evaluation
    counts it as wrong. `comparable` is False if the two images cannot be compared (another part, a blank image); then there
    is no answer, and `valid` is False too. `threshold` is the confidence from which the locator gives a box, None if it
    decides in another way. Two locations are equal if all values except `seconds` are. A location has no truth value: use
    `anomalous`. For JSON there is `to_dict`.
    """

    boxes: Boxes = field(default_factory=no_boxes)
    scores: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    confidence: float | None = None
    reasoning: str = ""
    answer: str = ""
    valid: bool = True
    model: str = ""
    seconds: float = 0.0
    comparable: bool = True
    threshold: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "valid", self.valid and self.comparable)
        object.__setattr__(self, "boxes", as_boxes(self.boxes))
        object.__setattr__(self, "scores", np.asarray(self.scores, dtype=np.float64).reshape(-1))
        if len(self.scores) not in (0, len(self.boxes)):
            raise InputError(f"{len(self.scores)} scores for {len(self.boxes)} boxes: expected one each, or none")

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Location) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __bool__(self) -> bool:
        raise TypeError(
            "a Location is neither true nor false: ask location.anomalous (True, False, or None where there is no answer)"
        )

    def _key(self) -> tuple[Any, ...]:
        """The values that are equal in equal locations: every field except `seconds`."""
        values = [getattr(self, item.name) for item in fields(self) if item.name != "seconds"]
        return tuple(tuple(np.ravel(value).tolist()) if isinstance(value, np.ndarray) else value for value in values)

    @property
    def anomalous(self) -> bool | None:
        """Whether there are boxes; None if there is no answer (`valid` is False), which is never "normal"."""
        return len(self.boxes) > 0 if self.valid else None

    @property
    def why_no_answer(self) -> str | None:
        """The reason in one line if there is no answer, else None."""
        return None if self.valid else why_no_answer(self.reasoning, self.answer)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `differad locate --json`: text, numbers, lists and null only, ready for `json.dumps`."""
        return {
            "anomalous": self.anomalous,
            "boxes": to_list(self.boxes),
            "scores": [round(float(s), 4) for s in self.scores],
            "confidence": None if self.confidence is None else round(float(self.confidence), 4),
            "threshold": None if self.threshold is None else round(float(self.threshold), 4),
            "reasoning": _storable(self.reasoning),
            "answer": _storable(self.answer),
            "valid": self.valid,
            "comparable": self.comparable,
            "model": self.model,
            "seconds": round(self.seconds, 4),
        }


def _same_image(first: ImageSource, second: ImageSource) -> bool:
    """Whether two sources are the same path, or images in memory of one type with the same content."""
    if isinstance(first, str | Path) and isinstance(second, str | Path):
        return Path(first) == Path(second)
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return first.dtype == second.dtype and np.array_equal(first, second)
    return type(first) is type(second) and not isinstance(first, np.ndarray) and bool(first == second)


def why_no_answer(reasoning: str, answer: str) -> str:
    """The reason in one line why a location is not valid: the model's unreadable answer, or the reasoning."""
    if answer.strip():
        return f"unreadable answer {shortened(answer)}"
    return " ".join(reasoning.split()) or "no reason was given"


def _storable(text: str) -> str:
    """The text without lone surrogates, which a model may write and UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode("utf-8")
