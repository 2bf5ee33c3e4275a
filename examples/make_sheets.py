"""Contact sheets of synthetic pairs: every kind of defect, and every kind of nuisance.

    python examples/make_sheets.py docs/images

Writes defects.jpg (reference | target, the true box on the target) and nuisance.jpg (one cause only, at its bounds).
"""

import sys
from dataclasses import fields, replace
from itertools import count, islice
from pathlib import Path

import cv2
import numpy as np

from differad.drawing import draw_boxes
from differad.images import RGB, write_image
from differad.synthesis.camera import Nuisance, sample_view
from differad.synthesis.draw import KINDS, PairGenerator, SynthesisOptions, usual_nuisance
from differad.synthesis.normals import NORMALS
from differad.synthesis.pairs import MARGIN_SHARE, render_pair

SIZE, LABEL, EACH = 160, 118, 5
# Fields of Nuisance that apply only to boards; the kind "etched" shows them.
OF_BOARDS = {"shimmer", "swell", "etch"}


def main() -> None:
    """Write both sheets to the folder of the first argument."""
    folder = Path(sys.argv[1])
    write_image(folder / "defects.jpg", np.vstack([defects_of(kind) for kind in KINDS]))
    causes = [field.name for field in fields(Nuisance) if field.name not in OF_BOARDS]
    write_image(folder / "nuisance.jpg", np.vstack([nuisance_of(cause) for cause in causes]))


def defects_of(kind: str) -> RGB:
    """A row of pairs that show one kind of defect."""
    generator = PairGenerator(
        SynthesisOptions(seed=KINDS.index(kind), size=SIZE, normal_share=0, kinds=(kind,), nuisance=0.5)
    )
    generated = (generator.generate(index) for index in count())
    pairs = list(islice((pair for pair in generated if pair.kind == kind), EACH))
    return row(kind, [(pair.reference, draw_boxes(pair.target, truth=pair.boxes)) for pair in pairs])


def nuisance_of(cause: str) -> RGB:
    """A row of normal pairs that differ by one cause, at twice its usual bound."""
    bounds = replace(usual_nuisance(SIZE, 2.0), jpeg=1.0)
    alone = Nuisance(**{f.name: getattr(bounds, f.name) if f.name == cause else 0.0 for f in fields(Nuisance)})
    still = Nuisance(**{f.name: 0.0 for f in fields(Nuisance)})
    margin = round(MARGIN_SHARE * SIZE)
    images = []
    for number, name in enumerate(list(NORMALS)[-EACH:]):
        rng = np.random.default_rng(number)
        part = NORMALS[name](rng, SIZE + 2 * margin)
        views = tuple(sample_view(rng, SIZE, margin, nuisance) for nuisance in (still, alone))
        pair = render_pair(part, part, (), views, category=name)
        images.append((pair.reference, pair.target))
    return row(cause, images)


def row(name: str, pairs: list[tuple[RGB, RGB]]) -> RGB:
    """A row of a label and the pairs."""
    label = np.full((SIZE, LABEL, 3), 255, np.uint8)
    cv2.putText(label, name, (4, SIZE // 2), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (40, 40, 40), 1, cv2.LINE_AA)
    gap = np.full((SIZE, 6, 3), 255, np.uint8)
    line = np.hstack([label, *(image for pair in pairs for image in (*pair, gap))])
    return np.vstack([line, np.full((4, line.shape[1], 3), 255, np.uint8)])


if __name__ == "__main__":
    main()
