"""Whether an answer stays the same if both images are changed alike, in a way that does not affect the part.

    python benchmarks/invariance.py --pairs 84 --models difference features tiny auto --out docs/invariance.json
    python benchmarks/invariance.py --manifest PAIRS.jsonl … --limit 12

Without a manifest the pairs are synthetic: boards and surfaces whose reference can be aligned, at several sizes, and two parts
of one kind that cannot be. An answer holds where the verdict stays ("not comparable" is one of them) and the first box moves
with the image: IoU of at least 0.7 with the first box of the unchanged pair. Printed is the share of pairs that hold.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from differad import load_locator
from differad.boxes import Boxes, iou
from differad.core import Location, Pair
from differad.data.manifest import read_pairs
from differad.images import read_images
from differad.synthesis.pairs import make_pair
from differad.synthesis.textures import TEXTURES
from differad.synthesis.unaligned import generate_unaligned

Image = NDArray[np.generic]
HOLDS = 0.7
# Each kind of pair, and the sides of those whose reference can be aligned.
KINDS = ("board", "board", "board", *TEXTURES, "unaligned")
SIZES = (448, 640)
BORDER = 0.1


@dataclass(frozen=True)
class Change:
    """What is done to the two images, and where boxes (N, 4) of a target of (width, height) go."""

    reference: Callable[[Image], Image]
    target: Callable[[Image], Image]
    boxes: Callable[[Boxes, tuple[int, int]], Boxes]


def changes() -> dict[str, Change]:
    """Every change by its name."""
    found: dict[str, Change] = {}
    ways = {"bicubic": cv2.INTER_CUBIC, "nearest": cv2.INTER_NEAREST, "area": cv2.INTER_AREA}
    for factor in (1.5, 2.0, 3.0, 0.75):
        for name, how in ways.items():
            resize = partial(resized, factor=factor, how=how)
            found[f"x{factor:g} {name}"] = Change(resize, resize, partial(scaled, factor=factor))
    half, double = (partial(resized, factor=f, how=how) for f, how in ((0.5, cv2.INTER_AREA), (2.0, cv2.INTER_CUBIC)))
    found["reference at half the resolution"] = Change(half, same, unmoved)
    found["target at twice the resolution"] = Change(same, double, partial(scaled, factor=2.0))
    for name, change in {
        "grey": grey,
        "BGR": lambda image: np.ascontiguousarray(image[..., ::-1]),
        "16 bit": lambda image: image.astype(np.uint16) * 257,
        "JPEG 80": jpeg,
        "gamma 0.8": partial(gamma, power=0.8),
        "gamma 1.25": partial(gamma, power=1.25),
    }.items():
        found[name] = Change(change, change, unmoved)
    found["turned by 90 degrees"] = Change(rotated, rotated, rotated_boxes)
    found["mirrored"] = Change(mirrored, mirrored, mirrored_boxes)
    found["border of background"] = Change(bordered, bordered, bordered_boxes)
    return found


def same(image: Image) -> Image:
    return image


def unmoved(boxes: Boxes, _size: tuple[int, int]) -> Boxes:
    return boxes


def resized(image: Image, factor: float, how: int) -> Image:
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=how)


def scaled(boxes: Boxes, _size: tuple[int, int], factor: float) -> Boxes:
    return boxes * factor


def grey(image: Image) -> Image:
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def jpeg(image: Image) -> Image:
    encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    return np.ascontiguousarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1])


def gamma(image: Image, power: float) -> Image:
    return cv2.LUT(image, np.rint(255 * (np.arange(256) / 255) ** power).astype(np.uint8))


def rotated(image: Image) -> Image:
    return cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE)


def rotated_boxes(boxes: Boxes, size: tuple[int, int]) -> Boxes:
    x1, y1, x2, y2 = boxes.T
    return np.stack([size[1] - y2, x1, size[1] - y1, x2], axis=1)


def mirrored(image: Image) -> Image:
    return cv2.flip(image, 1)


def mirrored_boxes(boxes: Boxes, size: tuple[int, int]) -> Boxes:
    x1, y1, x2, y2 = boxes.T
    return np.stack([size[0] - x2, y1, size[0] - x1, y2], axis=1)


def bordered(image: Image) -> Image:
    """With a border of the median colour of its rim, a tenth of its longer side wide."""
    width = border_of(image.shape[:2])
    rim = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    colour = np.median(rim, axis=0).tolist()
    return cv2.copyMakeBorder(image, *[width] * 4, cv2.BORDER_CONSTANT, value=colour)


def border_of(shape: tuple[int, ...]) -> int:
    return round(BORDER * max(shape))


def bordered_boxes(boxes: Boxes, size: tuple[int, int]) -> Boxes:
    return boxes + border_of(size)


@cache
def locator(model: str):
    return load_locator(model, workers=1)


def holds(before: Location, after: Location, moved: Boxes) -> bool:
    """Whether two answers agree; `moved` are the boxes of the first after the change."""
    if (before.valid, before.anomalous) != (after.valid, after.anomalous):
        return False
    return not before.anomalous or float(iou(moved[0], after.boxes[0])) >= HOLDS


def synthetic_pair(number: int) -> Pair:
    """Pair `number`: kinds take turns, every other round is normal, sizes change every second round."""
    turn, kind = number // len(KINDS), KINDS[number % len(KINDS)]
    rng = np.random.default_rng(70_000 + number)
    if kind == "unaligned":
        return generate_unaligned(rng, turn % 2 == 0).as_pair()
    return make_pair(rng, kind, anomalous=turn % 2 == 0, size=SIZES[turn // 2 % len(SIZES)]).as_pair()


def changes_that_hold(task: tuple[Pair | int, str, tuple[str, ...]]) -> dict[str, bool]:
    """Which changes the answer of a model to a pair holds under."""
    cv2.setNumThreads(1)
    source, model, names = task
    pair = synthetic_pair(source) if isinstance(source, int) else source
    reference, target = read_images(pair.reference, pair.target)
    before = locator(model).locate(Pair(reference, target))
    found = {}
    for name in names:
        change = changes()[name]
        after = locator(model).locate(Pair(change.reference(reference), change.target(target)))
        found[name] = holds(before, after, change.boxes(before.boxes, (target.shape[1], target.shape[0])))
    return found


def sources(arguments: argparse.Namespace) -> Iterator[tuple[str, list[Pair | int]]]:
    if not arguments.manifest:
        yield "drawn", list(range(arguments.pairs))
    for path in arguments.manifest:
        pairs = [pair for pair in read_pairs(path) if pair.anomalous is not None]
        yield path.parent.name, pairs[:: max(1, len(pairs) // arguments.limit)] if arguments.limit else pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=84, help="synthetic pairs")
    parser.add_argument(
        "--manifest", type=Path, nargs="+", default=[], help="pairs.jsonl to use instead of synthetic pairs"
    )
    parser.add_argument("--limit", type=int, default=0, help="at most about so many pairs of each manifest; 0: all")
    parser.add_argument("--models", nargs="+", default=["difference", "features", "tiny", "auto"])
    parser.add_argument("--changes", nargs="+", default=list(changes()), choices=list(changes()), metavar="NAME")
    parser.add_argument("--out", type=Path, help="a JSON file for the shares")
    arguments = parser.parse_args()
    shares: dict[str, dict[str, dict[str, float]]] = {}
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for source, pairs in sources(arguments):
            for model in arguments.models:
                tasks = [(pair, model, tuple(arguments.changes)) for pair in pairs]
                results = list(pool.map(changes_that_hold, tasks))
                shares.setdefault(source, {})[model] = {
                    name: sum(r[name] for r in results) / len(results) for name in arguments.changes
                }
                print(f"{source}: {model} done", file=sys.stderr, flush=True)
                if arguments.out:
                    arguments.out.write_text(json.dumps(shares, indent=1) + "\n")
            print(f"\n{source}, {len(pairs)} pairs\n\n| change | {' | '.join(arguments.models)} |")
            print("|---|" + "---|" * len(arguments.models))
            for name in arguments.changes:
                cells = (f"{shares[source][model][name]:.3f}" for model in arguments.models)
                print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
