"""Time and memory of tasks on many pairs: reading, exporting, scoring, continuing an evaluation, pairing by appearance.

    python benchmarks/many_pairs.py [--pairs 10000 100000 300000] [--images 5000 10000 20000 50000] [--json]

Each task runs in a separate process; its time and peak resident memory are measured, including Python's start: about
0.6 s and 80 MiB. The pairs share a few images, since only their number matters. A continued evaluation already has all its
answers and is not scored, so it measures the time to find that out. References are found like in `differad build
folder --all-normals`, among images of 64 x 64 pixels that all differ.
Peer: none; each number is compared with that for fewer pairs. Linux only.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from differad import Location, Pair, read_pairs
from differad.cli.main import main as run_differad
from differad.evaluation.run import locate_to_file

SIDE, IMAGES = 64, 50
TASKS = ("read", "export coco", "score", "evaluate", "evaluate, gone on with")


class InstantLocator:
    """A locator that takes no time."""

    name = "answering"

    def locate_many(self, pairs: Iterator[Pair]) -> Iterator[Location]:
        for _ in pairs:
            yield Location(np.array([[4.0, 4, 30, 30]]), np.array([0.5]), 0.5, model=self.name)


def write_image(path: Path, rng: np.random.Generator, base: np.ndarray) -> None:
    """Write an image that resembles `base` (8, 8, 3) and differs from all others."""
    small = np.clip(base + rng.integers(-20, 20, base.shape), 0, 255).astype(np.uint8)
    cv2.imwrite(str(path), cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC))


def write_manifest(folder: Path, count: int) -> None:
    """Write `pairs.jsonl` and `predictions.jsonl` for `count` pairs, every second one anomalous."""
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        write_image(folder / f"{number}.png", rng, rng.integers(60, 200, (8, 8, 3)))
    with (folder / "pairs.jsonl").open("w") as pairs, (folder / "predictions.jsonl").open("w") as predictions:
        for number in range(count):
            pair = {"id": f"folder/part/{number:07}", "category": "part", "reference": "0.png", "kind": "scratch"}
            pair |= {"target": f"{number % IMAGES}.png", "boxes": [[3, 4, 20, 30]] * (number % 2)}
            pairs.write(json.dumps(pair) + "\n")
            location = Location(
                np.array([[3.0 + number % 7, 4, 20, 30]] * (number % 3 > 0)), confidence=number % 97 / 97
            )
            predictions.write(json.dumps({"id": pair["id"], **location.to_dict()}) + "\n")


def write_folder(folder: Path, count: int) -> None:
    """Write `count` normal images."""
    rng = np.random.default_rng(1)
    base = rng.integers(60, 200, (8, 8, 3))
    (folder / "good").mkdir(parents=True)
    for number in range(count):
        write_image(folder / "good" / f"{number:06}.png", rng, base)


def run_task(task: str, folder: Path) -> None:
    """Run one task as a user would."""
    pairs, predictions = folder / "pairs.jsonl", folder / "predictions.jsonl"
    if task == "read":
        assert sum(1 for _ in read_pairs(pairs))
    elif task.startswith("evaluate"):
        done = locate_to_file(
            read_pairs(pairs), InstantLocator(), folder / "answers.jsonl", manifests=[pairs], progress=False
        )
        assert bool(done["kept"]) == task.endswith("gone on with")
    else:
        arguments = {
            "export coco": ["export", "coco", pairs, folder / "coco"],
            "score": ["score", pairs, predictions, "--json"],
            "build folder": ["build", "folder", folder, "--all-normals", "--out", folder.with_name("built")],
        }
        sys.argv = ["differad", *map(str, arguments[task])]
        run_differad()


def measure(task: str, folder: Path) -> dict[str, float]:
    """Seconds and peak MiB of one task in a separate process."""
    start = time.perf_counter()
    command = [sys.executable, __file__, "--task", task, "--folder", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{task}: failed; python benchmarks/many_pairs.py --task '{task}' --folder … says why")
    return {"seconds": round(time.perf_counter() - start, 1), "mib": round(usage.ru_maxrss / 1024)}


def measure_all(pairs: list[int], images: list[int]) -> dict[str, list[dict[str, object]]]:
    rows: list[dict[str, object]] = []
    for count in pairs:
        with tempfile.TemporaryDirectory() as name:
            write_manifest(Path(name), count)
            rows += [{"what": task, "pairs": count, **measure(task, Path(name))} for task in TASKS]
    for count in images:
        with tempfile.TemporaryDirectory() as name:
            write_folder(Path(name) / "parts", count)
            rows.append({"what": "build folder", "pairs": count, **measure("build folder", Path(name) / "parts")})
    return {"rows": sorted(rows, key=lambda row: [*TASKS, "build folder"].index(str(row["what"])))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="*", default=[10_000, 100_000, 300_000])
    parser.add_argument("--images", type=int, nargs="*", default=[5_000, 10_000, 20_000, 50_000])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--task", choices=[*TASKS, "build folder"], help="run only this task, without measuring")
    parser.add_argument("--folder", type=Path, help="input folder of --task")
    arguments = parser.parse_args()
    if arguments.task:
        run_task(arguments.task, arguments.folder)
        return
    result = measure_all(arguments.pairs, arguments.images)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print("| what | pairs | seconds | microseconds a pair | MiB at most |\n|---|---|---|---|---|")
    for row in result["rows"]:
        microseconds = 1e6 * row["seconds"] / row["pairs"]
        print(f"| {row['what']} | {row['pairs']:,} | {row['seconds']} | {microseconds:.0f} | {row['mib']} |")


if __name__ == "__main__":
    main()
