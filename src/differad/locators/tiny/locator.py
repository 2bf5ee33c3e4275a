"""`tiny`: the embedded policy as a locator, with a calibrated decision. See docs/tiny.md.

The policy is run as any local checkpoint (locators/local.py), but for one thing: it is made to name a box for every target, and
how likely it finds the zero box, together with the highest peak of its map, says how sure it is that there is anything. So
one pass gives box, confidence and a decision whose threshold can be set from normal pairs.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from differad.answers.parsing import parse_answer
from differad.boxes import Boxes, area, centers
from differad.core import Location, Pair
from differad.locators.chat import Reply
from differad.locators.conformal import conformal_threshold
from differad.locators.local import LocalLocator, LocalOptions, Prepared
from differad.locators.tiny.calibration import DECIDING, Deciding
from differad.options import check_option, option

# The policy that is shipped inside the package.
WEIGHTS = Path(__file__).parents[2] / "weights" / "tiny"
# The token before an answer's first number.
OPENING = "<think></think><answer>("
_SURE = 1e-6


@dataclass(frozen=True)
class TinyOptions:
    """What a user may want other than the calibrated defaults."""

    threshold: float = option(DECIDING.threshold, "a target counts as abnormal from this probability on")
    device: str = option("auto", "cpu, cuda, cuda:1, mps; auto takes an accelerator where there is one")
    batch_size: int = option(8, "pairs that are answered at once")

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

    def calibrate(self, normals: Iterable[Pair], false_alarms: float = 0.05) -> "TinyLocator":
        """A locator whose threshold leaves a box on at most a share `false_alarms` of normal pairs like these.

        See `conformal_threshold`. Raises InputError for too few pairs, and the error of a pair that cannot be read.
        """
        threshold = conformal_threshold(self, normals, false_alarms)
        return TinyLocator(replace(self.decision, threshold=threshold), folder=self._folder, deciding=self._deciding)

    def _generate(self, batch: list[Prepared]) -> list[Reply]:
        doubt = _Doubt(self._opening, self._zero)
        texts = self._texts(batch, [doubt])
        peaks = [float(logits.max()) for logits in self._model.model.visual.logits]
        chances = [self._chance(normal, peak) for normal, peak in zip(doubt.normal, peaks, strict=True)]
        return [SureReply(text, item.frame, chance) for text, item, chance in zip(texts, batch, chances, strict=True)]

    def _chance(self, normal: float, peak: float) -> float:
        """How likely a target is abnormal, from the policy's belief in the zero box and its map's highest logit."""
        d = self._deciding
        normal = min(max(normal, _SURE), 1 - _SURE)
        odds = d.bias + d.answer * math.log((1 - normal) / normal) + d.peak * peak
        return 1 / (1 + math.exp(-min(max(odds, -30.0), 30.0)))

    def _decide(self, reply: Reply, seconds: float) -> Location:
        assert isinstance(reply, SureReply)
        answer = parse_answer(reply.text, self._format, reply.frame)
        found = reply.chance >= self.decision.threshold
        boxes = answer.boxes[:1] if found else answer.boxes[:0]
        text = reply.text if found else f"<think></think><answer>{self._format.zero_box}</answer>"
        return Location(
            boxes=boxes,
            scores=np.full(len(boxes), reply.chance),
            confidence=reply.chance,
            reasoning=describe(boxes, reply),
            answer=text,
            valid=answer.status != "unreadable",
            model=self.name,
            seconds=seconds,
        )


@dataclass(frozen=True)
class SureReply(Reply):
    """A reply with the probability that its target is abnormal."""

    chance: float


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


def describe(boxes: Boxes, reply: SureReply) -> str:
    """Where, how large and how sure, in a sentence."""
    chance = f"{reply.chance:.0%}"
    if len(boxes) == 0:
        return f"Nothing differs from the reference beyond what two good parts may (abnormal with {chance})."
    width, height = reply.frame.width, reply.frame.height
    x, y = centers(boxes)[0] / (width, height)
    share = float(area(boxes)[0]) / (width * height)
    return (
        f"The target differs most from the reference at {x:.0%} of its width and {y:.0%} of its height, over "
        f"{share:.1%} of the picture (abnormal with {chance})."
    )
