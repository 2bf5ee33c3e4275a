"""Whole pairs from a seed: a part seen twice under nuisance, the second time perhaps with a defect and its exact mask.

The mask marks what the defect changed in the picture before noise and compression: the target's view is taken of the
part with and without it, and the two are compared.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.boxes import Boxes, as_boxes
from differad.core import Pair
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
    """Two pictures (H, W, 3), the target's defect mask (H, W), and the pose (3, 3) from reference to target pixels.

    `category` names the part, `kind` the defect ("" for a normal pair); `facts` hold what else is known of the pair.
    """

    reference: RGB
    target: RGB
    mask: NDArray[np.bool_]
    pose: NDArray[np.float64]
    category: str
    kind: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def boxes(self) -> Boxes:
        """One tight box around the defect, (0, 4) for a normal pair: a drawn defect is one defect."""
        x, y, width, height = cv2.boundingRect(self.mask.astype(np.uint8))
        return as_boxes([[x, y, x + width, y + height]] if width else [])

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
    return photograph_pair(
        template, part, variants if anomalous else (), (first, second), category=category, binary=binary
    )


def photograph_pair(
    template: Picture,
    part: Picture,
    variants: Iterable[Picture],
    views: tuple[View, View],
    *,
    category: str,
    binary: bool = False,
    least_change: float = VISIBLE_LEVELS,
    least_pixels: int = VISIBLE_PIXELS,
) -> SyntheticPair:
    """`template` seen in the first view; in the second the first of `variants` of `part` whose change shows.

    The change shows where at least `least_pixels` pixels changed by VISIBLE_LEVELS and `least_change` levels on average;
    the last variant is taken where none does. No variants: a normal pair, `part` in the second view.
    """
    first, second = views
    clean = see(part, second, binary=binary)
    seen, mask = clean, np.zeros(clean.shape[:2], np.bool_)
    for changed in variants:
        seen = see(changed, second, binary=binary)
        change = _largest(np.asarray(cv2.absdiff(seen, clean)))
        mask = np.asarray(change >= VISIBLE_LEVELS)
        count = int(mask.sum())
        if count >= least_pixels and float(change[mask].mean()) >= least_change:
            break
    return SyntheticPair(
        reference=develop(see(template, first, binary=binary), first, binary=binary),
        target=develop(seen, second, binary=binary),
        mask=mask,
        pose=second.pose @ np.linalg.inv(first.pose),
        category=category,
    )


def _largest(channels: Picture) -> Picture:
    """The largest of three channels (H, W); several times faster than a maximum over the last axis."""
    return np.asarray(np.maximum(np.maximum(channels[..., 0], channels[..., 1]), channels[..., 2]))
