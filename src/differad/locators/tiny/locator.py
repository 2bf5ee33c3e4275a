"""`tiny`: the embedded policy as a locator, with a calibrated decision. See docs/tiny.md.

The policy runs without torch (network.py) and is made to name a box for every target; how likely it finds the zero box,
together with the highest peak of its map, says how sure it is that there is anything. So every pair has a box, a confidence
and a decision whose threshold can be set from normal pairs. Large pictures get a second, closer look about the first box.
"""

import copy
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.answers.formats import FORMATS, TINY_MODEL_TYPE, family_of
from differad.answers.parsing import Frame, format_answer, parse_answer
from differad.answers.resize import ResizeRule
from differad.boxes import Boxes, area, centers, grow, no_boxes
from differad.core import Location, Pair
from differad.errors import LocatorError
from differad.images import RGB, read_images
from differad.locators.base import Outcome, locate_concurrently
from differad.locators.calibration import COMPARING
from differad.locators.chat import Reply
from differad.locators.conformal import conformal_threshold
from differad.locators.odds import logistic, logit
from differad.locators.threads import one_thread_each, usable_cores
from differad.locators.tiny.calibration import DECIDING, Deciding
from differad.locators.tiny.evidence import PATCH
from differad.locators.tiny.network import OPENING, Policy
from differad.locators.tiny.pairs import PairEvidence, resized
from differad.options import check_option, option

# The policy that is shipped inside the package.
WEIGHTS = Path(__file__).parents[2] / "weights" / "tiny"
# A picture larger than what the policy sees at once is looked at again, about the first box, over this share of its sides.
CLOSER = 0.5
_FORMAT = FORMATS[family_of(TINY_MODEL_TYPE)]

Window = tuple[float, float, float, float]


@dataclass(frozen=True)
class TinyOptions:
    """What a user may want other than the calibrated defaults."""

    threshold: float = option(DECIDING.threshold, "a target counts as abnormal from this probability on")
    closer: bool = option(True, "look again, more closely, where a picture is larger than what the policy sees at once")
    margin: float = option(
        COMPARING.margin, "boxes grow by this share of the longer side: labels are drawn with a margin"
    )
    workers: int = option(0, "threads; 0 takes one per usable core")

    def __post_init__(self) -> None:
        check_option("threshold", self.threshold, 0 <= self.threshold <= 1, "a probability in [0, 1]")
        check_option("margin", self.margin, 0 <= self.margin <= 0.25, "a share in [0, 0.25]")
        check_option("workers", self.workers, self.workers >= 0, "0 or more")


class TinyLocator:
    """The policy in `folder` (the shipped one unless told) with a decision of its own."""

    name = "tiny"

    def __init__(
        self, options: TinyOptions | None = None, *, folder: str | Path = WEIGHTS, deciding: Deciding = DECIDING
    ) -> None:
        self.options = options or TinyOptions()
        self._folder, self._deciding = Path(folder), deciding
        self._policy = Policy(self._folder)
        self._rule = ResizeRule.from_folder(self._folder)
        self._evidence = PairEvidence()

    def locate(self, pair: Pair) -> Location:
        """Where the target is abnormal. Raises ImageError, LocatorError."""
        if (self.options.workers or usable_cores()) == 1:
            return self._locate(pair, None)
        with ThreadPoolExecutor(1) as pool:
            return self._locate(pair, pool)

    def locate_many(self, pairs: Iterable[Pair]) -> Iterator[Outcome]:
        """Locate a stream in order; at most two pairs per worker are read ahead."""
        workers = self.options.workers or usable_cores()
        with one_thread_each(workers):
            yield from locate_concurrently(self._variant(replace(self.options, workers=1)), pairs, workers)

    def calibrate(self, normals: Iterable[Pair], false_alarms: float = 0.05) -> "TinyLocator":
        """A locator whose threshold leaves a box on at most a share `false_alarms` of normal pairs like these.

        See `conformal_threshold`. Raises InputError for too few pairs, and the error of a pair that cannot be read.
        """
        return self._variant(replace(self.options, threshold=conformal_threshold(self, normals, false_alarms)))

    def _variant(self, options: TinyOptions) -> "TinyLocator":
        """This locator with other options, sharing weights and what it remembers."""
        other = copy.copy(self)
        other.options = options
        return other

    def _locate(self, pair: Pair, pool: ThreadPoolExecutor | None) -> Location:
        start = time.perf_counter()
        reference, target = read_images(pair.reference, pair.target)
        try:
            reply = self._ask(reference, target, pool)
            window = self._window(reference, reply)
            if window is not None:
                second = self._ask(cut(reference, window), cut(target, window), pool)
                reply = _combined(reply, second, window)
        except cv2.error as error:
            raise LocatorError(
                f"pair {pair.id!r}: OpenCV cannot compare it ({error}); check the two pictures"
            ) from None
        return self._decide(reply, time.perf_counter() - start)

    def _ask(self, reference: RGB, target: RGB, pool: ThreadPoolExecutor | None) -> "SureReply":
        """One look: a box for any pair."""
        found = self._evidence(resized(reference, self._rule), resized(target, self._rule), pool)
        look = self._policy.look(found)
        x1, y1, x2, y2 = look.box
        frame = Frame(target.shape[1], target.shape[0])
        return SureReply(f"{OPENING}{x1},{y1}),({x2},{y2})</answer>", frame, logit(1 - look.normal), look.peak)

    def _window(self, reference: RGB, reply: "SureReply") -> Window | None:
        """Where to look again, in shares of the target's sides; None where a second look would show no more."""
        width, height = reply.frame.width, reply.frame.height
        if not self.options.closer or width * height < self._rule.max_pixels:
            return None
        if min(*reference.shape[:2], width, height) * CLOSER < 2 * PATCH:
            return None
        return around(parse_answer(reply.text, _FORMAT, reply.frame).boxes[0] / np.array([width, height] * 2))

    def _chance(self, reply: "SureReply") -> float:
        """How likely a target is abnormal."""
        d = self._deciding
        return logistic(d.bias + d.answer * reply.odds + d.peak * reply.peak)

    def _decide(self, reply: "SureReply", seconds: float) -> Location:
        chance = self._chance(reply)
        frame = reply.frame
        boxes = parse_answer(reply.text, _FORMAT, frame).boxes if chance >= self.options.threshold else no_boxes()
        answer = format_answer(
            grow(boxes, self.options.margin, frame.width, frame.height), _FORMAT, frame, reasoning=""
        )
        boxes = parse_answer(answer, _FORMAT, frame).boxes
        return Location(
            boxes=boxes,
            scores=np.full(len(boxes), chance),
            confidence=chance,
            reasoning=describe(boxes, frame, chance),
            answer=answer,
            model=self.name,
            seconds=seconds,
        )


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


def _combined(first: SureReply, second: SureReply, window: Window) -> SureReply:
    """The second look's box in the whole target, and the mean of what both say of whether there is a defect."""
    frame = first.frame
    boxes = parse_answer(second.text, _FORMAT, second.frame).boxes
    corner = np.array(cut_pixels((frame.height, frame.width), window)[:2] * 2, dtype=np.float64)
    text = format_answer(boxes[:1] + corner, _FORMAT, frame, reasoning="")
    return SureReply(text, frame, (first.odds + second.odds) / 2, (first.peak + second.peak) / 2)


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
