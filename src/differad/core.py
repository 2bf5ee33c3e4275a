"""The two values that everything passes: a `Pair` goes in, a `Location` comes out."""

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
    """An image of a normal part, one of a part to inspect, and the truth where it is known.

    `boxes` are pixels of the target (EXIF orientation applied), shape (N, 4), x2/y2 exclusive; (0, 4) says that the
    target is normal. `anomalous` follows from the boxes where they are given; True without boxes says that the target is
    abnormal and nobody marked where, False without boxes becomes (0, 4), None that nobody has labelled it. Images may be
    paths, bytes of image files, PIL images, or arrays in the order RGB (OpenCV's `imread` gives BGR: turn it round).

    Two pairs are equal where they name the same images and say the same of them: paths as they are written, images in memory by
    their content. A path is not equal to the image in its file.
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
        """What messages call it: its id, else its target."""
        if self.id:
            return f"pair {self.id!r}"
        return str(self.target) if isinstance(self.target, str | Path) else "the pair"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Pair):
            return NotImplemented
        images = ((self.reference, other.reference), (self.target, other.target))
        return self._says() == other._says() and self.extra == other.extra and all(_same_image(*two) for two in images)

    def __hash__(self) -> int:
        return hash(self._says())  # images in memory are left out: equal pairs have equal hashes without them

    def _says(self) -> tuple[Any, ...]:
        """All that two equal pairs have alike, but images and further keys."""
        boxes = None if self.boxes is None else tuple(np.ravel(self.boxes).tolist())
        mask = None if self.mask is None else Path(self.mask)
        return self.id, self.category, boxes, mask, self.group, self.anomalous


@dataclass(frozen=True, eq=False)
class Location:
    """What a locator says of a target: where it is abnormal, how sure it is, and why.

    `boxes` (N, 4) are pixels of the target as it lies on disk (EXIF orientation applied), best first; none means
    normal where `valid`. `scores` (N,) are in [0, 1]. `confidence` is how sure the locator is that the target is abnormal
    at all, in [0, 1], given for normal targets too; None where the model tells nothing. `valid` is False when a model's
    answer could not be read; it then has no boxes, and evaluation counts it as wrong. `comparable` is False where the two
    images cannot be compared (another part, nothing to see): no answer either, so `valid` is False too. `threshold` is the
    confidence from which on the locator gave a box, None where it decides in another way. Two locations are equal where they
    say the same, however long that took. A location itself is neither true nor false: ask `anomalous`. For JSON there is
    `to_dict`.
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
        return self._says() == other._says() if isinstance(other, Location) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._says())

    def __bool__(self) -> bool:
        raise TypeError(
            "a Location is neither true nor false: ask location.anomalous (True, False, or None where there is no answer)"
        )

    def _says(self) -> tuple[Any, ...]:
        """All that two equal locations have alike: every field but the time taken."""
        values = [getattr(self, one.name) for one in fields(self) if one.name != "seconds"]
        return tuple(tuple(np.ravel(value).tolist()) if isinstance(value, np.ndarray) else value for value in values)

    @property
    def anomalous(self) -> bool | None:
        """Whether any box was given; None where there is no answer (`valid` is False), which is never "normal"."""
        return len(self.boxes) > 0 if self.valid else None

    @property
    def why_no_answer(self) -> str | None:
        """The reason, in a line, where there is no answer; None where there is one."""
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


def _same_image(one: ImageSource, other: ImageSource) -> bool:
    """Whether two sources are the same path, or images in memory of one kind with the same content."""
    if isinstance(one, str | Path) and isinstance(other, str | Path):
        return Path(one) == Path(other)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return type(one) is type(other) and not isinstance(one, np.ndarray) and bool(one == other)


def why_no_answer(reasoning: str, answer: str) -> str:
    """The reason, in a line, of a location that is not valid: what a model said and nobody could read, or its reasoning."""
    if answer.strip():
        return f"unreadable answer {shortened(answer)}"
    return " ".join(reasoning.split()) or "no reason was given"


def _storable(text: str) -> str:
    """The text without half surrogates, which a model may write and UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
