"""Frames that a camera or a link did not deliver whole: lines of one colour, repeated lines, seams, hardly any contrast.

A sensor's noise never gives two equal lines. Lines that repeat in the target are a fault where nothing repeats in the reference,
or where the reference, aligned to the rest of the target, shows something else there. Knows nothing of any locator.
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
# Equal lines are told by at most so many pixels of each.
_SAMPLES = 128
# JPEG repeats lines of plain areas within its blocks of 8: fewer in a row say nothing, and neither does a band of fewer than a
# fiftieth of all lines, which a locator leaves out at a border anyhow.
_LEAST_RUN, _LEAST_SHARE = 8, 1 / 50
# A drawing without noise has straight parts: there fewer than this share of all lines in a row say nothing either.
_DRAWN, _DRAWING = 1 / 20, 1 / 4
# Compression that wipes out noise makes so many more pixels equal their neighbours, and whole lines of plain areas.
_WIPED = 1 / 4
# Lines beside a band that compression may mix with it.
_BLOCK = 16
# Lines of an image with noise that may be equal all the same: clipped ones.
_NOISY = 1 / 100
# Outside the band the target must have noise too: compression that wipes it out repeats lines everywhere.
_LIVE = 1 / 10
# A repeated line is as rough as the smoothest others, this share of them, or compression has smoothed it.
_SMOOTHEST = 1 / 10
# Light is a factor: a fifth more of it clips what was above this, a background that is then one colour without any fault. What is
# above read noise is never brought to black.
_CLIPPED, _NEAR = 204, 3
# A colour in another light is at most so many grey levels off; areas of a colour are sought in images of at most so many pixels.
_NEAR_LIGHT, _SMALL = 64, 256
# Of a view that differs by light alone, a band shows about the contrast that the rest shows; a margin shows noise.
_STRUCTURE = 1 / 8
# Lines off an edge of the band that the pose and a bend may reach.
_REACH = 4
# Of a defect of 20 grey levels, the least that anybody labels, an eighth of the contrast leaves read noise.
_LEAST_CONTRAST = 1 / 8
# A lens with the blur that images are compared at leaves 3/4 of an edge's highest step to the two steps beside it.
_SEAM, _BESIDE = 1.5, 0.25
# A step is new where the aligned reference has less than half of it there (light is within a fifth), and all but a tenth of the
# target's other steps too (threads of cloth are no seams).
_NEW, _USUAL = 2.0, 0.9
# Grey levels of a step that count as one, and the share of a line on which it may be missing: a defect ends sooner than a seam.
_STEP, _ALONG = 8.0, 0.25
_SIDES = (("rows", "at the top", "at the bottom"), ("columns", "at the left", "at the right"))


def frame_fault(reference: RGB, target: RGB) -> str | None:
    """Why the target (H, W, 3) is no whole frame of what the reference (H', W', 3) shows, after "The target"; None if it is."""
    if _spread(target) < _LEAST_CONTRAST * _spread(reference):
        return "has hardly any contrast left (another exposure?)"
    if min(*reference.shape[:2], *target.shape[:2]) < 2 * _LEAST_RUN:
        return None  # too small to tell a band from its content
    pairs = [(_Axis(reference, axis), _Axis(target, axis)) for axis in (0, 1)]
    noisy = all(own.lost.mean() <= _NOISY for own, _ in pairs)
    for own, other in pairs:
        band = other.band()
        if other.lost.sum() - own.lost.mean() * len(other.lost) >= other.least:
            impossible = noisy and _cannot_be_seen(own, other)
            if impossible or (band is not None and _shows_more(reference, target, other.axis, band)):
                return other.described(band)
    for own, other in pairs:
        if (seam := _seam(own, other)) is not None:
            name = _SIDES[other.axis][0][:-1]
            return f"has a seam at {name} {seam} that the reference does not have (shifted lines, or of two frames?)"
    return None


def beside_band(reference: RGB, target: RGB) -> tuple[RGB, RGB, tuple[int, int]] | None:
    """Both images without the widest band of lost lines of the target, and where the rest begins (x, y); None without one."""
    axes = [axis for axis in (_Axis(target, 0), _Axis(target, 1)) if axis.band() is not None]
    if not axes:
        return None
    start, stop = max((axis.band() or (0, 0) for axis in axes), key=lambda band: band[1] - band[0])
    widest = next(axis for axis in axes if axis.band() == (start, stop))
    count = len(widest.lines)
    rest = _Part(0, start, count) if start >= count - stop else _Part(stop, count, count)
    if rest.stop - rest.start < 2 * _LEAST_RUN:
        return None
    theirs, (ours, first) = rest.of(reference, widest.axis)[0], rest.of(target, widest.axis)
    return np.ascontiguousarray(theirs), np.ascontiguousarray(ours), (0, first) if widest.axis == 0 else (first, 0)


class _Axis:
    """The lines of an image (H, W, 3) along one axis: its rows (0) or its columns (1)."""

    def __init__(self, image: RGB, axis: int) -> None:
        self.image, self.axis = image, axis
        across = max(1, image.shape[1 - axis] // _SAMPLES)
        sampled = image[:, ::across] if axis == 0 else image[::across].transpose(1, 0, 2)
        self.lines: Lines = np.ascontiguousarray(sampled)
        self.least = max(_LEAST_RUN, _LEAST_SHARE * len(self.lines))

    @cached_property
    def repeated(self) -> Mask:
        """Which lines (N,) equal an earlier one."""
        flat = self.lines.reshape(len(self.lines), -1)
        words = np.pad(flat, ((0, 0), (0, -flat.shape[1] % 8))).view(np.uint64)
        weights = np.random.default_rng(0).integers(2**63, size=words.shape[1], dtype=np.uint64) * 2 + 1
        _, first, place = np.unique((words * weights).sum(axis=1), return_index=True, return_inverse=True)
        return np.asarray(first[place] < np.arange(len(flat)))

    @cached_property
    def constant(self) -> Mask:
        """Which lines (N,) have one colour."""
        first, few = self.lines[:, 0], self.lines[:, :: max(1, self.lines.shape[1] // 4)]
        constant = (few == first[:, None]).all(axis=(1, 2))
        constant[constant] = (self.lines[constant] == first[constant, None]).all(axis=(1, 2))
        return np.asarray(constant)

    @cached_property
    def lost(self) -> Mask:
        """Which lines (N,) have one colour or stand in a long run of repeated ones."""
        lost = self.constant.copy()
        for start, stop in _runs(self.repeated):
            lost[start:stop] |= stop - start >= _LEAST_RUN
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
        return longest if longest[1] - longest[0] >= self.least else None

    @cached_property
    def sharp_steps(self) -> NDArray[np.float64]:
        """What each step (N - 1,) has over the two beside it, where it is sharper than a lens draws one; else 0."""
        padded = np.pad(np.maximum(self.steps - np.median(self.steps), 0), 1, mode="edge")
        beside = padded[:-2] + padded[2:]
        return np.asarray(np.where(beside <= _BESIDE * padded[1:-1], padded[1:-1], 0.0))

    def described(self, band: tuple[int, int] | None) -> str:
        """What is wrong with the lost lines, after "the target"."""
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


def _cannot_be_seen(reference: _Axis, target: _Axis) -> bool:
    """Whether no view of a part whose every line has noise can have these lost lines."""
    live = ~target.lost
    if reference.smooth <= _DRAWING and target.smooth > reference.smooth + _WIPED:
        return False
    if reference.smooth > _DRAWING and max(
        (stop - start for start, stop in _runs(target.lost)), default=0
    ) < _DRAWN * len(live):
        return False
    if not live.any() or target.repeated[live].mean() > _LIVE:
        return False
    constant, stuck = target.constant, target.lost & ~target.constant
    if stuck.sum() >= target.least and _roughness(target.lines[stuck]) >= _roughness(target.lines[live]) / 2:
        return True
    if constant.sum() < target.least:
        return False
    color = np.median(target.lines[constant], axis=(0, 1))
    longest = max(stop - start for start, stop in _runs(constant)) / len(constant)
    plain, alike = (_widest(one, target.axis) for one in _areas(reference.image, color))
    if plain >= longest / 3:
        return False
    bright = float((reference.lines.min(axis=2) >= _CLIPPED).mean())
    clipped = color.min() >= _CLIPPED and bright >= constant.mean() / 2
    return (_cut_off(target) and not clipped) or alike < longest / 3


def _areas(image: RGB, color: NDArray[np.float64]) -> tuple[Mask, Mask]:
    """Where an image, shrunk, is of one colour to the bit, and where it is about as bright as a colour in any light."""
    share = min(1.0, _SMALL / max(image.shape[:2]))
    size = max(1, round(image.shape[1] * share)), max(1, round(image.shape[0] * share))
    few = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_NEAREST))
    mean = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    equal = ((few[1:, 1:] == few[:-1, 1:]) & (few[1:, 1:] == few[1:, :-1])).all(axis=2)
    same = np.pad(equal, ((1, 0), (1, 0)), constant_values=True)
    near = np.asarray((np.abs(mean - color) <= _NEAR_LIGHT).all(axis=2))
    return same & near, near


def _widest(area: Mask, axis: int) -> float:
    """Radius of the widest disc in an area (H, W), as a share of its side along an axis.

    A view that shows a band, in whatever pose, is of a part that has a disc as wide as the band.
    """
    if area.all():
        return 1.0
    radius = float(cv2.distanceTransform(area.astype(np.uint8), cv2.DIST_L2, 5).max())
    return radius / int(area.shape[axis])


def _roughness(lines: Lines) -> float:
    """Mean change in grey levels from pixel to pixel along lines (N, S, 3), of one that is among the smoothest."""
    changes = np.abs(np.diff(lines.astype(np.int16), axis=1)).mean(axis=(1, 2))
    return float(np.quantile(changes, _SMOOTHEST))


def _cut_off(target: _Axis) -> bool:
    """Whether lines of one colour end at once; a background of one colour goes on beside what stands before it."""
    count = len(target.lines)
    places = [(start, place) for start, stop in _runs(target.constant) for place in (start - 1 - _BLOCK, stop + _BLOCK)]
    beside = [
        (np.abs(target.lines[place] - target.lines[start, 0].astype(np.int16)) <= _NEAR).all(axis=1).mean()
        for start, place in places
        if 0 <= place < count and not target.constant[place]
    ]
    return bool(beside) and float(np.median(beside)) < 0.5


@dataclass(frozen=True)
class _Part:
    """Lines from `start` to `stop` of `count`, as a share of any image's."""

    start: int
    stop: int
    count: int

    def of(self, image: NDArray[np.uint8], axis: int) -> tuple[NDArray[np.uint8], int]:
        """The part of an image (H, W) and its first line."""
        length = image.shape[axis]
        start, stop = (round(place * length / self.count) for place in (self.start, self.stop))
        return (image[start:stop] if axis == 0 else image[:, start:stop]), start


def _seam(reference: _Axis, target: _Axis) -> int | None:
    """The line of the target that does not continue the one before although the reference, aligned to it, goes on there."""
    sharp = target.sharp_steps
    at = int(sharp.argmax()) if len(sharp) else 0
    count = len(target.lines)
    if not 2 * _REACH <= at + 1 <= count - 2 * _REACH:
        return None
    usual = float(np.quantile(target.steps, _USUAL))
    if sharp[at] < max(_STEP, _SEAM * reference.sharp_steps.max(initial=0.0), _NEW * usual):
        return None
    rest = _Part(0, at + 1, count) if at + 1 >= count / 2 else _Part(at + 1, count, count)
    aligned = _aligned(reference.image, target.image, target.axis, rest)
    if aligned is None:
        return None
    near = _Part(at + 1 - 2 * _REACH, at + 1 + 2 * _REACH, count)
    seen, covered, here = (near.of(one, target.axis)[0] for one in (*aligned, grey(target.image)))
    inside: Mask = np.asarray(covered.all(axis=target.axis))
    if inside.mean() < 0.5:
        return None
    theirs, ours = (_wide_steps(one if target.axis == 0 else one.T, inside) for one in (seen, here))
    return at + 1 if ours[_REACH] >= max(_STEP, _NEW * theirs.max()) else None


def _wide_steps(lines: NDArray[np.uint8], inside: Mask) -> NDArray[np.float64]:
    """Change (2 REACH + 1,), on all but a quarter of (4 REACH, W), from the mean of some lines to that of as many after them.

    No blur and no small shift moves it, and no defect that covers less of the line.
    """
    total = np.cumsum(np.pad(lines[:, inside], ((1, 0), (0, 0))).astype(np.float64), axis=0)
    means = (total[_REACH:] - total[:-_REACH]) / _REACH
    return np.asarray(np.quantile(np.abs(means[_REACH:] - means[:-_REACH]), _ALONG, axis=1))


def _shows_more(reference: RGB, target: RGB, axis: int, band: tuple[int, int]) -> bool:
    """Whether the reference, aligned to the larger part of the target beside the band, shows something in the band."""
    count = target.shape[axis]
    rest = _Part(0, band[0], count) if band[0] >= count - band[1] else _Part(band[1], count, count)
    aligned = _aligned(reference, target, axis, rest)
    if aligned is None:
        return False
    margin = min(_REACH, (band[1] - band[0]) // 4)
    inner = _Part(band[0] + margin, band[1] - margin, count)
    (hidden, within), (other, beside) = ([part.of(one, axis)[0] for one in aligned] for part in (inner, rest))
    if within.mean() < 0.5:
        return False
    is_constant = bool((inner.of(grey(target), axis)[0].std(axis=1 - axis) == 0).all())
    contrast = _contrast(other, beside > 0, axis, is_constant)
    return contrast > 0 and _contrast(hidden, within > 0, axis, is_constant) >= _STRUCTURE * contrast


def _aligned(
    reference: RGB, target: RGB, axis: int, part: "_Part"
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
    """The reference in grey levels (H, W) as that part of the target registers with it, and where it covers the target."""
    there, here = grey(reference), grey(target)
    (theirs, from_line), (ours, to_line) = part.of(there, axis), part.of(here, axis)
    if min(*theirs.shape, *ours.shape) < 2 * _LEAST_RUN:
        return None
    found = register(np.ascontiguousarray(theirs), np.ascontiguousarray(ours))
    if not found.accepted:
        return None
    seen, covered = warp(there, _moved(axis, to_line) @ found.matrix @ _moved(axis, -from_line), here.shape)
    return seen, covered.astype(np.uint8)


def _moved(axis: int, by: int) -> NDArray[np.float64]:
    matrix = np.eye(3)
    matrix[1 - axis, 2] = by
    return matrix


def _contrast(image: NDArray[np.uint8], covered: Mask, axis: int, whole: bool) -> float:
    """Standard deviation of (H, W) where it is covered: of the whole, or from line to line alone."""
    if whole:
        return float(image[covered].std())
    values = np.ma.masked_array(image.astype(np.float32), ~covered)
    return float(np.sqrt(np.ma.var(values, axis=axis).mean()))
