"""`tiny`: the embedded policy as a locator, with a calibrated decision. See docs/tiny.md.

The policy is run as any local checkpoint (locators/local.py), but for one thing: it is made to name a box for every target, and
how likely it finds the zero box, together with the highest peak of its map, says how sure it is that there is anything. So
every pair has a box, a confidence and a decision whose threshold can be set from normal pairs. Large pictures get a second,
closer look about the first box.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from differad.answers.parsing import Frame, format_answer, parse_answer
from differad.boxes import Boxes, area, centers
from differad.core import Location, Pair
from differad.images import RGB
from differad.locators.chat import Reply
from differad.locators.conformal import conformal_threshold
from differad.locators.local import LocalLocator, LocalOptions, Prepared
from differad.locators.odds import logistic, logit
from differad.locators.tiny.calibration import DECIDING, Deciding
from differad.locators.tiny.evidence import AREA, PATCH
from differad.options import check_option, option

# The policy that is shipped inside the package.
WEIGHTS = Path(__file__).parents[2] / "weights" / "tiny"
# The token before an answer's first number.
OPENING = "<think></think><answer>("
# A picture larger than what the policy sees at once is looked at again, about the first box, over this share of its sides.
CLOSER = 0.5

Window = tuple[float, float, float, float]


@dataclass(frozen=True)
class TinyOptions:
    """What a user may want other than the calibrated defaults."""

    threshold: float = option(DECIDING.threshold, "a target counts as abnormal from this probability on")
    device: str = option("auto", "cpu, cuda, cuda:1, mps; auto takes an accelerator where there is one")
    batch_size: int = option(8, "pairs that are answered at once")
    closer: bool = option(True, "look again, more closely, where a picture is larger than what the policy sees at once")

    def __post_init__(self) -> None:
        check_option("threshold", self.threshold, 0 <= self.threshold <= 1, "a probability in [0, 1]")
        check_option("batch_size", self.batch_size, self.batch_size >= 1, "at least 1")


class TinyLocator(LocalLocator):
    """The policy in `folder` (the shipped one unless told) with a decision of its own."""

    def __init__(
        self, options: TinyOptions | None = None, *, folder: str | Path = WEIGHTS, deciding: Deciding = DECIDING
    ) -> None:
        self.decision = options or TinyOptions()
        self._folder, self._deciding = folder, deciding
        super().__init__(
            str(folder),
            LocalOptions(device=self.decision.device, batch_size=self.decision.batch_size, max_new_tokens=16),
        )
        self.name = "tiny"
        self._opening = int(self._tokenizer.convert_tokens_to_ids(OPENING))
        self._zero = int(self._tokenizer.convert_tokens_to_ids("0"))
        self._written = {text: int(self._tokenizer.convert_tokens_to_ids(text)) for text in _ANSWER if text}
        self._numbers = self._tokenizer.convert_tokens_to_ids([str(number) for number in range(_LARGEST + 1)])

    def calibrate(self, normals: Iterable[Pair], false_alarms: float = 0.05) -> "TinyLocator":
        """A locator whose threshold leaves a box on at most a share `false_alarms` of normal pairs like these.

        See `conformal_threshold`. Raises InputError for too few pairs, and the error of a pair that cannot be read.
        """
        threshold = conformal_threshold(self, normals, false_alarms)
        return TinyLocator(replace(self.decision, threshold=threshold), folder=self._folder, deciding=self._deciding)

    def _prepare(self, reference: RGB, target: RGB) -> Prepared:
        seen = super()._prepare(reference, target)
        return _Kept(seen.patches, seen.grids, seen.text, seen.frame, seen.seed, reference, target)

    def _generate(self, batch: list[Prepared]) -> list[Reply]:
        """A box each; where the picture is large, from a second look at the surroundings of the first."""
        first = self._ask(batch)
        kept = [item for item in batch if isinstance(item, _Kept)]
        windows = [self._window(item, reply) for item, reply in zip(kept, first, strict=True)]
        closer = [
            super(TinyLocator, self)._prepare(*(cut(picture, window) for picture in (item.reference, item.target)))
            for item, window in zip(kept, windows, strict=True)
            if window is not None
        ]
        second = iter(self._ask(closer) if closer else [])
        return [
            reply if window is None else self._combined(reply, next(second), window)
            for reply, window in zip(first, windows, strict=True)
        ]

    def _ask(self, batch: Sequence[Prepared]) -> list["SureReply"]:
        doubt = _Doubt(self._opening, self._zero)
        texts = self._texts(list(batch), [doubt])
        peaks = [float(logits.max()) for logits in self._model.model.visual.logits]
        return [
            SureReply(text, item.frame, logit(1 - normal), peak)
            for text, item, normal, peak in zip(texts, batch, doubt.normal, peaks, strict=True)
        ]

    def _window(self, item: "_Kept", reply: "SureReply") -> Window | None:
        """Where to look again, in shares of the target's sides; None where a second look would show no more."""
        width, height = reply.frame.width, reply.frame.height
        boxes = parse_answer(reply.text, self._format, reply.frame).boxes
        if not self.decision.closer or len(boxes) == 0 or width * height < AREA:
            return None
        if min(item.reference.shape[:2]) * CLOSER < 2 * PATCH:
            return None
        return around(boxes[0] / np.array([width, height] * 2))

    def _combined(self, first: "SureReply", second: "SureReply", window: Window) -> "SureReply":
        """The second look's box in the whole target, and the mean of what both say of whether there is a defect."""
        frame = first.frame
        boxes = parse_answer(second.text, self._format, second.frame).boxes
        if len(boxes) == 0:
            return first
        corner = np.array(cut_pixels((frame.height, frame.width), window)[:2] * 2, dtype=np.float64)
        text = format_answer(boxes[:1] + corner, self._format, frame, reasoning="")
        return SureReply(text, frame, (first.odds + second.odds) / 2, (first.peak + second.peak) / 2)

    def _chance(self, reply: "SureReply") -> float:
        """How likely a target is abnormal."""
        d = self._deciding
        return logistic(d.bias + d.answer * reply.odds + d.peak * reply.peak)

    def _texts(self, batch: list[Prepared], processors: list[Any]) -> list[str]:
        steps = [None if text is None else self._written[text] for text in _ANSWER]
        grammar = _Grammar([*steps, min(self._end_ids())], self._numbers)
        return super()._texts(batch, [*processors, grammar])

    def _decide(self, reply: Reply, seconds: float) -> Location:
        assert isinstance(reply, SureReply)
        answer, chance = parse_answer(reply.text, self._format, reply.frame), self._chance(reply)
        found = chance >= self.decision.threshold
        boxes = answer.boxes[:1] if found else answer.boxes[:0]
        return Location(
            boxes=boxes,
            scores=np.full(len(boxes), chance),
            confidence=chance,
            reasoning=describe(boxes, reply.frame, chance),
            answer=reply.text if found else f"<think></think><answer>{self._format.zero_box}</answer>",
            valid=answer.status != "unreadable",
            model=self.name,
            seconds=seconds,
        )


@dataclass(frozen=True, eq=False)
class _Kept(Prepared):
    """A pair with its pictures, for a second look."""

    reference: RGB
    target: RGB


def around(box: NDArray[np.float64]) -> Window:
    """A window of `CLOSER` of each side about a box, larger where twice the box is, all as shares: x1, y1, x2, y2."""
    sides = np.clip(2 * (box[2:] - box[:2]), CLOSER, 1.0)
    low = np.clip((box[:2] + box[2:]) / 2 - sides / 2, 0, 1 - sides)
    return float(low[0]), float(low[1]), float(low[0] + sides[0]), float(low[1] + sides[1])


def cut_pixels(size: tuple[int, int], window: Window) -> tuple[int, int, int, int]:
    """A window in pixels x1, y1, x2, y2 of a picture of (height, width)."""
    height, width = size
    x1, y1, x2, y2 = window
    return round(x1 * width), round(y1 * height), round(x2 * width), round(y2 * height)


def cut(picture: RGB, window: Window) -> RGB:
    """The window's part of (H, W, 3)."""
    x1, y1, x2, y2 = cut_pixels((picture.shape[0], picture.shape[1]), window)
    return np.ascontiguousarray(picture[y1:y2, x1:x2])


@dataclass(frozen=True)
class SureReply(Reply):
    """A reply that names a box, with the logarithm of the odds of a box against the zero box, and the map's highest logit."""

    odds: float
    peak: float


class _Doubt:
    """Reads how likely each answer's first number is the zero box's, and rules it out: every target gets a box.

    A true box that touches the left border starts at 1 instead, a thousandth off.
    """

    def __init__(self, opening: int, zero: int) -> None:
        self._opening, self._zero = opening, zero
        self.normal: list[float] = []

    def __call__(self, ids: Any, scores: Any) -> Any:
        if not self.normal:
            self.normal = [0.0] * len(scores)
        for row in (ids[:, -1] == self._opening).nonzero().flatten().tolist():
            self.normal[row] = float(scores[row].float().softmax(dim=-1)[self._zero])
            scores[row, self._zero] = -math.inf
        return scores


# An answer token by token, None for a number; the end follows.
_ANSWER = (OPENING, None, ",", None, "),(", None, ",", None, ")</answer>")
_LARGEST = 1000
# Tokens from a number of the first corner to that of the second.
_CORNER = 4


class _Grammar:
    """Lets nothing be written but an answer whose box has an area: weights may like what cannot be read.

    `steps` are the tokens of an answer, None for a number; `numbers` the tokens of 0, 1, 2 and so on.
    """

    def __init__(self, steps: list[int | None], numbers: list[int]) -> None:
        self._steps, self._numbers = steps, numbers
        self._begin: int | None = None

    def __call__(self, ids: Any, scores: Any) -> Any:
        if self._begin is None:
            self._begin = ids.shape[1]
        written = ids[:, self._begin :]
        step = written.shape[1]
        wanted = self._steps[min(step, len(self._steps) - 1)]
        values = ids.new_full(scores.shape[1:], -1)
        if wanted is not None:
            values[wanted] = 0
            return scores.masked_fill(values < 0, -math.inf)
        values[self._numbers] = ids.new_tensor(range(len(self._numbers)))
        if step < _CORNER:
            return scores.masked_fill((values < 0) | (values == len(self._numbers) - 1), -math.inf)
        least = values[written[:, step - _CORNER]] + 1
        return scores.masked_fill(values < least[:, None], -math.inf)


def describe(boxes: Boxes, frame: Frame, chance: float) -> str:
    """Where, how large and how sure, in a sentence; `boxes` (N, 4) are pixels of the frame's target."""
    if len(boxes) == 0:
        return f"Nothing differs from the reference beyond what two good parts may (abnormal with {chance:.0%})."
    x, y = centers(boxes)[0] / (frame.width, frame.height)
    share = float(area(boxes)[0]) / (frame.width * frame.height)
    return (
        f"The target differs most from the reference at {x:.0%} of its width and {y:.0%} of its height, over "
        f"{share:.1%} of the picture (abnormal with {chance:.0%})."
    )
