"""Training pairs by number: the same options and index give the same pair, in any process with the same OpenCV and NumPy.

A good part (procedural, or a picture from a folder) is seen twice under nuisance; in an anomalous pair the second time
with one defect, whose mask is where the picture changed. Every defect is at least visible: one that nobody could see would
be a wrong label. Natural pairs add an object to a photograph or take it away, for the cold start of the method.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from differad.core import Pair
from differad.data.manifest import check_readable, read_pairs
from differad.data.masks import read_mask
from differad.errors import InputError, OptionError
from differad.images import read_image
from differad.options import check_option, option
from differad.synthesis.camera import Nuisance, View, draw_view
from differad.synthesis.fills import FILLS, Bool, Foreign
from differad.synthesis.normals import NORMALS, Draw, cut_object, list_pictures, photograph
from differad.synthesis.pairs import MARGIN_SHARE, SyntheticPair, make_pair, photograph_pair
from differad.synthesis.regions import REGIONS, Stamp
from differad.synthesis.siblings import SURFACES, draw_siblings
from differad.synthesis.textures import Picture
from differad.synthesis.unaligned import draw_unaligned

# Regions that suit a fill; a fill that is not listed takes any compact one.
_COMPACT = ("blob", "polygon", "rectangle", "perlin")
_SUITED = {
    "scratched": ("line",),
    "pierced": ("dots", "blob"),
    "stained": ("perlin", "blob"),
    "shifted": (*_COMPACT, "line"),
}
# Random surfaces look the same where their own material was only rearranged: nobody could say that it was.
_UNSEEN = {
    "grain": ("duplicated", "turned", "shoved", "warped"),
    "brushed": ("duplicated", "shoved"),
    "woven": ("duplicated",),
}
_LAST_RESORT = "stark"
BOARD, NATURAL_KINDS = "etched", ("added", "removed")
KINDS = (*FILLS, BOARD)


@dataclass(frozen=True)
class Grade:
    """How hard a defect is to see: radius as a share of the picture's side, and how much of its change is laid on."""

    radius: tuple[float, float]
    strength: tuple[float, float]


GRADES = {
    "easy": Grade((0.12, 0.28), (0.9, 1.0)),
    "medium": Grade((0.06, 0.14), (0.65, 1.0)),
    "hard": Grade((0.025, 0.07), (0.4, 0.8)),
}
# A change must reach this many grey levels on average, and this many times the sensor's noise.
LEAST_CHANGE, LEAST_OVER_NOISE = 25.0, 3.0
# Pixels that must change in a picture of 224 x 224; with the area for other sizes.
LEAST_SHARE = 12 / 224**2
_ATTEMPTS = 8
# What a sum of shares such as 0.1 + 0.2 + 0.7 may be above 1.
_ROUNDING = 1e-9
# Pixels of its surroundings that a defect is cut out with.
_RIM = 3


@dataclass(frozen=True)
class DrawOptions:
    """What is drawn; a pair depends on these, its index, and the versions of OpenCV and NumPy (docs/versions.md)."""

    seed: int = option(0, "another seed, other pairs")
    size: int = option(224, "side of the square pictures in pixels")
    normal_share: float = option(0.5, "share of pairs without a defect")
    kinds: tuple[str, ...] = option((), "defect kinds to draw; none: all")
    categories: tuple[str, ...] = option((), "procedural parts to draw; none: all")
    grades: tuple[str, ...] = option((), "easy, medium, hard, in any case; none: all")
    nuisance: float = option(1.0, "strength of what is no defect: 0 none, 1 usual, 2 double")
    normals: Path | None = option(None, "folder of good pictures, in place of procedural parts")
    photographs: Path | None = option(None, "folder of photographs for natural pairs")
    natural_share: float = option(0.0, "share of pairs that are natural: an object added to a photograph or taken away")
    defects: Path | None = option(None, "pairs.jsonl with masks, whose defects are transplanted")
    siblings: float = option(
        0.0, "share of pairs whose reference is another part of the kind, not the same one seen twice"
    )
    unaligned: float = option(
        0.0,
        "share of pairs of two parts that may differ in all that good parts do: light, contrast, scale, marks, size",
    )
    aspect: float = option(1.0, "pictures are cut to sides that differ by up to this factor")

    def __post_init__(self) -> None:
        check_option("seed", self.seed, self.seed >= 0, "0 or more")
        check_option("size", self.size, 32 <= self.size <= 4096, "32 to 4096 pixels")
        for name in ("normal_share", "natural_share", "siblings", "unaligned"):
            check_option(name, getattr(self, name), 0 <= getattr(self, name) <= 1, "a share in [0, 1]")
        check_option("nuisance", self.nuisance, 0 <= self.nuisance <= 4, "0 to 4")
        check_option("aspect", self.aspect, 1 <= self.aspect <= 4, "1 to 4")
        for name, table in (("kinds", KINDS), ("categories", tuple(NORMALS)), ("grades", tuple(GRADES))):
            given = getattr(self, name)
            for value in given:
                check_option(name, value, value.lower() in table, f"any of {', '.join(table)}")
            # As the set's record has them: `Easy` and `easy` are one set.
            object.__setattr__(self, name, tuple(value.lower() for value in given))
        shares = {
            name: getattr(self, name) for name in ("natural_share", "siblings", "unaligned") if getattr(self, name)
        }
        if sum(shares.values()) > 1 + _ROUNDING:
            given = ", ".join(f"{name}={share:g}" for name, share in shares.items())
            raise OptionError(f"{given}: a pair is of one of these kinds; expected shares that add up to 1 at most")
        if self.natural_share > 0 and self.photographs is None:
            raise OptionError(f"natural_share={self.natural_share:g}: photographs is missing; give a folder of them")


def usual_nuisance(size: int, strength: float) -> Nuisance:
    """What two pictures of one part may differ by, in pixels of a picture of `size`; `strength` scales the bounds."""
    return Nuisance(
        shift=0.05 * size * strength,
        angle=5.0 * strength,
        scale=0.04 * strength,
        perspective=0.03 * strength,
        gain=min(0.25 * strength, 0.8),
        offset=20.0 * strength,
        gradient=min(0.2 * strength, 0.8),
        cast=min(0.08 * strength, 0.5),
        blur=0.6 + 0.5 * strength,
        noise=5.0 * strength,
        shimmer=0.0,
        swell=0.0,
        wobble=0.006 * size * strength,
        etch=0.0,
    )


class Drawer:
    """Draws pairs by index. Lists folders once; cheap to make, so every worker has its own."""

    def __init__(self, options: DrawOptions) -> None:
        self.options = options
        self._margin = round(MARGIN_SHARE * options.size)
        self._kinds = options.kinds or KINDS
        self._grades = options.grades or tuple(GRADES)
        self._photographs = [] if options.photographs is None else list_pictures(options.photographs)
        self._normals = self._normal_sources()
        bank = None if options.defects is None else _Bank(options.defects)
        self._foreign = Foreign(self._foreign_texture, bank)

    def draw(self, index: int) -> SyntheticPair:
        """Pair number `index` (from 0). Raises ImageError where a picture of a folder cannot be read."""
        rng = np.random.default_rng([self.options.seed, index])
        anomalous = bool(rng.random() >= self.options.normal_share)
        natural = bool(rng.random() < self.options.natural_share)
        if not natural and self.options.unaligned and rng.random() < self._of_the_others("unaligned", "natural_share"):
            return self._unaligned(rng, anomalous)
        pair = self._natural(rng, anomalous) if natural else self._square(rng, anomalous)
        return _cut(rng, pair, self.options.aspect) if self.options.aspect > 1 else pair

    def _of_the_others(self, name: str, *drawn: str) -> float:
        """The share `name` of all pairs as one of those that are of none of the kinds `drawn` before."""
        rest = 1 - sum(getattr(self.options, kind) for kind in drawn)
        return float(getattr(self.options, name)) / rest if rest > _ROUNDING else 0.0

    def _unaligned(self, rng: np.random.Generator, anomalous: bool) -> SyntheticPair:
        pair = draw_unaligned(rng, anomalous, self.options.size, self._surfaces() or SURFACES)
        return _described(pair, pair.kind, "") if pair.kind else pair

    def _surfaces(self) -> list[str]:
        return [name for name in SURFACES if name in self._normals]

    def _square(self, rng: np.random.Generator, anomalous: bool) -> SyntheticPair:
        share = self._of_the_others("siblings", "natural_share", "unaligned")
        siblings = bool(self.options.siblings) and rng.random() < share
        surfaces = self._surfaces()
        category = str(rng.choice((siblings and surfaces) or list(self._normals)))
        # A board is etched anew with its defect, so that both pictures are of one board.
        left_out = (*_UNSEEN.get(category, ()), *([BOARD] if siblings else []))
        kinds = [kind for kind in self._kinds if kind not in left_out]
        kind = str(rng.choice(kinds or [_LAST_RESORT]))
        if kind == BOARD:
            return self._board(rng, anomalous)
        grade = str(rng.choice(self._grades))
        views = self._views(rng)
        draw, size = self._normals[category], self.options.size + 2 * self._margin
        template, part = draw_siblings(rng, draw, size) if siblings else (draw(rng, size),) * 2
        tried: list[str] = []
        variants = self._damaged(rng, part, kind, grade, tried) if anomalous else iter(())
        pair = self._photograph(template, part, variants, views, category)
        return _described(pair, tried[-1], grade) if anomalous else pair

    def _normal_sources(self) -> dict[str, Draw]:
        if self.options.normals is None:
            return {name: NORMALS[name] for name in self.options.categories or NORMALS}
        paths = list_pictures(self.options.normals)
        return {self.options.normals.resolve().name: lambda rng, size: photograph(rng, size, paths)}

    def _foreign_texture(self, rng: np.random.Generator, size: int) -> Picture:
        if self._photographs and rng.random() < 0.5:
            return photograph(rng, size, self._photographs)
        return NORMALS[str(rng.choice(list(NORMALS)))](rng, size)

    def _views(self, rng: np.random.Generator) -> tuple[View, View]:
        """The reference is seen under a third of the nuisance, the target under all of it, both of a drawn strength."""
        strength = self.options.nuisance * rng.uniform(0.1, 1.0)
        size, margin = self.options.size, self._margin
        return (
            draw_view(rng, size, margin, replace(usual_nuisance(size, strength / 3), wobble=0.0)),
            draw_view(rng, size, margin, usual_nuisance(size, strength)),
        )

    def _damaged(
        self, rng: np.random.Generator, part: Picture, kind: str, grade: str, tried: list[str]
    ) -> Iterator[Picture]:
        """Ever new defects of one kind, then a stark one, which shows on anything; the kind of each goes to `tried`."""
        low, high = GRADES[grade].strength
        for attempted in (*[kind] * _ATTEMPTS, *[_LAST_RESORT] * _ATTEMPTS):
            tried.append(attempted)
            suited = _SUITED.get(attempted, _COMPACT)
            cover = self._region(rng, str(rng.choice(suited)), grade)
            changed = FILLS[attempted](rng, part, cover, self._foreign)
            strength = 1.0 if attempted == _LAST_RESORT else rng.uniform(low, high)
            yield part + np.float32(strength) * (changed - part)

    def _region(self, rng: np.random.Generator, name: str, grade: str) -> Stamp:
        size = self.options.size + 2 * self._margin
        low, high = np.log(GRADES[grade].radius)
        radius = max(2.0, self.options.size * float(np.exp(rng.uniform(low, high))))
        radius = max(radius, 6.0) * 2 if name == "line" else radius
        inset = self._margin + min(0.7 * radius, 0.3 * self.options.size) + 2
        return REGIONS[name](rng, size, rng.uniform(inset, size - inset, 2), radius)

    def _board(self, rng: np.random.Generator, anomalous: bool) -> SyntheticPair:
        """A circuit board whose defect is etched into the copper, not laid over its picture."""
        strength = self.options.nuisance * rng.uniform(0.1, 1.0)
        nuisance = replace(
            usual_nuisance(self.options.size, strength), shimmer=0.12, swell=0.25 * strength, etch=strength
        )
        pair = make_pair(rng, "board", anomalous=anomalous, size=self.options.size, nuisance=nuisance)
        return _described(pair, BOARD, "") if anomalous else pair

    def _natural(self, rng: np.random.Generator, anomalous: bool) -> SyntheticPair:
        """A photograph, and the same with an object of another one; either may be the reference."""
        size = self.options.size + 2 * self._margin
        plain = photograph(rng, size, self._photographs)
        views = self._views(rng)
        if not anomalous:
            return self._photograph(plain, plain, iter(()), views, "natural")
        other, cover = self._object(rng, size)
        with_object = np.asarray(plain + cover[..., None] * (other - plain), dtype=np.float32)
        kind = str(rng.choice(NATURAL_KINDS))
        before, after = (plain, with_object) if kind == "added" else (with_object, plain)
        return _described(self._photograph(before, before, iter((after,)), views, "natural"), kind, "")

    def _object(self, rng: np.random.Generator, size: int) -> tuple[Picture, Stamp]:
        """Something of another photograph at its new place, and its coverage: a segment where there are any."""
        cut = cut_object(rng, self._photographs[int(rng.integers(len(self._photographs)))])
        radius = self.options.size * rng.uniform(0.06, 0.25)
        center = rng.uniform(self._margin + radius, size - self._margin - radius, 2)
        if cut is None:
            cover = REGIONS[str(rng.choice(_COMPACT))](rng, size, center, radius)
            return photograph(rng, size, self._photographs), cover
        piece, mask = cut
        scale = 2 * radius / max(mask.shape)
        motion = np.array([[scale, 0, 0], [0, scale, 0]])
        motion[:, 2] = center - scale * np.array(mask.shape[::-1]) / 2
        cover = cv2.warpAffine(mask.astype(np.float32), motion, (size, size), flags=cv2.INTER_LINEAR)
        return np.asarray(cv2.warpAffine(piece, motion, (size, size), flags=cv2.INTER_LINEAR)), np.asarray(cover)

    def _photograph(
        self, template: Picture, part: Picture, variants: Iterator[Picture], views: tuple[View, View], category: str
    ) -> SyntheticPair:
        noise = float(views[1].grain.std())
        return photograph_pair(
            template,
            part,
            variants,
            views,
            category=category,
            least_change=max(LEAST_CHANGE, LEAST_OVER_NOISE * noise),
            least_pixels=max(4, round(LEAST_SHARE * self.options.size**2)),
        )


class _Bank:
    """Defects of labelled pairs, cut out by their masks. Raises InputError where no pair has one."""

    def __init__(self, manifest: Path) -> None:
        check_readable([manifest])  # every worker reads it
        self._pairs = [pair for pair in read_pairs(manifest) if pair.mask is not None and pair.anomalous]
        if not self._pairs:
            raise InputError(f"{manifest}: no anomalous pair with a mask; a bank of defects needs masks to cut along")
        self._cut = lru_cache(maxsize=64)(lambda number: _cut_out(self._pairs[number]))

    def __call__(self, rng: np.random.Generator) -> tuple[Picture, Bool]:
        return self._cut(int(rng.integers(len(self._pairs))))


def _cut_out(pair: Pair) -> tuple[Picture, Bool]:
    assert pair.mask is not None
    target = read_image(pair.target)
    mask = read_mask(pair.mask, (target.shape[1], target.shape[0]))
    # Poisson blending keeps steps, not levels: without some of the surroundings a defect would take their colour.
    wide = cv2.dilate(mask.astype(np.uint8), np.ones((2 * _RIM + 1, 2 * _RIM + 1), np.uint8))
    x, y, width, height = cv2.boundingRect(wide)
    window = np.s_[y : y + height, x : x + width]
    return target[window].astype(np.float32), wide[window] > 0


def _cut(rng: np.random.Generator, pair: SyntheticPair, aspect: float) -> SyntheticPair:
    """The same window of both pictures, one side shorter than the other by up to `aspect`; a defect stays whole."""
    ratio = float(np.exp(rng.uniform(-np.log(aspect), np.log(aspect))))
    size = len(pair.mask)
    width, height = (max(16, round(size * min(1.0, factor))) for factor in (ratio, 1 / ratio))
    place = rng.random(2)
    x1, y1, x2, y2 = pair.boxes[0] if len(pair.boxes) else (size, size, 0, 0)
    low, high = np.maximum(0, [x2 - width, y2 - height]), np.minimum([x1, y1], [size - width, size - height])
    if (low > high).any():
        return pair
    x, y = (int(v) for v in low + place * (high - low))
    window = np.s_[y : y + height, x : x + width]
    move = np.array([[1, 0, -x], [0, 1, -y], [0, 0, 1.0]])
    cut = replace(
        pair,
        reference=np.ascontiguousarray(pair.reference[window]),
        target=np.ascontiguousarray(pair.target[window]),
        mask=np.ascontiguousarray(pair.mask[window]),
        pose=move @ pair.pose @ np.linalg.inv(move),
    )
    return _described(cut, pair.kind, pair.facts.get("grade", "")) if pair.kind else cut


def _described(pair: SyntheticPair, kind: str, grade: str) -> SyntheticPair:
    """The pair with its kind and what can be measured of its defect: the share of the picture that it changed."""
    facts: dict[str, Any] = {"area_share": round(float(pair.mask.mean()), 6)}
    if grade:
        facts["grade"] = grade
    return replace(pair, kind=kind, facts=facts)
