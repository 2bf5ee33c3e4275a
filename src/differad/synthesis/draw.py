"""Training pairs by number: the same options and index give the same pair, in any process with the same OpenCV and NumPy.

A normal part (procedural, or an image from a folder) is rendered twice under nuisance. In an anomalous pair the second
image has one defect, whose mask marks the pixels that it changed. Every defect is visible, since an invisible one would be
a wrong label. Natural pairs add an object to a photograph or remove it; the method's cold start uses them.
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
from differad.synthesis.camera import Nuisance, View, sample_view
from differad.synthesis.fills import FILLS, Bool, ForeignMaterial
from differad.synthesis.normals import NORMALS, PartGenerator, crop_object, crop_photograph, list_images
from differad.synthesis.pairs import MARGIN_SHARE, SyntheticPair, make_pair, render_pair
from differad.synthesis.regions import REGIONS, Coverage
from differad.synthesis.siblings import SURFACES, generate_instances
from differad.synthesis.textures import Image
from differad.synthesis.unaligned import generate_unaligned

# Regions that suit a fill; a fill that is not listed takes any compact one.
_COMPACT = ("blob", "polygon", "rectangle", "perlin")
_REGIONS_OF_FILL = {
    "scratched": ("line",),
    "pierced": ("dots", "blob"),
    "stained": ("perlin", "blob"),
    "shifted": (*_COMPACT, "line"),
}
# Fills that cannot be told from the normal part: they only rearrange the material of a random surface.
_INVISIBLE_FILLS = {
    "grain": ("duplicated", "turned", "shoved", "warped"),
    "brushed": ("duplicated", "shoved"),
    "woven": ("duplicated",),
}
_FALLBACK_FILL = "stark"
BOARD, NATURAL_KINDS = "etched", ("added", "removed")
KINDS = (*FILLS, BOARD)


@dataclass(frozen=True)
class Difficulty:
    """How hard a defect is to see: radius as a share of the image's side, and opacity of its change (1: all of it)."""

    radius: tuple[float, float]
    strength: tuple[float, float]


DIFFICULTIES = {
    "easy": Difficulty((0.12, 0.28), (0.9, 1.0)),
    "medium": Difficulty((0.06, 0.14), (0.65, 1.0)),
    "hard": Difficulty((0.025, 0.07), (0.4, 0.8)),
}
# The mean change must reach this many grey levels and this many times the sensor's noise.
MIN_CHANGE, MIN_CHANGE_OVER_NOISE = 25.0, 3.0
# Share of the image's pixels that must change: 12 in an image of 224 x 224.
MIN_AREA_SHARE = 12 / 224**2
_ATTEMPTS = 8
# Rounding error allowed in a sum of shares such as 0.1 + 0.2 + 0.7.
_ROUNDING = 1e-9
# Pixels of surroundings in a defect's crop.
_CONTEXT = 3


@dataclass(frozen=True)
class SynthesisOptions:
    """Options of a synthetic set; a pair depends on these, its index, and the versions of OpenCV and NumPy (docs/versions.md)."""

    seed: int = option(0, "another seed, other pairs")
    size: int = option(224, "side of the square images in pixels")
    normal_share: float = option(0.5, "share of pairs without a defect")
    kinds: tuple[str, ...] = option((), "defect kinds to generate; none: all")
    categories: tuple[str, ...] = option((), "procedural parts to generate; none: all")
    grades: tuple[str, ...] = option((), "easy, medium, hard, in any case; none: all")
    nuisance: float = option(1.0, "strength of changes that are no defects: 0 none, 1 usual, 2 double")
    normals: Path | None = option(None, "folder of normal images, in place of procedural parts")
    photographs: Path | None = option(None, "folder of photographs for natural pairs")
    natural_share: float = option(0.0, "share of natural pairs: an object added to a photograph or removed")
    defects: Path | None = option(None, "pairs.jsonl with masks; its defects are transplanted")
    siblings: float = option(
        0.0, "share of pairs whose reference shows another part of the same kind, not the same part"
    )
    unaligned: float = option(
        0.0,
        "share of pairs of two parts that differ in all that normal parts may: light, contrast, scale, marks, size",
    )
    aspect: float = option(1.0, "images are cropped to sides that differ by up to this factor")

    def __post_init__(self) -> None:
        check_option("seed", self.seed, self.seed >= 0, "0 or more")
        check_option("size", self.size, 32 <= self.size <= 4096, "32 to 4096 pixels")
        for name in ("normal_share", "natural_share", "siblings", "unaligned"):
            check_option(name, getattr(self, name), 0 <= getattr(self, name) <= 1, "a share in [0, 1]")
        check_option("nuisance", self.nuisance, 0 <= self.nuisance <= 4, "0 to 4")
        check_option("aspect", self.aspect, 1 <= self.aspect <= 4, "1 to 4")
        for name, table in (("kinds", KINDS), ("categories", tuple(NORMALS)), ("grades", tuple(DIFFICULTIES))):
            values = getattr(self, name)
            for value in values:
                check_option(name, value, value.lower() in table, f"any of {', '.join(table)}")
            # Written in lower case to synthesis.json: `Easy` and `easy` make the same set.
            object.__setattr__(self, name, tuple(value.lower() for value in values))
        shares = {
            name: getattr(self, name) for name in ("natural_share", "siblings", "unaligned") if getattr(self, name)
        }
        if sum(shares.values()) > 1 + _ROUNDING:
            listed = ", ".join(f"{name}={share:g}" for name, share in shares.items())
            raise OptionError(f"{listed}: a pair is of one of these kinds; expected shares that add up to 1 at most")
        if self.natural_share > 0 and self.photographs is None:
            raise OptionError(f"natural_share={self.natural_share:g}: photographs is missing; give a folder of them")


def usual_nuisance(size: int, strength: float) -> Nuisance:
    """Bounds of how two images of one part differ, lengths in pixels of an image of `size`; `strength` scales them."""
    return Nuisance(
        shift=0.05 * size * strength,
        angle=5.0 * strength,
        scale=0.04 * strength,
        perspective=0.03 * strength,
        gain=min(0.25 * strength, 0.8),
        offset=20.0 * strength,
        gradient=min(0.2 * strength, 0.8),
        color_cast=min(0.08 * strength, 0.5),
        blur=0.6 + 0.5 * strength,
        noise=5.0 * strength,
        shimmer=0.0,
        swell=0.0,
        elastic_warp=0.006 * size * strength,
        etch=0.0,
    )


class PairGenerator:
    """Generates pairs by index. Lists the options' folders once; cheap to create, so every worker has its own."""

    def __init__(self, options: SynthesisOptions) -> None:
        self.options = options
        self._margin = round(MARGIN_SHARE * options.size)
        self._kinds = options.kinds or KINDS
        self._difficulties = options.grades or tuple(DIFFICULTIES)
        self._photographs = [] if options.photographs is None else list_images(options.photographs)
        self._normals = self._normal_sources()
        bank = None if options.defects is None else _DefectBank(options.defects)
        self._foreign = ForeignMaterial(self._foreign_texture, bank)

    def generate(self, index: int) -> SyntheticPair:
        """Pair number `index` (from 0). Raises ImageError if an image of a folder cannot be read."""
        rng = np.random.default_rng([self.options.seed, index])
        anomalous = bool(rng.random() >= self.options.normal_share)
        natural = bool(rng.random() < self.options.natural_share)
        if (
            not natural
            and self.options.unaligned
            and rng.random() < self._conditional_share("unaligned", "natural_share")
        ):
            return self._unaligned(rng, anomalous)
        pair = self._natural(rng, anomalous) if natural else self._square(rng, anomalous)
        return _crop(rng, pair, self.options.aspect) if self.options.aspect > 1 else pair

    def _conditional_share(self, name: str, *excluded: str) -> float:
        """Share of pairs of kind `name` among those that are of none of the kinds `excluded`."""
        rest = 1 - sum(getattr(self.options, kind) for kind in excluded)
        return float(getattr(self.options, name)) / rest if rest > _ROUNDING else 0.0

    def _unaligned(self, rng: np.random.Generator, anomalous: bool) -> SyntheticPair:
        pair = generate_unaligned(rng, anomalous, self.options.size, self._surfaces() or SURFACES)
        return _with_facts(pair, pair.kind, "") if pair.kind else pair

    def _surfaces(self) -> list[str]:
        return [name for name in SURFACES if name in self._normals]

    def _square(self, rng: np.random.Generator, anomalous: bool) -> SyntheticPair:
        share = self._conditional_share("siblings", "natural_share", "unaligned")
        different_instance = bool(self.options.siblings) and rng.random() < share
        surfaces = self._surfaces()
        category = str(rng.choice((different_instance and surfaces) or list(self._normals)))
        # A board's defect is etched into its layout, so both images show the same board.
        excluded = (*_INVISIBLE_FILLS.get(category, ()), *([BOARD] if different_instance else []))
        kinds = [kind for kind in self._kinds if kind not in excluded]
        kind = str(rng.choice(kinds or [_FALLBACK_FILL]))
        if kind == BOARD:
            return self._board(rng, anomalous)
        difficulty = str(rng.choice(self._difficulties))
        views = self._views(rng)
        generate, size = self._normals[category], self.options.size + 2 * self._margin
        template, part = generate_instances(rng, generate, size) if different_instance else (generate(rng, size),) * 2
        tried: list[str] = []
        variants = self._damaged(rng, part, kind, difficulty, tried) if anomalous else iter(())
        pair = self._render(template, part, variants, views, category)
        return _with_facts(pair, tried[-1], difficulty) if anomalous else pair

    def _normal_sources(self) -> dict[str, PartGenerator]:
        if self.options.normals is None:
            return {name: NORMALS[name] for name in self.options.categories or NORMALS}
        paths = list_images(self.options.normals)
        return {self.options.normals.resolve().name: lambda rng, size: crop_photograph(rng, size, paths)}

    def _foreign_texture(self, rng: np.random.Generator, size: int) -> Image:
        if self._photographs and rng.random() < 0.5:
            return crop_photograph(rng, size, self._photographs)
        return NORMALS[str(rng.choice(list(NORMALS)))](rng, size)

    def _views(self, rng: np.random.Generator) -> tuple[View, View]:
        """A view with a third of the nuisance for the reference and one with all of it for the target, of random strength."""
        strength = self.options.nuisance * rng.uniform(0.1, 1.0)
        size, margin = self.options.size, self._margin
        return (
            sample_view(rng, size, margin, replace(usual_nuisance(size, strength / 3), elastic_warp=0.0)),
            sample_view(rng, size, margin, usual_nuisance(size, strength)),
        )

    def _damaged(
        self, rng: np.random.Generator, part: Image, kind: str, difficulty: str, tried: list[str]
    ) -> Iterator[Image]:
        """Random defects of one kind, then of maximal contrast, visible on any part; the kind of each is added to `tried`."""
        low, high = DIFFICULTIES[difficulty].strength
        for fill in (*[kind] * _ATTEMPTS, *[_FALLBACK_FILL] * _ATTEMPTS):
            tried.append(fill)
            regions = _REGIONS_OF_FILL.get(fill, _COMPACT)
            coverage = self._region(rng, str(rng.choice(regions)), difficulty)
            changed = FILLS[fill](rng, part, coverage, self._foreign)
            strength = 1.0 if fill == _FALLBACK_FILL else rng.uniform(low, high)
            yield part + np.float32(strength) * (changed - part)

    def _region(self, rng: np.random.Generator, name: str, difficulty: str) -> Coverage:
        size = self.options.size + 2 * self._margin
        low, high = np.log(DIFFICULTIES[difficulty].radius)
        radius = max(2.0, self.options.size * float(np.exp(rng.uniform(low, high))))
        radius = max(radius, 6.0) * 2 if name == "line" else radius
        inset = self._margin + min(0.7 * radius, 0.3 * self.options.size) + 2
        return REGIONS[name](rng, size, rng.uniform(inset, size - inset, 2), radius)

    def _board(self, rng: np.random.Generator, anomalous: bool) -> SyntheticPair:
        """A circuit board whose defect is etched into the copper, not painted over its image."""
        strength = self.options.nuisance * rng.uniform(0.1, 1.0)
        nuisance = replace(
            usual_nuisance(self.options.size, strength), shimmer=0.12, swell=0.25 * strength, etch=strength
        )
        pair = make_pair(rng, "board", anomalous=anomalous, size=self.options.size, nuisance=nuisance)
        return _with_facts(pair, BOARD, "") if anomalous else pair

    def _natural(self, rng: np.random.Generator, anomalous: bool) -> SyntheticPair:
        """A photograph with and without an object from another one; either may be the reference."""
        size = self.options.size + 2 * self._margin
        without_object = crop_photograph(rng, size, self._photographs)
        views = self._views(rng)
        if not anomalous:
            return self._render(without_object, without_object, iter(()), views, "natural")
        other, coverage = self._object(rng, size)
        with_object = np.asarray(without_object + coverage[..., None] * (other - without_object), dtype=np.float32)
        kind = str(rng.choice(NATURAL_KINDS))
        before, after = (without_object, with_object) if kind == "added" else (with_object, without_object)
        return _with_facts(self._render(before, before, iter((after,)), views, "natural"), kind, "")

    def _object(self, rng: np.random.Generator, size: int) -> tuple[Image, Coverage]:
        """Pixels (size, size, 3) of another photograph, moved into position, and their coverage: a segment if it has any."""
        segment = crop_object(rng, self._photographs[int(rng.integers(len(self._photographs)))])
        radius = self.options.size * rng.uniform(0.06, 0.25)
        center = rng.uniform(self._margin + radius, size - self._margin - radius, 2)
        if segment is None:
            coverage = REGIONS[str(rng.choice(_COMPACT))](rng, size, center, radius)
            return crop_photograph(rng, size, self._photographs), coverage
        piece, mask = segment
        scale = 2 * radius / max(mask.shape)
        motion = np.array([[scale, 0, 0], [0, scale, 0]])
        motion[:, 2] = center - scale * np.array(mask.shape[::-1]) / 2
        coverage = cv2.warpAffine(mask.astype(np.float32), motion, (size, size), flags=cv2.INTER_LINEAR)
        return np.asarray(cv2.warpAffine(piece, motion, (size, size), flags=cv2.INTER_LINEAR)), np.asarray(coverage)

    def _render(
        self, template: Image, part: Image, variants: Iterator[Image], views: tuple[View, View], category: str
    ) -> SyntheticPair:
        noise = float(views[1].noise.std())
        return render_pair(
            template,
            part,
            variants,
            views,
            category=category,
            min_change=max(MIN_CHANGE, MIN_CHANGE_OVER_NOISE * noise),
            min_pixels=max(4, round(MIN_AREA_SHARE * self.options.size**2)),
        )


class _DefectBank:
    """Defects cropped from labelled pairs by their masks. Raises InputError if no pair has a mask."""

    def __init__(self, manifest: Path) -> None:
        check_readable([manifest])  # every worker reads it
        self._pairs = [pair for pair in read_pairs(manifest) if pair.mask is not None and pair.anomalous]
        if not self._pairs:
            raise InputError(f"{manifest}: no anomalous pair with a mask; a bank of defects needs masks to cut along")
        self._crop = lru_cache(maxsize=64)(lambda number: _crop_defect(self._pairs[number]))

    def __call__(self, rng: np.random.Generator) -> tuple[Image, Bool]:
        return self._crop(int(rng.integers(len(self._pairs))))


def _crop_defect(pair: Pair) -> tuple[Image, Bool]:
    assert pair.mask is not None
    target = read_image(pair.target)
    mask = read_mask(pair.mask, (target.shape[1], target.shape[0]))
    # Poisson blending keeps gradients, not levels: without context a defect would take the colour of its surroundings.
    wide = cv2.dilate(mask.astype(np.uint8), np.ones((2 * _CONTEXT + 1, 2 * _CONTEXT + 1), np.uint8))
    x, y, width, height = cv2.boundingRect(wide)
    window = np.s_[y : y + height, x : x + width]
    return target[window].astype(np.float32), wide[window] > 0


def _crop(rng: np.random.Generator, pair: SyntheticPair, aspect: float) -> SyntheticPair:
    """The same window of both images, with sides that differ by up to the factor `aspect`; a defect stays whole."""
    ratio = float(np.exp(rng.uniform(-np.log(aspect), np.log(aspect))))
    size = len(pair.mask)
    width, height = (max(16, round(size * min(1.0, factor))) for factor in (ratio, 1 / ratio))
    position = rng.random(2)
    x1, y1, x2, y2 = pair.boxes[0] if len(pair.boxes) else (size, size, 0, 0)
    low, high = np.maximum(0, [x2 - width, y2 - height]), np.minimum([x1, y1], [size - width, size - height])
    if (low > high).any():
        return pair
    x, y = (int(v) for v in low + position * (high - low))
    window = np.s_[y : y + height, x : x + width]
    move = np.array([[1, 0, -x], [0, 1, -y], [0, 0, 1.0]])
    cropped = replace(
        pair,
        reference=np.ascontiguousarray(pair.reference[window]),
        target=np.ascontiguousarray(pair.target[window]),
        mask=np.ascontiguousarray(pair.mask[window]),
        pose=move @ pair.pose @ np.linalg.inv(move),
    )
    return _with_facts(cropped, pair.kind, pair.facts.get("grade", "")) if pair.kind else cropped


def _with_facts(pair: SyntheticPair, kind: str, difficulty: str) -> SyntheticPair:
    """The pair with its defect's kind, the share of the image that the defect changed, and its difficulty."""
    facts: dict[str, Any] = {"area_share": round(float(pair.mask.mean()), 6)}
    if difficulty:
        facts["grade"] = difficulty
    return replace(pair, kind=kind, facts=facts)
