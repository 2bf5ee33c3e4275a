"""A hole of 5 pixels on a sharp synthetic board of 20 megapixels: whether it is found, in what time and memory.

python benchmarks/large_images.py --model auto --ending jpg
"""

import argparse
import resource
import tempfile
from pathlib import Path

import cv2
import numpy as np

from differad import Pair, load_locator
from differad.images import write_image
from differad.synthesis.pairs import make_pair

# Boards side by side, each of this side: 5,472 x 3,648 pixels.
ACROSS, DOWN, SIDE = 6, 4, 912
# Pose of the target: rotated, scaled and shifted by a few pixels.
POSE = np.array([[1.001, 0.002, 4.3], [-0.002, 1.0005, -6.2]])
NOISE, RADIUS, INSET, FLAT = 3, 2, 500, 41


def generate() -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """The reference, the target, and the position (x, y) of its hole: where the board is plainest."""
    rng = np.random.default_rng
    tiles = [make_pair(rng(100 + i), "board", anomalous=False, size=SIDE).reference for i in range(ACROSS * DOWN)]
    reference = np.vstack([np.hstack(tiles[row * ACROSS : (row + 1) * ACROSS]) for row in range(DOWN)])
    noisy = np.clip(reference + rng(1).normal(0, NOISE, reference.shape), 0, 255).astype(np.uint8)
    target = cv2.warpAffine(noisy, POSE, noisy.shape[1::-1], borderMode=cv2.BORDER_REFLECT)
    grey = cv2.cvtColor(target, cv2.COLOR_RGB2GRAY).astype(np.float32)
    variance = cv2.blur(grey * grey, (FLAT, FLAT)) - cv2.blur(grey, (FLAT, FLAT)) ** 2
    inner = variance[INSET:-INSET, INSET:-INSET]
    y, x = (int(at) + INSET for at in np.unravel_index(inner.argmin(), inner.shape))
    level = 0 if grey[y, x] > 128 else 255
    cv2.circle(target, (x, y), RADIUS, (level,) * 3, -1, cv2.LINE_AA)
    return reference, target, (x, y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="auto")
    parser.add_argument("--ending", default="jpg", choices=["jpg", "png"])
    parser.add_argument("--folder", type=Path, help="where the two images are stored; generated if missing")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp())
    files = [folder / f"{name}.{arguments.ending}" for name in ("reference", "target")]
    if not all(file.exists() for file in files):
        reference, target, place = generate()
        for file, image in zip(files, (reference, target), strict=True):
            write_image(file, image)
        print(f"hole at {place}; run again with --folder {folder} for memory without the generator")
    locator = load_locator(arguments.model)
    for _ in range(3):
        location = locator.locate(Pair(*files))
        print(
            f"{location.seconds:.2f} s, boxes {location.boxes.round().tolist()}, confidence {location.confidence:.2f}"
        )
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
