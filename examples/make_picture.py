"""The picture of README: a good board, the board to inspect, and what differad marks in it.

python examples/make_picture.py docs/images/example.png
"""

import sys
from pathlib import Path

import cv2
import numpy as np

from differad import Pair, load_locator
from differad.drawing import draw_boxes
from differad.images import read_images, write_image

FOLDER = Path(__file__).parent
SIDE, GAP = 420, 12


def panel(image, title):
    small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    bar = np.full((34, SIDE, 3), 255, np.uint8)
    cv2.putText(bar, title, (2, 23), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (40, 40, 40), 1, cv2.LINE_AA)
    return np.vstack([bar, small])


def main():
    good, test = FOLDER / "board_good.png", FOLDER / "board_defect.png"
    location = load_locator("difference").locate(Pair(good, test))
    reference, target = read_images(good, test)
    found = draw_boxes(target, predicted=location.boxes, scores=location.scores)
    gap = np.full((SIDE + 34, GAP, 3), 255, np.uint8)
    panels = [
        panel(reference, "a good part"),
        panel(target, "the part to inspect"),
        panel(found, "abnormal, and where"),
    ]
    write_image(Path(sys.argv[1]), np.hstack([panels[0], gap, panels[1], gap, panels[2]]))


if __name__ == "__main__":
    main()
