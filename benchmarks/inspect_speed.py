"""Many targets against one reference: a cached prompt prefix up to the reference, beside plain `model.generate`.

    python benchmarks/inspect_speed.py [--targets 200] [--batch 16] [--threads 2] [--out docs/inspect_speed.md]

Both sides are the same locator on the same checkpoint (a Qwen2-VL of random weights, float32) and read the same files; the
plain one has `remember_prefixes=0`. They alternate after some targets, so that other work on the machine affects both
alike. Answers are compared as text. Memory is measured in one process per side.
"""

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from differad.core import Pair
from differad.locators.local import LocalLocator, LocalOptions
from differad.training.scratch import build_small_qwen2_vl
from grpo_speed import ANSWER, SCRATCH, Clock, added_memory, write_page

SIDES = {"plain generate": 0, "cached prefix": 4}
PARTS = ("vision", "language", "other")


@dataclass(frozen=True)
class Case:
    """A row of the table: `targets` targets, `batch` at once, images of `tokens` tokens."""

    tokens: int
    batch: int
    targets: int


def write_targets(folder: Path, side: int, count: int) -> list[Pair]:
    """Images of noise, side x side, each target brighter in one region."""
    random = np.random.default_rng(0)
    good = random.integers(0, 200, (side, side, 3), np.uint8)
    Image.fromarray(good).save(folder / "good.png", compress_level=1)
    pairs = []
    for number in range(count):
        target = good.copy()
        x, y = random.integers(0, side - side // 4, 2)
        target[y : y + side // 4, x : x + side // 4] += 50
        Image.fromarray(target).save(folder / f"{number}.png", compress_level=1)
        pairs.append(Pair(folder / "good.png", folder / f"{number}.png", id=str(number)))
    return pairs


def make_locator(folder: Path, side: str, batch: int) -> LocalLocator:
    """One side's locator."""
    return LocalLocator(
        str(folder),
        LocalOptions(device="cpu", batch_size=batch, max_new_tokens=ANSWER, remember_prefixes=SIDES[side]),
    )


def watched(locator: LocalLocator) -> Clock:
    """A clock of the time of the locator's vision tower and language model."""
    clock, model = Clock(), locator._model.model
    clock.follow("vision", model.visual)
    clock.follow("language", model.language_model)
    return clock


def measure(case: Case, threads: int) -> tuple[dict[str, dict[str, float]], int]:
    """Seconds a target of each side, whole and by part, and the number of differing answers."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = write_targets(folder, 28 * round(case.tokens**0.5), case.targets + 2)
        build_small_qwen2_vl(folder / "model", SCRATCH, 0)
        locators = {side: make_locator(folder / "model", side, case.batch) for side in SIDES}
        for locator in locators.values():  # warms up, and is the first sight of the reference
            list(locator.locate_many(pairs[:2]))
        clocks = {side: watched(locator) for side, locator in locators.items()}
        taken = dict.fromkeys(SIDES, 0.0)
        answers: dict[str, list[str]] = {side: [] for side in SIDES}
        turn = 2 * case.batch
        for begin in range(2, case.targets + 2, turn):
            for side, locator in locators.items():
                start = time.perf_counter()
                answers[side] += [location.answer for location in locator.locate_many(pairs[begin : begin + turn])]
                taken[side] += time.perf_counter() - start
        times = {}
        for side in SIDES:
            parts = clocks[side].seconds
            parts["other"] = taken[side] - parts["vision"] - parts["language"]
            times[side] = {"whole": taken[side] / case.targets} | {part: parts[part] / case.targets for part in PARTS}
    plain, cached = answers.values()
    return times, sum(first != second for first, second in zip(plain, cached, strict=True))


def memory_of(side: str, batch: int, threads: int) -> float:
    """Peak MiB that some batches of one side add to its process (Linux)."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = write_targets(folder, 448, 3 * batch)
        build_small_qwen2_vl(folder / "model", SCRATCH, 0)
        locator = make_locator(folder / "model", side, batch)
        return added_memory(lambda: list(locator.locate_many(pairs)))


def cases(targets: int, batch: int) -> list[Case]:
    """The main case first, then growth with the targets at once and with the images' size."""
    few = max(2, targets // 8)
    smaller = sorted({1, 4, batch} - {batch})
    return [
        Case(256, batch, targets),
        *(Case(256, b, few) for b in smaller),
        Case(144, batch, few),
        Case(64, batch, few),
    ]


def report(arguments: argparse.Namespace) -> str:
    load = os.getloadavg()[0]
    memory = {}
    for side in SIDES:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            memory[side] = pool.submit(memory_of, side, arguments.batch, arguments.threads).result()
    blocks: list[str] = []
    growth = [
        "| tokens an image | targets at once | plain generate, ms | cached prefix, ms | ratio |",
        "|---|---|---|---|---|",
    ]
    differing = 0
    for case in cases(arguments.targets, arguments.batch):
        times, count = measure(case, arguments.threads)
        differing += count
        plain, cached = (times[side]["whole"] for side in SIDES)
        row = f"| {case.tokens} | {case.batch} | {1e3 * plain:.0f} | {1e3 * cached:.0f} | **{plain / cached:.2f} x** |"
        growth.append(row)
        print(row, file=sys.stderr)
        if not blocks:
            blocks = [parts_table(times, memory)]
    return "\n\n".join([head(arguments, differing, load), *blocks, "\n".join(growth)]) + "\n"


def head(arguments: argparse.Namespace, differing: int, load: float) -> str:
    return (
        f"{arguments.targets} targets against one reference, {arguments.batch} at once on both sides, images of 256 tokens, "
        f"answers of at most {ANSWER} tokens, {arguments.threads} threads; {differing} answers differ, of all rows. Load of the "
        f"machine {load:.1f} before, {os.getloadavg()[0]:.1f} after, on {os.cpu_count()} cores. Decoding takes the same time on "
        "both sides; its share falls with the number of targets at once."
    )


def parts_table(times: dict[str, dict[str, float]], memory: dict[str, float]) -> str:
    lines = ["| milliseconds a target | plain generate | cached prefix | ratio |", "|---|---|---|---|"]
    for part in ("whole", *PARTS):
        plain, cached = (times[side][part] for side in SIDES)
        name = "**whole**" if part == "whole" else part
        lines.append(f"| {name} | {1e3 * plain:.1f} | {1e3 * cached:.1f} | {plain / cached:.2f} x |")
    plain, cached = (memory[side] for side in SIDES)
    return "\n".join([*lines, f"| peak memory, MiB | {plain:.0f} | {cached:.0f} | {plain / cached:.2f} x |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=int, default=200, help="targets of the main case, an eighth for the others")
    parser.add_argument("--batch", type=int, default=16, help="targets answered at once in the main case")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--out", type=Path, help="write the tables to this Markdown file too")
    arguments = parser.parse_args()
    text = report(arguments)
    print(text)
    if arguments.out:
        write_page(arguments.out, "A cached prefix: many targets against one reference", "inspect_speed.py", text)


if __name__ == "__main__":
    main()
