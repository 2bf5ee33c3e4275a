"""A small set of pairs on disk, and a plain locator to run over it."""

import json
import time

import numpy as np
from PIL import Image

from differad.boxes import enclosing
from differad.core import Location
from differad.data.masks import boxes_from_mask
from differad.images import read_images
from differad.locators import attempt

SIDE = 64


class PlainDifference:
    """Marks every pixel that differs; slow on wish, so that a test can stop it in the middle."""

    name = "plain"

    def __init__(self, pause=0.0):
        self.pause = pause
        self.options = pause

    def locate(self, pair):
        reference, target = read_images(pair.reference, pair.target)
        time.sleep(self.pause)
        boxes = enclosing(boxes_from_mask((reference != target).any(axis=2)))
        return Location(boxes, np.ones(len(boxes)), float(len(boxes) > 0), reasoning="it differs", model=self.name)

    def locate_many(self, pairs):
        return (attempt(self, pair) for pair in pairs)


def make_pairs(folder, count, **changes):
    """`count` pairs, every third normal; `changes` maps a pair's number to fields that replace its own."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    good = rng.integers(0, 200, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(good).save(folder / "good.png")
    lines = []
    for number in range(count):
        target, boxes = good.copy(), []
        if number % 3:
            x, y = rng.integers(0, SIDE - 16, 2).tolist()
            target[y : y + 12, x : x + 16] = 255
            boxes = [[x, y, x + 16, y + 12]]
        Image.fromarray(target).save(folder / f"{number}.png")
        record = {
            "id": f"p{number}",
            "category": "ab"[number % 2],
            "reference": "good.png",
            "target": f"{number}.png",
            "boxes": boxes,
        }
        lines.append(json.dumps(record | changes.get(f"p{number}", {})))
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path
