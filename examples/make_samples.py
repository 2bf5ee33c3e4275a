"""Make the sample pairs of this folder: a board with a defect, the same board without, a printed surface with one.

    python examples/make_samples.py

Writes PNG pictures, masks and pairs.jsonl beside itself; the same seed writes the same files.
"""

from pathlib import Path

import cv2
import numpy as np

from differad.core import Pair
from differad.data.manifest import write_pairs
from differad.images import write_image
from differad.synthesis.boards import BoardStyle
from differad.synthesis.camera import Nuisance
from differad.synthesis.pairs import SyntheticPair, make_pair

HERE = Path(__file__).parent
SEED = 5
# Two flat colours and a steady fixture: a picture that a viewer reads at once and that PNG packs well.
STYLE = BoardStyle((24, 78, 52), (205, 168, 96), binary=False)
STEADY = Nuisance(
    shift=3, angle=0.4, scale=0.004, gain=0.1, offset=6, gradient=0, noise=0.5, elastic_warp=0.5, etch=0.3, jpeg=0
)
LEVELS = 24


def main() -> None:
    """Draw, reduce to few colours, write."""
    defect = draw("board", anomalous=True)
    normal = draw("board", anomalous=False)
    surface = draw("printed", anomalous=True)
    write_image(HERE / "board_good.png", coarse(defect.reference))
    write_image(HERE / "print_good.png", coarse(surface.reference))
    pairs = [
        save("board_defect", defect, "board_good.png", "board"),
        save("board_normal", normal, "board_good.png", "board"),
        save("print_defect", surface, "print_good.png", "print"),
    ]
    write_pairs(HERE / "pairs.jsonl", pairs)


def draw(category: str, *, anomalous: bool) -> SyntheticPair:
    """One seed for all: a defect and a normal target then show the same part."""
    return make_pair(np.random.default_rng(SEED), category, anomalous=anomalous, nuisance=STEADY, style=STYLE)


def save(name: str, drawn: SyntheticPair, reference: str, category: str) -> Pair:
    """Write the target and, for a defect, its mask; return the pair by its paths."""
    write_image(HERE / f"{name}.png", coarse(drawn.target))
    mask = HERE / f"{name}_mask.png" if drawn.mask.any() else None
    if mask is not None:
        write_image(mask, np.repeat(drawn.mask[..., None], 3, axis=2).astype(np.uint8) * 255)
    return Pair(HERE / reference, HERE / f"{name}.png", name, category, drawn.boxes, mask)


def coarse(picture: np.ndarray) -> np.ndarray:
    """Fewer grey levels, softened noise: a third of the bytes."""
    soft = cv2.medianBlur(picture, 3)
    step = 256 // LEVELS
    return np.clip(soft // step * step + step // 2, 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
