"""Miniature data sets whose images differ as real parts do."""

import numpy as np
from PIL import Image

SIZE = 96


def part(seed, size=SIZE):
    """A part (size, size, 3): blocks of light drawn from `seed`, so that two parts are no near-duplicates."""
    blocks = np.random.default_rng(seed).integers(30, 225, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(blocks).resize((size, size), Image.Resampling.BICUBIC))


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def marked(box, size=SIZE):
    mask = np.zeros((size, size), np.uint8)
    x1, y1, x2, y2 = box
    mask[y1:y2, x1:x2] = 255
    return mask


def damage(pixels, box):
    """The part with a spot."""
    x1, y1, x2, y2 = box
    spoilt = pixels.copy()
    spoilt[y1:y2, x1:x2] = 255
    return spoilt


def mvtec(root, categories=("nut", "tile"), train=4, good=2, bad=3):
    """MVTec AD's layout; defect `n` is on a copy of train part `n`, so that its nearest reference is known."""
    for first, category in enumerate(categories):
        parts = [part(100 * first + number) for number in range(train + good)]
        for number in range(train):
            save(root / category / f"train/good/{number:03}.png", parts[number])
        for number in range(good):
            save(root / category / f"test/good/{number:03}.png", parts[train + number])
        for number in range(bad):
            box = (10 + number, 20, 30 + number, 36)
            save(root / category / f"test/scratch/{number:03}.png", damage(parts[number], box))
            save(root / category / f"ground_truth/scratch/{number:03}_mask.png", marked(box))
    return root
