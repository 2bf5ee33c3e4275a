"""Whole pairs from a seed: a part seen twice under nuisance, the second time perhaps with a defect and its exact mask.

The mask marks what the defect changed in the picture before noise and compression: the target's view is taken of the
part with and without it, and the two are compared.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from differad.boxes import Boxes
from differad.core import Pair
from differad.data.masks import boxes_from_mask
from differad.images import RGB
from differad.synthesis.boards import BoardStyle, draw_layout, draw_style, etch, shade
from differad.synthesis.camera import STILL, Nuisance, View, develop, draw_view, see
from differad.synthesis.defects import damage_board, damage_surface
from differad.synthesis.textures import Picture, draw_texture

# A change under 20 grey levels drowns in noise and light; one of fewer than 30 pixels is a speck that nobody labels.
VISIBLE_LEVELS = 20.0
VISIBLE_PIXELS = 30
# What the drawing has on each side beyond the picture, as a share of its size, so that a pose shows no empty corner.
MARGIN_SHARE = 0.06
_ATTEMPTS = 20


@dataclass(frozen=True, eq=False)
class SyntheticPair:
    """Two pictures (H, W, 3), the target's defect mask (H, W), and the pose (3, 3) from reference to target pixels."""

    reference: RGB
    target: RGB
    mask: NDArray[np.bool_]
    pose: NDArray[np.float64]
    category: str

    @property
    def boxes(self) -> Boxes:
        """One tight box around the defect, (0, 4) for a normal pair: a drawn defect is one defect."""
        return boxes_from_mask(self.mask, gap=max(self.mask.shape))[:1]

    def as_pair(self, id: str = "") -> Pair:
        """The pair as a locator takes it, with its truth."""
        return Pair(self.reference, self.target, id=id, category=self.category, boxes=self.boxes)


def make_pair(
    rng: np.random.Generator,
    category: str = "board",
    *,
    anomalous: bool = True,
    size: int = 640,
    nuisance: Nuisance | None = None,
    style: BoardStyle | None = None,
) -> SyntheticPair:
    """Draw a part of `category` ("board" or a surface, see `draw_part`) and two views of it.

    The target's view differs from the reference's by up to `nuisance`; `style` fixes how a board looks.
    """
    margin = round(MARGIN_SHARE * size)
    drawn = size + 2 * margin
    first = draw_view(rng, size, margin, STILL)
    second = draw_view(rng, size, margin, nuisance or Nuisance())
    if category == "board":
        style = style or draw_style(rng)
        layout = draw_layout(rng, drawn)
        template, part = (shade(etch(layout, view.etch), style) for view in (first, second))
        damaged = (damage_board(rng, layout, margin) for _ in range(_ATTEMPTS))
        variants = (shade(etch(copper, second.etch), style) for copper in damaged)
    else:
        template = part = draw_texture(rng, drawn, category)
        variants = (damage_surface(rng, part, margin) for _ in range(_ATTEMPTS))
    binary = category == "board" and style is not None and style.binary
    clean = see(part, second, binary=binary)
    seen, mask = _first_visible(variants, clean, second, binary) if anomalous else (clean, _no_mask(clean))
    return SyntheticPair(
        reference=develop(see(template, first, binary=binary), first, binary=binary),
        target=develop(seen, second, binary=binary),
        mask=mask,
        pose=second.pose @ np.linalg.inv(first.pose),
        category=category,
    )


def _first_visible(
    variants: Iterable[Picture], clean: Picture, view: View, binary: bool
) -> tuple[Picture, NDArray[np.bool_]]:
    """The first damaged part whose change shows; the last one drawn where none does."""
    seen, mask = clean, _no_mask(clean)
    for part in variants:
        seen = see(part, view, binary=binary)
        mask = np.asarray(np.abs(seen - clean).max(axis=2) >= VISIBLE_LEVELS)
        if int(mask.sum()) >= VISIBLE_PIXELS:
            break
    return seen, mask


def _no_mask(picture: Picture) -> NDArray[np.bool_]:
    return np.zeros(picture.shape[:2], np.bool_)
