"""`tiny`: the embedded policy as a locator, with a calibrated decision. See docs/tiny.md.

The policy runs without torch (network.py) and is made to name a box for every target; how likely it finds the zero box,
together with the highest peak of its map, says how sure it is that there is anything. So every pair has a box, a confidence
and a decision whose threshold can be set from normal pairs. It is asked three times, twice about closer looks around its first
box; the middle of the three boxes counts.
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
from differad.locators.calibration import COMPARING
from differad.locators.chat import Reply
from differad.locators.embedded import Embedded
from differad.locators.features.weights import BACKBONE
from differad.locators.odds import logistic, logit
from differad.locators.threads import one_blas_thread, one_thread_each, usable_cores
from differad.locators.tiny.calibration import DECIDING, Deciding, read_deciding
from differad.locators.tiny.evidence import PATCH
from differad.locators.tiny.network import OPENING, Policy
from differad.locators.tiny.pairs import PairEvidence, resized
from differad.options import check_option, option

# The policy that is shipped inside the package.
WEIGHTS = Path(__file__).parents[2] / "weights" / "tiny"
# Pictures are looked at again, about the first box, over these shares of their sides.
CLOSER = (0.4, 0.65)
_FORMAT = FORMATS[family_of(TINY_MODEL_TYPE)]

Window = tuple[float, float, float, float]


@dataclass(frozen=True)
class TinyOptions:
    """What a user may want other than the calibrated defaults."""

    threshold: float | None = option(
        None,
        f"a target counts as abnormal from this probability on; none: the policy's own, {DECIDING.threshold} of the shipped one",
    )
    closer: bool = option(
        True,
        "look twice more, at 0.4 and 0.65 of each side of both images, and take the middle of three boxes; off: a third "
        "of the time",
    )
    margin: float = option(
        COMPARING.margin,
        "boxes grow on each side by this share of the longer side of the target: labels are drawn with a margin",
    )
    workers: int = option(0, "threads; 0 takes one per usable core")

    def __post_init__(self) -> None:
        probable = self.threshold is None or 0 <= self.threshold <= 1
        check_option("threshold", self.threshold, probable, "a probability in [0, 1]")
        check_option("margin", self.margin, 0 <= self.margin <= 0.25, "a share in [0, 0.25]")
        check_option("workers", self.workers, self.workers >= 0, "0 or more")


class TinyLocator(Embedded):
    """The policy in `folder` (the shipped one unless told) with a decision of its own.

    `deciding` are the numbers of the decision; None: those in the folder's decision.json, else the shipped ones. Raises
    OptionError, InputError for a folder that is no embedded policy, naming what is missing.
    """

    name = "tiny"

    def __init__(
        self, options: TinyOptions | None = None, *, folder: str | Path = WEIGHTS, deciding: Deciding | None = None
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
        self._deciding = read_deciding(self._folder) if deciding is None else deciding
        self._evidence = PairEvidence()
        self.options = self._with_threshold(options or TinyOptions())

    def with_options(self, options: TinyOptions) -> Self:
        """This locator with other options, sharing what it has loaded and its cache."""
        return super().with_options(self._with_threshold(options))

    def compare(self, reference: RGB, target: RGB) -> Location:
        """Where the target is abnormal."""
        return self.decide(self.reply(reference, target))

    def reply(self, reference: RGB, target: RGB) -> "SureReply":
        """What the policy says of a pair before anything is decided: a box, whatever the target, and how sure it is of it."""
        if (self.options.workers or usable_cores()) == 1:
            return self._reply(reference, target, None)
        with ThreadPoolExecutor(1) as pool, one_blas_thread():
            return self._reply(reference, target, pool)

    def _reply(self, reference: RGB, target: RGB, pool: ThreadPoolExecutor | None) -> "SureReply":
        reply = self._ask(reference, target, pool)
        windows = self._windows(reference, reply)
        return _combined(reply, self._look_closely(reference, target, windows, pool, reply.laid), windows)

    def _with_threshold(self, options: TinyOptions) -> TinyOptions:
        """The options with the policy's own threshold where they have none."""
        own = self._deciding.threshold
        return replace(options, threshold=own) if options.threshold is None else options

    def _ask(self, reference: RGB, target: RGB, pool: ThreadPoolExecutor | None, *, lay: bool = True) -> "SureReply":
        """One look: a box for any pair."""
        found = self._evidence(resized(reference, self._rule), resized(target, self._rule), pool, lay=lay)
        look = self._policy.look(found)
        x1, y1, x2, y2 = look.box
        frame = Frame(target.shape[1], target.shape[0])
        return SureReply(
            f"{OPENING}{x1},{y1}),({x2},{y2})</answer>", frame, logit(1 - look.normal), look.peak, bool(found[0, 0, -1])
        )

    def _look_closely(
        self, reference: RGB, target: RGB, windows: list[Window], pool: ThreadPoolExecutor | None, laid: bool
    ) -> "list[SureReply]":
        """A look at each window of both pictures, one of them in the pool meanwhile.

        What could not be `laid` on as a whole is not tried to be in part: that would take half of the time.
        """

        def look(window: Window) -> SureReply:
            return self._ask(cut(reference, window), cut(target, window), None, lay=laid)

        if pool is None or len(windows) < 2:
            return [look(window) for window in windows]
        with one_thread_each(2):
            others = pool.map(look, windows[1:])
            return [look(windows[0]), *others]

    def _windows(self, reference: RGB, reply: "SureReply") -> list[Window]:
        """Where to look again, in shares of the target's sides; none too small to be looked at."""
        width, height = reply.frame.width, reply.frame.height
        box = parse_answer(reply.text, _FORMAT, reply.frame).boxes[0] / np.array([width, height] * 2)
        least = min(*reference.shape[:2], width, height)
        return [around(box, share) for share in CLOSER if self.options.closer and least * share >= 2 * PATCH]

    def _chance(self, reply: "SureReply") -> float:
        """How likely a target is abnormal."""
        d = self._deciding
        return logistic(d.bias + d.answer * reply.odds + d.peak * reply.peak)

    def decide(self, reply: "SureReply") -> Location:
        """The box of a reply where it is sure enough, without `model` and `seconds`."""
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
            threshold=self.options.threshold,
        )


def around(box: NDArray[np.float64], share: float) -> Window:
    """A window of a share of each side about a box, larger where twice the box is, all as shares: x1, y1, x2, y2."""
    sides = np.clip(2 * (box[2:] - box[:2]), share, 1.0)
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
    """A reply that names a box, with the logarithm of the odds of a box against the zero box, the map's highest logit, and
    whether the reference could be laid on the target."""

    odds: float
    peak: float
    laid: bool


def _combined(first: SureReply, closer: list[SureReply], windows: list[Window]) -> SureReply:
    """The middle of all boxes, side by side, and the mean of what the first look and the closer ones say of a defect."""
    if not closer:
        return first
    frame = first.frame
    boxes = [parse_answer(first.text, _FORMAT, frame).boxes[0]]
    for reply, window in zip(closer, windows, strict=True):
        corner = np.array(cut_pixels((frame.height, frame.width), window)[:2] * 2, dtype=np.float64)
        boxes.append(parse_answer(reply.text, _FORMAT, reply.frame).boxes[0] + corner)
    text = format_answer(np.median(boxes, axis=0)[None], _FORMAT, frame, reasoning="")
    odds, peak = (
        (getattr(first, name) + float(np.mean([getattr(reply, name) for reply in closer]))) / 2
        for name in ("odds", "peak")
    )
    return SureReply(text, frame, odds, peak, first.laid)


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
