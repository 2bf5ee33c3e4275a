"""Detect incomplete frames of a camera or link: lines of one colour, repeated lines, seams, hardly any contrast.

Sensor noise never gives two equal lines. Repeated lines in the target are a fault if no lines repeat in the reference, or if the
reference, aligned to the rest of the target, shows something else in their place. Knows nothing of any locator.
"""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.images import RGB
from differad.locators.registration import grey, register, warp

Lines = NDArray[np.uint8]
Mask = NDArray[np.bool_]
# Lines are compared by at most this many pixels.
_SAMPLES = 128
# JPEG repeats lines of plain areas within its blocks of 8: shorter runs are no fault. Neither is a band of less than a fiftieth
# of all lines: a locator ignores that much at a border.
_MIN_RUN, _MIN_SHARE = 8, 1 / 50
# An image without noise (a drawing) has straight parts: in it, runs below this share of all lines are no fault. It is one from
# the second share on, of pixels that equal the one in the line before.
_MIN_NOISELESS_BAND, _NOISELESS = 1 / 20, 1 / 4
# Compression that removes noise makes this many more pixels equal their neighbours, and so whole lines of plain areas.
_SMOOTHED = 1 / 4
# Lines beside a band that compression may mix with it.
_BLOCK = 16
# Share of lines that may be equal in an image with noise: clipped ones.
_MAX_LOST = 1 / 100
# Largest share of repeated lines outside the band: compression that removes noise repeats lines everywhere.
_MAX_REPEATED = 1 / 10
# A repeated line is as rough as the smoothest tenth of the others, unless compression has smoothed it.
_SMOOTHEST = 1 / 10
# Illumination is a factor: a fifth more clips values above 204, and a background is then of one colour without any fault. Values
# above read noise never become black.
_CLIPPED, _NEAR = 204, 3
# A colour changes by at most 64 grey levels with illumination. Areas of a colour are sought at no more than 256 pixels a side.
_NEAR_LIGHT, _SMALL = 64, 256
# If only illumination differs, the contrast of a band is about that of the rest; the contrast of a margin is noise.
_STRUCTURE = 1 / 8
# Lines beside an edge of the band that errors of the alignment may reach.
_MARGIN_LINES = 4
# With an eighth of the contrast, a defect of 20 grey levels, the faintest that anybody labels, is no more than read noise.
_MIN_CONTRAST = 1 / 8
# After the blur of a lens the two steps beside an edge's largest step sum to 3/4 of it; beside a seam they are below a quarter.
_SEAM, _BESIDE = 1.5, 0.25
# A step is new if the aligned reference has less than half of it (illumination changes by a fifth at most), and if 90 % of the
# target's other steps have less than half of it too (threads of cloth are no seams).
_NEW, _USUAL = 2.0, 0.9
# Smallest step in grey levels, and the share of a line on which it may be missing: a defect is shorter than a seam.
_STEP, _ALONG = 8.0, 0.25
_SIDES = (("rows", "at the top", "at the bottom"), ("columns", "at the left", "at the right"))


def frame_fault(reference: RGB, target: RGB) -> str | None:
    """Why the target (H, W, 3) is an incomplete frame of the reference (H', W', 3), as a predicate; None if it is complete."""
    if _spread(target) < _MIN_CONTRAST * _spread(reference):
        return "has hardly any contrast left (another exposure?)"
    if min(*reference.shape[:2], *target.shape[:2]) < 2 * _MIN_RUN:
        return None  # too small for a band to be told from its content
    pairs = [(_Axis(reference, axis), _Axis(target, axis)) for axis in (0, 1)]
    noisy = all(reference_axis.lost.mean() <= _MAX_LOST for reference_axis, _ in pairs)
    for reference_axis, target_axis in pairs:
        band = target_axis.band()
        if target_axis.lost.sum() - reference_axis.lost.mean() * len(target_axis.lost) >= target_axis.min_lines:
            impossible = noisy and _is_impossible_view(reference_axis, target_axis)
            if impossible or (band is not None and _shows_more(reference, target, target_axis.axis, band)):
                return target_axis.fault_text(band)
    for reference_axis, target_axis in pairs:
        if (seam := _seam(reference_axis, target_axis)) is not None:
            name = _SIDES[target_axis.axis][0][:-1]
            return f"has a seam at {name} {seam} that the reference does not have (shifted lines, or of two frames?)"
    return None


def beside_band(reference: RGB, target: RGB) -> tuple[RGB, RGB, tuple[int, int]] | None:
    """Both images without the widest band of lost lines of the target, and the offset (x, y) of the rest; None without a band."""
    axes = [axis for axis in (_Axis(target, 0), _Axis(target, 1)) if axis.band() is not None]
    if not axes:
        return None
    start, stop = max((axis.band() or (0, 0) for axis in axes), key=lambda band: band[1] - band[0])
    widest = next(axis for axis in axes if axis.band() == (start, stop))
    count = len(widest.lines)
    rest = _LineRange(0, start, count) if start >= count - stop else _LineRange(stop, count, count)
    if rest.stop - rest.start < 2 * _MIN_RUN:
        return None
    reference_part, (target_part, first) = rest.of(reference, widest.axis)[0], rest.of(target, widest.axis)
    return (
        np.ascontiguousarray(reference_part),
        np.ascontiguousarray(target_part),
        (0, first) if widest.axis == 0 else (first, 0),
    )


class _Axis:
    """The lines of an image (H, W, 3) along one axis: its rows (0) or its columns (1)."""

    def __init__(self, image: RGB, axis: int) -> None:
        self.image, self.axis = image, axis
        across = max(1, image.shape[1 - axis] // _SAMPLES)
        sampled = image[:, ::across] if axis == 0 else image[::across].transpose(1, 0, 2)
        self.lines: Lines = np.ascontiguousarray(sampled)
        self.min_lines = max(_MIN_RUN, _MIN_SHARE * len(self.lines))

    @cached_property
    def repeated(self) -> Mask:
        """Mask of the lines (N,) that equal an earlier one."""
        flat = self.lines.reshape(len(self.lines), -1)
        words = np.pad(flat, ((0, 0), (0, -flat.shape[1] % 8))).view(np.uint64)
        weights = np.random.default_rng(0).integers(2**63, size=words.shape[1], dtype=np.uint64) * 2 + 1
        _, first, first_of_line = np.unique((words * weights).sum(axis=1), return_index=True, return_inverse=True)
        return np.asarray(first[first_of_line] < np.arange(len(flat)))

    @cached_property
    def constant(self) -> Mask:
        """Mask of the lines (N,) of one colour."""
        first, samples = self.lines[:, 0], self.lines[:, :: max(1, self.lines.shape[1] // 4)]
        constant = (samples == first[:, None]).all(axis=(1, 2))
        constant[constant] = (self.lines[constant] == first[constant, None]).all(axis=(1, 2))
        return np.asarray(constant)

    @cached_property
    def lost(self) -> Mask:
        """Mask of the lines (N,) of one colour or in a long run of repeated ones."""
        lost = self.constant.copy()
        for start, stop in _runs(self.repeated):
            lost[start:stop] |= stop - start >= _MIN_RUN
        return lost

    @cached_property
    def smooth(self) -> float:
        """Share of pixels outside lost lines that equal the one in the line before: near 0 with a sensor's noise."""
        both = ~(self.lost[1:] | self.lost[:-1])
        same = (self.lines[1:][both] == self.lines[:-1][both]).all(axis=2)
        return float(same.mean()) if same.size else 0.0

    @cached_property
    def levels(self) -> NDArray[np.float32]:
        """Grey levels (N, S)."""
        return grey(self.lines).astype(np.float32)

    @cached_property
    def steps(self) -> NDArray[np.float64]:
        """Mean change (N - 1,) in grey levels from each line to the next."""
        return np.asarray(np.abs(self.levels[1:] - self.levels[:-1]).mean(axis=1), dtype=np.float64)

    def band(self) -> tuple[int, int] | None:
        """Start and end of the longest run of lost lines, where it is long enough."""
        longest = max(_runs(self.lost), key=lambda run: run[1] - run[0], default=(0, 0))
        return longest if longest[1] - longest[0] >= self.min_lines else None

    @cached_property
    def sharp_steps(self) -> NDArray[np.float64]:
        """Each step (N - 1,) above the median that is sharper than a lens can show; 0 for the others."""
        padded = np.pad(np.maximum(self.steps - np.median(self.steps), 0), 1, mode="edge")
        beside = padded[:-2] + padded[2:]
        return np.asarray(np.where(beside <= _BESIDE * padded[1:-1], padded[1:-1], 0.0))

    def fault_text(self, band: tuple[int, int] | None) -> str:
        """What is wrong with the lost lines, as a predicate of "the target"."""
        name, first, last = _SIDES[self.axis]
        if band is None:
            return f"lost {int(self.lost.sum())} of its {len(self.lines)} {name} (a frame that broke off?)"
        where = first if band[0] <= 1 else last if band[1] == len(self.lines) else f"from {band[0]} on"
        what = "of one colour" if self.constant[band[0] : band[1]].all() else "that repeat others"
        return f"has {band[1] - band[0]} {name} {where} {what}, which the reference does not have (a frame that broke off?)"


def _runs(mask: Mask) -> list[tuple[int, int]]:
    """Start and end of each run of True in (N,)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _spread(image: RGB) -> float:
    """Standard deviation in grey levels of up to about 512 x 512 pixels of an image."""
    rows, columns = (max(1, side // 256) for side in image.shape[:2])
    return float(cv2.meanStdDev(grey(np.ascontiguousarray(image[::rows, ::columns])))[1].item())


def _is_impossible_view(reference: _Axis, target: _Axis) -> bool:
    """Whether no view of a part, with noise in every line, can have these lost lines."""
    intact = ~target.lost
    if reference.smooth <= _NOISELESS and target.smooth > reference.smooth + _SMOOTHED:
        return False
    if reference.smooth > _NOISELESS and max(
        (stop - start for start, stop in _runs(target.lost)), default=0
    ) < _MIN_NOISELESS_BAND * len(intact):
        return False
    if not intact.any() or target.repeated[intact].mean() > _MAX_REPEATED:
        return False
    constant, repeated_only = target.constant, target.lost & ~target.constant
    if (
        repeated_only.sum() >= target.min_lines
        and _roughness(target.lines[repeated_only]) >= _roughness(target.lines[intact]) / 2
    ):
        return True
    if constant.sum() < target.min_lines:
        return False
    color = np.median(target.lines[constant], axis=(0, 1))
    longest = max(stop - start for start, stop in _runs(constant)) / len(constant)
    plain, alike = (_widest(one, target.axis) for one in _areas(reference.image, color))
    if plain >= longest / 3:
        return False
    bright = float((reference.lines.min(axis=2) >= _CLIPPED).mean())
    clipped = color.min() >= _CLIPPED and bright >= constant.mean() / 2
    return (_ends_abruptly(target) and not clipped) or alike < longest / 3


def _areas(image: RGB, color: NDArray[np.float64]) -> tuple[Mask, Mask]:
    """Masks of a shrunk image: exactly of one colour with its neighbours, and near a colour under any illumination."""
    share = min(1.0, _SMALL / max(image.shape[:2]))
    size = max(1, round(image.shape[1] * share)), max(1, round(image.shape[0] * share))
    samples = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_NEAREST))
    mean = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    equal = ((samples[1:, 1:] == samples[:-1, 1:]) & (samples[1:, 1:] == samples[1:, :-1])).all(axis=2)
    same = np.pad(equal, ((1, 0), (1, 0)), constant_values=True)
    near = np.asarray((np.abs(mean - color) <= _NEAR_LIGHT).all(axis=2))
    return same & near, near


def _widest(area: Mask, axis: int) -> float:
    """Radius of the widest disc in an area (H, W), as a share of its side along an axis.

    If a view shows a band, in whatever pose, then the part has a disc as wide as the band.
    """
    if area.all():
        return 1.0
    radius = float(cv2.distanceTransform(area.astype(np.uint8), cv2.DIST_L2, 5).max())
    return radius / int(area.shape[axis])


def _roughness(lines: Lines) -> float:
    """Mean change in grey levels from pixel to pixel along lines (N, S, 3), at the 10 % quantile of the lines."""
    changes = np.abs(np.diff(lines.astype(np.int16), axis=1)).mean(axis=(1, 2))
    return float(np.quantile(changes, _SMOOTHEST))


def _ends_abruptly(target: _Axis) -> bool:
    """Whether lines of one colour end abruptly; a background of one colour continues beside the object in front of it."""
    count = len(target.lines)
    neighbours = [
        (start, line) for start, stop in _runs(target.constant) for line in (start - 1 - _BLOCK, stop + _BLOCK)
    ]
    beside = [
        (np.abs(target.lines[line] - target.lines[start, 0].astype(np.int16)) <= _NEAR).all(axis=1).mean()
        for start, line in neighbours
        if 0 <= line < count and not target.constant[line]
    ]
    return bool(beside) and float(np.median(beside)) < 0.5


@dataclass(frozen=True)
class _LineRange:
    """Lines `start` to `stop` of `count`, as shares of the lines of an image."""

    start: int
    stop: int
    count: int

    def of(self, image: NDArray[np.uint8], axis: int) -> tuple[NDArray[np.uint8], int]:
        """The part of an image (H, W) and its first line."""
        length = image.shape[axis]
        start, stop = (round(line * length / self.count) for line in (self.start, self.stop))
        return (image[start:stop] if axis == 0 else image[:, start:stop]), start


def _seam(reference: _Axis, target: _Axis) -> int | None:
    """The line of the target that does not continue the one before although the aligned reference does; None without one."""
    sharp = target.sharp_steps
    at = int(sharp.argmax()) if len(sharp) else 0
    count = len(target.lines)
    if not 2 * _MARGIN_LINES <= at + 1 <= count - 2 * _MARGIN_LINES:
        return None
    usual = float(np.quantile(target.steps, _USUAL))
    if sharp[at] < max(_STEP, _SEAM * reference.sharp_steps.max(initial=0.0), _NEW * usual):
        return None
    rest = _LineRange(0, at + 1, count) if at + 1 >= count / 2 else _LineRange(at + 1, count, count)
    aligned = _aligned(reference.image, target.image, target.axis, rest)
    if aligned is None:
        return None
    near = _LineRange(at + 1 - 2 * _MARGIN_LINES, at + 1 + 2 * _MARGIN_LINES, count)
    aligned_grey, covered, target_grey = (near.of(one, target.axis)[0] for one in (*aligned, grey(target.image)))
    covered_columns: Mask = np.asarray(covered.all(axis=target.axis))
    if covered_columns.mean() < 0.5:
        return None
    reference_steps, target_steps = (
        _wide_steps(one if target.axis == 0 else one.T, covered_columns) for one in (aligned_grey, target_grey)
    )
    return at + 1 if target_steps[_MARGIN_LINES] >= max(_STEP, _NEW * reference_steps.max()) else None


def _wide_steps(lines: NDArray[np.uint8], covered_columns: Mask) -> NDArray[np.float64]:
    """Steps (2 R + 1,) of lines (4 R, W) between the means of R lines and of the R after them, R = _MARGIN_LINES.

    The 25 % quantile along the line: no blur, no small shift and no defect on less of the line changes it much.
    """
    total = np.cumsum(np.pad(lines[:, covered_columns], ((1, 0), (0, 0))).astype(np.float64), axis=0)
    means = (total[_MARGIN_LINES:] - total[:-_MARGIN_LINES]) / _MARGIN_LINES
    return np.asarray(np.quantile(np.abs(means[_MARGIN_LINES:] - means[:-_MARGIN_LINES]), _ALONG, axis=1))


def _shows_more(reference: RGB, target: RGB, axis: int, band: tuple[int, int]) -> bool:
    """Whether the reference, aligned to the larger part of the target beside the band, has structure in the band."""
    count = target.shape[axis]
    rest = _LineRange(0, band[0], count) if band[0] >= count - band[1] else _LineRange(band[1], count, count)
    aligned = _aligned(reference, target, axis, rest)
    if aligned is None:
        return False
    margin = min(_MARGIN_LINES, (band[1] - band[0]) // 4)
    inner = _LineRange(band[0] + margin, band[1] - margin, count)
    (hidden, within), (visible, beside) = ([part.of(one, axis)[0] for one in aligned] for part in (inner, rest))
    if within.mean() < 0.5:
        return False
    is_constant = bool((inner.of(grey(target), axis)[0].std(axis=1 - axis) == 0).all())
    contrast = _contrast(visible, beside > 0, axis, is_constant)
    return contrast > 0 and _contrast(hidden, within > 0, axis, is_constant) >= _STRUCTURE * contrast


def _aligned(
    reference: RGB, target: RGB, axis: int, part: "_LineRange"
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
    """The reference in grey levels (H, W), aligned by that part of both images, and the mask of what it covers."""
    reference_grey, target_grey = grey(reference), grey(target)
    (reference_part, from_line), (target_part, to_line) = part.of(reference_grey, axis), part.of(target_grey, axis)
    if min(*reference_part.shape, *target_part.shape) < 2 * _MIN_RUN:
        return None
    registration = register(np.ascontiguousarray(reference_part), np.ascontiguousarray(target_part))
    if not registration.accepted:
        return None
    aligned_grey, covered = warp(
        reference_grey,
        _translation(axis, to_line) @ registration.matrix @ _translation(axis, -from_line),
        target_grey.shape,
    )
    return aligned_grey, covered.astype(np.uint8)


def _translation(axis: int, by: int) -> NDArray[np.float64]:
    matrix = np.eye(3)
    matrix[1 - axis, 2] = by
    return matrix


def _contrast(image: NDArray[np.uint8], covered: Mask, axis: int, whole: bool) -> float:
    """Standard deviation of the covered pixels of (H, W): of all of them, or along lines only."""
    if whole:
        return float(image[covered].std())
    values = np.ma.masked_array(image.astype(np.float32), ~covered)
    return float(np.sqrt(np.ma.var(values, axis=axis).mean()))
