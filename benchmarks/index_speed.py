"""Time to build pairs from 50,000 files, whether it grows linearly, and the time to re-encode the images.

    python benchmarks/index_speed.py [--json] [--sizes 12500 25000 50000] [--side 512]

Files in MVTec AD's layout are hard links to a few generated PNG textures in 15 categories. Of ten images seven are normal
training images, one is a normal and two are defective test images with masks. They are indexed like by
`differad build mvtec ROOT --lazy`: no image is opened.
Peer: the method's published code, which opens each image and saves it again as PNG. This is measured with Pillow
on one core, on a sample of each texture, and scaled to all images, without masks.
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
FOLDERS = ("train/good",) * 7 + ("test/good",) + ("test/scratch",) * 2
FILES_PER_ROUND = 12
REPEATS, SAMPLE = 3, 60


def write_images(folder, side):
    """Write normal images, the same with a spot, and its mask, all with sides of `side` pixels, as link targets."""
    normal, defective = [], []
    for number, kind in enumerate(("board", *TEXTURES)):
        pixels = make_pair(np.random.default_rng(number), kind, anomalous=False).target
        normal.append(folder / f"{kind}.png")
        large = np.array(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))
        Image.fromarray(large).save(normal[-1])
        large[side // 4 : side // 2, side // 4 : side // 2] = 255
        defective.append(folder / f"{kind}_defective.png")
        Image.fromarray(large).save(defective[-1])
    mask = np.zeros((side, side), np.uint8)
    mask[side // 4 : side // 2, side // 4 : side // 2] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return normal, defective, folder / "mask.png"


def make_data_set(root, files, normal, defective, mask):
    """Make about `files` links below `root`; return their number, and the number of images among them."""
    rounds = files // (FILES_PER_ROUND * CATEGORIES)
    for category in range(CATEGORIES):
        top = root / f"category_{category:02}"
        for folder in (*set(FOLDERS), "ground_truth/scratch"):
            (top / folder).mkdir(parents=True)
        for number in range(rounds * len(FOLDERS)):
            folder = FOLDERS[number % len(FOLDERS)]
            sources = defective if folder == "test/scratch" else normal
            (top / folder / f"{number:05}.png").hardlink_to(sources[number % len(sources)])
            if folder == "test/scratch":
                (top / f"ground_truth/scratch/{number:05}_mask.png").hardlink_to(mask)
    return rounds * FILES_PER_ROUND * CATEGORIES, rounds * len(FOLDERS) * CATEGORIES


def measure_build(root, folder):
    """Median seconds of a lazy build, and its number of pairs."""
    lazy = BuildOptions(Pairing("random", normal_share=None), boxes=False, sizes=False)
    times = []
    for repeat in range(REPEATS):
        start = time.perf_counter()
        built = build("mvtec", root, folder / f"{root.name}_{repeat}", lazy, progress=False)
        times.append(time.perf_counter() - start)
    return statistics.median(times), len(built.pairs)


def measure_encoding(paths, folder):
    """Seconds to open one image and save it as PNG."""
    start = time.perf_counter()
    for path in paths:
        with Image.open(path) as image:
            image.convert("RGB").save(folder / "again.png")
    return (time.perf_counter() - start) / len(paths)


def measure(sizes, side, folder):
    normal, defective, mask = write_images(folder, side)
    rows = []
    for size in sizes:
        root = folder / f"set_{size}"
        files, images = make_data_set(root, size, normal, defective, mask)
        seconds, pairs = measure_build(root, folder)
        rows.append({"files": files, "images": images, "pairs": pairs, "seconds": round(seconds, 2)})
        rows[-1]["microseconds_a_file"] = round(1e6 * seconds / files, 1)
    seconds_per_image = measure_encoding([normal[number % len(normal)] for number in range(SAMPLE)], folder)
    return {
        "rows": rows,
        "image_side": side,
        "growth": round(rows[-1]["microseconds_a_file"] / rows[0]["microseconds_a_file"], 2),
        "encode_ms_an_image": round(1000 * seconds_per_image, 1),
        "encode_seconds_scaled": round(seconds_per_image * rows[-1]["images"]),
        "times_faster_than_encoding": round(seconds_per_image * rows[-1]["images"] / rows[-1]["seconds"]),
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
