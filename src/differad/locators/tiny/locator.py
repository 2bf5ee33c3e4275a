"""`tiny`: the embedded policy as a locator, with a calibrated decision. See docs/tiny.md.

The policy runs without torch (network.py) and is made to name a box for every target. Its probability of the zero box and the
highest peak of its map give the probability of an anomaly. So every pair has a box, a confidence and a decision whose threshold
can be set from normal pairs. The policy runs three times, twice on crops around its first box; the box is the coordinate-wise
median of three.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from differad.answers.formats import FORMATS, TINY_MODEL_TYPE, family_of
from differad.answers.parsing import Frame, format_answer, parse_answer
from differad.answers.resize import ResizeRule
from differad.boxes import Boxes, area, centers, grow, no_boxes
from differad.core import Location
from differad.errors import OptionError
from differad.images import RGB
from differad.locators.calibration import COMPARISON_CONSTANTS
from differad.locators.chat import Reply
from differad.locators.embedded import EmbeddedLocator
from differad.locators.features.weights import BACKBONE
from differad.locators.odds import logit, sigmoid
from differad.locators.threads import one_blas_thread, one_thread_each, usable_cores
from differad.locators.tiny.calibration import DECISION_CONSTANTS, DecisionConstants, read_decision_constants
from differad.locators.tiny.evidence import PATCH
from differad.locators.tiny.network import OPENING, Policy
from differad.locators.tiny.pairs import PairFeatureExtractor, resized
from differad.options import check_option, option

# The policy that is shipped inside the package.
WEIGHTS = Path(__file__).parents[2] / "weights" / "tiny"
# The refinement passes run on crops around the first box, of these shares of both sides.
CROP_SHARES = (0.4, 0.65)
_FORMAT = FORMATS[family_of(TINY_MODEL_TYPE)]

Window = tuple[float, float, float, float]


@dataclass(frozen=True)
class TinyOptions:
    """What a user may want other than the calibrated defaults."""

    threshold: float | None = option(
        None,
        f"a target counts as abnormal from this probability on; none: the policy's own, "
        f"{DECISION_CONSTANTS.threshold} of the shipped one",
    )
    closer: bool = option(
        True,
        "run twice more, on crops of 0.4 and 0.65 of each side of both images, and take the median of three boxes; off: a "
        "third of the time",
    )
    margin: float = option(
        COMPARISON_CONSTANTS.margin,
        "boxes grow on each side by this share of the longer side of the target: labels have a margin",
    )
    workers: int = option(0, "threads; 0 takes one per usable core")

    def __post_init__(self) -> None:
        probable = self.threshold is None or 0 <= self.threshold <= 1
        check_option("threshold", self.threshold, probable, "a probability in [0, 1]")
        check_option("margin", self.margin, 0 <= self.margin <= 0.25, "a share in [0, 0.25]")
        check_option("workers", self.workers, self.workers >= 0, "0 or more")


class TinyLocator(EmbeddedLocator):
    """The policy in `folder` (by default the shipped one) with a calibrated decision.

    `deciding` are the numbers of the decision; None: those in the folder's decision.json, else the shipped ones. Raises
    OptionError, InputError for a folder that is no embedded policy, naming what is missing.
    """

    name = "tiny"

    def __init__(
        self,
        options: TinyOptions | None = None,
        *,
        folder: str | Path = WEIGHTS,
        deciding: DecisionConstants | None = None,
    ) -> None:
        self._folder = Path(folder)
        if self._folder != WEIGHTS:
            self.name = f"{type(self).name}@{folder}"
        self.weights = (self._folder, BACKBONE)
        self._policy = Policy(self._folder)
        self._rule = ResizeRule.from_folder(self._folder)
        if self._rule.factor != self._policy.factor:
            raise OptionError(
                f"{self._folder}: the image processor's sides are multiples of {self._rule.factor} pixels; this policy expects "
                f"{self._policy.factor} (patch_size times merge_size); copy preprocessor_config.json from the policy again"
            )
        self._deciding = read_decision_constants(self._folder) if deciding is None else deciding
        self._pair_features = PairFeatureExtractor()
        self.options = self._with_threshold(options or TinyOptions())

    def with_options(self, options: TinyOptions) -> Self:
        """This locator with other options, sharing what it has loaded and its cache."""
        return super().with_options(self._with_threshold(options))

    def compare(self, reference: RGB, target: RGB) -> Location:
        """Where the target is abnormal."""
        return self.decide(self.reply(reference, target))

    def reply(self, reference: RGB, target: RGB) -> "ScoredReply":
        """The policy's answer to a pair before the decision: a box, whatever the target, and its scores."""
        if (self.options.workers or usable_cores()) == 1:
            return self._reply(reference, target, None)
        with ThreadPoolExecutor(1) as pool, one_blas_thread():
            return self._reply(reference, target, pool)

    def _reply(self, reference: RGB, target: RGB, pool: ThreadPoolExecutor | None) -> "ScoredReply":
        reply = self._run_policy(reference, target, pool)
        windows = self._windows(reference, reply)
        return _combined(reply, self._refine(reference, target, windows, pool, reply.aligned), windows)

    def _with_threshold(self, options: TinyOptions) -> TinyOptions:
        """The options, with the policy's own threshold if they have none."""
        threshold = self._deciding.threshold
        return replace(options, threshold=threshold) if options.threshold is None else options

    def _run_policy(
        self, reference: RGB, target: RGB, pool: ThreadPoolExecutor | None, *, align: bool = True
    ) -> "ScoredReply":
        """One pass: a box for any pair."""
        features = self._pair_features(resized(reference, self._rule), resized(target, self._rule), pool, align=align)
        output = self._policy.predict(features)
        x1, y1, x2, y2 = output.box
        frame = Frame(target.shape[1], target.shape[0])
        return ScoredReply(
            f"{OPENING}{x1},{y1}),({x2},{y2})</answer>",
            frame,
            logit(1 - output.normal),
            output.peak,
            bool(features[0, 0, -1]),
        )

    def _refine(
        self, reference: RGB, target: RGB, windows: list[Window], pool: ThreadPoolExecutor | None, aligned: bool
    ) -> "list[ScoredReply]":
        """Run the policy on each crop of both images, one crop in the thread pool.

        If the whole images could not be `aligned`, crops are not registered: that would take half of the time.
        """

        def refine(window: Window) -> ScoredReply:
            return self._run_policy(crop(reference, window), crop(target, window), None, align=aligned)

        if pool is None or len(windows) < 2:
            return [refine(window) for window in windows]
        with one_thread_each(2):
            others = pool.map(refine, windows[1:])
            return [refine(windows[0]), *others]

    def _windows(self, reference: RGB, reply: "ScoredReply") -> list[Window]:
        """The crops of the refinement passes, in shares of the target's sides, without those that would be too small."""
        width, height = reply.frame.width, reply.frame.height
        box = parse_answer(reply.text, _FORMAT, reply.frame).boxes[0] / np.array([width, height] * 2)
        least = min(*reference.shape[:2], width, height)
        return [
            window_around(box, share) for share in CROP_SHARES if self.options.closer and least * share >= 2 * PATCH
        ]

    def _probability(self, reply: "ScoredReply") -> float:
        """The probability that a target is abnormal."""
        d = self._deciding
        return sigmoid(d.bias + d.answer * reply.box_logit + d.peak * reply.peak)

    def decide(self, reply: "ScoredReply") -> Location:
        """The box of a reply if its probability reaches the threshold, without `model` and `seconds`."""
        probability = self._probability(reply)
        frame = reply.frame
        boxes = parse_answer(reply.text, _FORMAT, frame).boxes if probability >= self.options.threshold else no_boxes()
        answer = format_answer(
            grow(boxes, self.options.margin, frame.width, frame.height), _FORMAT, frame, reasoning=""
        )
        boxes = parse_answer(answer, _FORMAT, frame).boxes
        return Location(
            boxes=boxes,
            scores=np.full(len(boxes), probability),
            confidence=probability,
            reasoning=summary(boxes, frame, probability),
            answer=answer,
            threshold=self.options.threshold,
        )


def window_around(box: NDArray[np.float64], share: float) -> Window:
    """A window around a box, of a share of each side or twice the box if that is larger, all as shares: x1, y1, x2, y2."""
    sides = np.clip(2 * (box[2:] - box[:2]), share, 1.0)
    low = np.clip((box[:2] + box[2:]) / 2 - sides / 2, 0, 1 - sides)
    return float(low[0]), float(low[1]), float(low[0] + sides[0]), float(low[1] + sides[1])


def crop_pixels(size: tuple[int, int], window: Window) -> tuple[int, int, int, int]:
    """A window in pixels (x1, y1, x2, y2) of an image of (height, width)."""
    height, width = size
    x1, y1, x2, y2 = window
    return round(x1 * width), round(y1 * height), round(x2 * width), round(y2 * height)


def crop(image: RGB, window: Window) -> RGB:
    """The part of an image (H, W, 3) in a window."""
    x1, y1, x2, y2 = crop_pixels((image.shape[0], image.shape[1]), window)
    return np.ascontiguousarray(image[y1:y2, x1:x2])


@dataclass(frozen=True)
class ScoredReply(Reply):
    """A reply that names a box, with the logit of a box against the zero box, the highest logit of the map, and whether the
    reference could be aligned to the target."""

    box_logit: float
    peak: float
    aligned: bool


def _combined(first: ScoredReply, refined: list[ScoredReply], windows: list[Window]) -> ScoredReply:
    """The coordinate-wise median of the boxes; each score is the mean of the first pass's and the mean of the crops'."""
    if not refined:
        return first
    frame = first.frame
    boxes = [parse_answer(first.text, _FORMAT, frame).boxes[0]]
    for reply, window in zip(refined, windows, strict=True):
        corner = np.array(crop_pixels((frame.height, frame.width), window)[:2] * 2, dtype=np.float64)
        boxes.append(parse_answer(reply.text, _FORMAT, reply.frame).boxes[0] + corner)
    text = format_answer(np.median(boxes, axis=0)[None], _FORMAT, frame, reasoning="")
    box_logit, peak = (
        (getattr(first, name) + float(np.mean([getattr(reply, name) for reply in refined]))) / 2
        for name in ("box_logit", "peak")
    )
    return ScoredReply(text, frame, box_logit, peak, first.aligned)


def summary(boxes: Boxes, frame: Frame, probability: float) -> str:
    """Position, size and probability of the box in a sentence; `boxes` (N, 4) are pixels of the frame's target."""
    if len(boxes) == 0:
        return f"Nothing differs from the reference beyond what two normal parts may (abnormal with {probability:.0%})."
    x, y = centers(boxes)[0] / (frame.width, frame.height)
    share = float(area(boxes)[0]) / (frame.width * frame.height)
    return (
        f"The target differs most from the reference at {x:.0%} of its width and {y:.0%} of its height, over "
        f"{share:.1%} of the image (abnormal with {probability:.0%})."
    )
