"""How fast a data set of 50,000 files becomes pairs, whether that grows linearly, and what encoding it anew would take.

    python benchmarks/index_speed.py [--json] [--sizes 12500 25000 50000] [--side 512]

Files in MVTec AD's layout are hard links to a few generated PNG textures: 15 categories; of ten images seven are good
ones for training, one is a good and two are defective ones for testing, with masks. Indexed as by
`differad build mvtec ROOT --lazy`: no image is opened.
Peer: what the method's published code does, opening each image and saving it again as PNG. Measured with Pillow
on one core, on a sample of every kind of image, and scaled to all images; masks would come on top.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from differad.data.build import BuildOptions, build
from differad.data.pairing import Pairing
from differad.synthesis.pairs import make_pair
from differad.synthesis.textures import TEXTURES

CATEGORIES = 15
# Of ten images two are defective and have a mask: twelve files.
PLAN = ("train/good",) * 7 + ("test/good",) + ("test/scratch",) * 2
FILES_A_ROUND = 12
REPEATS, SAMPLE = 3, 60


def draw(folder, side):
    """Images, the same ones with a spot and its mask, all of `side` pixels, to be linked to."""
    images, spoilt = [], []
    for number, kind in enumerate(("board", *TEXTURES)):
        pixels = make_pair(np.random.default_rng(number), kind, anomalous=False).target
        images.append(folder / f"{kind}.png")
        large = np.array(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))
        Image.fromarray(large).save(images[-1])
        large[side // 4 : side // 2, side // 4 : side // 2] = 255
        spoilt.append(folder / f"{kind}_spoilt.png")
        Image.fromarray(large).save(spoilt[-1])
    mask = np.zeros((side, side), np.uint8)
    mask[side // 4 : side // 2, side // 4 : side // 2] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return images, spoilt, folder / "mask.png"


def plant(root, files, images, spoilt, mask):
    """Make `files` links below `root`; return how many there are, and how many of them are images."""
    rounds = files // (FILES_A_ROUND * CATEGORIES)
    for category in range(CATEGORIES):
        top = root / f"category_{category:02}"
        for folder in (*set(PLAN), "ground_truth/scratch"):
            (top / folder).mkdir(parents=True)
        for number in range(rounds * len(PLAN)):
            folder = PLAN[number % len(PLAN)]
            shown = spoilt if folder == "test/scratch" else images
            (top / folder / f"{number:05}.png").hardlink_to(shown[number % len(shown)])
            if folder == "test/scratch":
                (top / f"ground_truth/scratch/{number:05}_mask.png").hardlink_to(mask)
    return rounds * FILES_A_ROUND * CATEGORIES, rounds * len(PLAN) * CATEGORIES


def index_seconds(root, folder):
    """Median seconds of a lazy build, and how many pairs it gives."""
    lazy = BuildOptions(Pairing("random", normal_share=None), boxes=False, sizes=False)
    times = []
    for repeat in range(REPEATS):
        start = time.perf_counter()
        built = build("mvtec", root, folder / f"{root.name}_{repeat}", lazy, progress=False)
        times.append(time.perf_counter() - start)
    return statistics.median(times), len(built.pairs)


def encode_seconds(paths, folder):
    """Seconds for one image to be opened and saved as PNG."""
    start = time.perf_counter()
    for path in paths:
        with Image.open(path) as image:
            image.convert("RGB").save(folder / "again.png")
    return (time.perf_counter() - start) / len(paths)


def measure(sizes, side, folder):
    images, spoilt, mask = draw(folder, side)
    rows = []
    for size in sizes:
        root = folder / f"set_{size}"
        files, images = plant(root, size, images, spoilt, mask)
        seconds, pairs = index_seconds(root, folder)
        rows.append({"files": files, "images": images, "pairs": pairs, "seconds": round(seconds, 2)})
        rows[-1]["microseconds_a_file"] = round(1e6 * seconds / files, 1)
    each = encode_seconds([images[number % len(images)] for number in range(SAMPLE)], folder)
    return {
        "rows": rows,
        "image_side": side,
        "growth": round(rows[-1]["microseconds_a_file"] / rows[0]["microseconds_a_file"], 2),
        "encode_ms_an_image": round(1000 * each, 1),
        "encode_seconds_scaled": round(each * rows[-1]["images"]),
        "times_faster_than_encoding": round(each * rows[-1]["images"] / rows[-1]["seconds"]),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--sizes", type=int, nargs="+", default=[12_500, 25_000, 50_000])
    parser.add_argument("--side", type=int, default=512, help="pixels; only the encoding depends on it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments.sizes, arguments.side, Path(folder))
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{'files':>7} {'pairs':>7} {'seconds':>8} {'us a file':>10}")
    for row in result["rows"]:
        print(f"{row['files']:>7} {row['pairs']:>7} {row['seconds']:>8.2f} {row['microseconds_a_file']:>10.1f}")
    print("\n".join(f"{name}: {value}" for name, value in result.items() if name != "rows"))


if __name__ == "__main__":
    main()
