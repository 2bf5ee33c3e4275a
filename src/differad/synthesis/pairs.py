"""Pairs from a seed: a part rendered twice under nuisance, the second time perhaps with a defect and its exact mask.

The mask marks what the defect changed in the image before noise and compression: the target's view is taken of the
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
from differad.synthesis.boards import BoardStyle, etch, generate_layout, sample_style, shade
from differad.synthesis.camera import REFERENCE_NUISANCE, Nuisance, View, capture, render, sample_view
from differad.synthesis.defects import damage_board, damage_surface
from differad.synthesis.textures import Image, generate_texture

# A change below 20 grey levels is hidden by noise and light; one of fewer than 30 pixels is too small to be labelled.
VISIBLE_LEVELS = 20.0
VISIBLE_PIXELS = 30
# Margin of the part around the image on each side, as a share of the image's size, so that a pose shows no empty corner.
MARGIN_SHARE = 0.06
_ATTEMPTS = 20


@dataclass(frozen=True, eq=False)
class SyntheticPair:
    """Two images (H, W, 3), the target's defect mask (H, W), and the pose (3, 3) from reference to target pixels.

    `category` names the part, `kind` the defect ("" for a normal pair); `facts` hold further properties of the pair.
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
        """One tight box (1, 4) around the defect, (0, 4) for a normal pair: a synthetic pair has one defect at most."""
        x, y, width, height = cv2.boundingRect(self.mask.astype(np.uint8))
        return as_boxes([[x, y, x + width, y + height]] if width else [])

    def as_pair(self, id: str = "") -> Pair:
        """The pair as a locator takes it, with its true boxes."""
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
    """Generate a part of `category` ("board" or a key of `textures.TEXTURES`) and two views of it.

    The target's view differs from the reference's by up to `nuisance`; `style` fixes how a board looks.
    """
    margin = round(MARGIN_SHARE * size)
    part_size = size + 2 * margin
    first = sample_view(rng, size, margin, REFERENCE_NUISANCE)
    second = sample_view(rng, size, margin, nuisance or Nuisance())
    if category == "board":
        style = style or sample_style(rng)
        layout = generate_layout(rng, part_size)
        template, part = (shade(etch(layout, view.etch), style) for view in (first, second))
        damaged = (damage_board(rng, layout, margin) for _ in range(_ATTEMPTS))
        variants = (shade(etch(copper, second.etch), style) for copper in damaged)
    else:
        template = part = generate_texture(rng, part_size, category)
        variants = (damage_surface(rng, part, margin) for _ in range(_ATTEMPTS))
    binary = category == "board" and style is not None and style.binary
    return render_pair(template, part, variants if anomalous else (), (first, second), category=category, binary=binary)


def render_pair(
    template: Image,
    part: Image,
    variants: Iterable[Image],
    views: tuple[View, View],
    *,
    category: str,
    binary: bool = False,
    min_change: float = VISIBLE_LEVELS,
    min_pixels: int = VISIBLE_PIXELS,
) -> SyntheticPair:
    """`template` rendered in the first view, and in the second the first of `variants` of `part` with a visible change.

    A change is visible if at least `min_pixels` pixels change by VISIBLE_LEVELS or more, and by `min_change` levels on
    average. The last variant is used if none is. No variants: a normal pair, `part` in the second view.
    """
    first, second = views
    clean = render(part, second, binary=binary)
    rendered, mask = clean, np.zeros(clean.shape[:2], np.bool_)
    for changed in variants:
        rendered = render(changed, second, binary=binary)
        change = _largest(np.asarray(cv2.absdiff(rendered, clean)))
        mask = np.asarray(change >= VISIBLE_LEVELS)
        count = int(mask.sum())
        if count >= min_pixels and float(change[mask].mean()) >= min_change:
            break
    return SyntheticPair(
        reference=capture(render(template, first, binary=binary), first, binary=binary),
        target=capture(rendered, second, binary=binary),
        mask=mask,
        pose=second.pose @ np.linalg.inv(first.pose),
        category=category,
    )


def _largest(channels: Image) -> Image:
    """The largest of three channels (H, W); several times faster than a maximum over the last axis."""
    return np.asarray(np.maximum(np.maximum(channels[..., 0], channels[..., 1]), channels[..., 2]))
