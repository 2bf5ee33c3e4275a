"""The embedded policy: pairs/s of its pair features, cold start and reinforcement learning, on a device and on all cores.

A stage of gpu.py. Pair features are measured in parts: the cores' part (reading, resizing, registration), the device's part, and
everything on the cores. Training runs the recipes by `train_sft` and `train_rl`, with features on disk, and a single step with
its batch in memory. The CPU measurement runs in its own process, which sees no device.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from differad.answers.resize import ResizeRule
from differad.core import Pair
from differad.data.manifest import read_pairs
from differad.images import read_images
from differad.locators.threads import usable_cores
from differad.locators.tiny.batched import BatchedPairFeatures
from differad.locators.tiny.evidence import AREA, PATCH
from differad.locators.tiny.known import append_to_index
from differad.locators.tiny.pairs import resized
from differad.locators.tiny.preparing import Task, own_processes, prepare
from differad.synthesis.draw import SynthesisOptions
from differad.synthesis.run import synthesize
from differad.training.policy import open_checkpoint
from differad.training.recipe import RlRecipe, SftRecipe, load_recipe
from differad.training.rl import train_rl
from differad.training.sft import build_trainer, train_sft

RECIPES = Path(__file__).resolve().parents[1] / "recipes" / "tiny"
# Seconds of loading before a measurement on the CPU.
LOADING = 25.0
SMALL = (
    "model.tiny={hidden_size: 32, heads: 2, layers: 1, channels: 8, blocks: 1}",
    "model.min_pixels=16384",
    "model.max_pixels=16384",
)


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurements: generated pairs, pairs per batch of features and of training, seconds of a training run."""

    pairs: int
    side: int
    area: int
    evidence_batch: int
    batch: int
    seconds: float
    model: tuple[str, ...] = ("model.tiny={reading: 0, comparer: null}",)


FULL = Sizes(pairs=128, side=448, area=AREA, evidence_batch=16, batch=128, seconds=8.0)
TINY = Sizes(pairs=16, side=96, area=128 * 128, evidence_batch=2, batch=8, seconds=0.5, model=SMALL)


def rows(context: Any) -> Iterator[dict[str, Any]]:
    """One row per measurement, while the stage has time."""
    sizes = TINY if context.tiny else FULL
    cores = 2 if context.tiny else usable_cores()
    folder = Path(context.folder)
    options = SynthesisOptions(seed=1, size=sizes.side, siblings=0.5, aspect=2.5)
    with _light_workers():
        generated = synthesize(options, sizes.pairs, folder / "pairs", workers=cores, progress=False)
    yield {
        "what": "pairs drawn",
        "cores": cores,
        "pairs_per_s": generated.pairs_per_second,
        "seconds": generated.seconds,
    }
    pairs = list(read_pairs(generated.manifest))
    rule = ResizeRule(PATCH * 4, sizes.area, sizes.area, least_side=PATCH)
    yield _evidence_on_device(context, sizes, pairs, rule)
    yield from _evidence_on_cores(context, pairs, rule, folder, cores)
    for measure in (_step, _cold_start, _reinforcement):
        if context.remaining() < 2 * sizes.seconds and not context.tiny:
            return
        yield {"device": context.device.type, **measure(sizes, folder, context.device)}
    if context.device.type != "cpu" and context.remaining() > LOADING + 3 * sizes.seconds:
        yield from _on_cpu(folder, cores, context.remaining())


@contextmanager
def _light_workers() -> Iterator[None]:
    """Processes started inside the block do not import the main program and torch, which they do not need."""
    program = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = program


def _evidence_on_device(context: Any, sizes: Sizes, pairs: Sequence[Pair], rule: ResizeRule) -> dict[str, Any]:
    """Pair features of batches of images in memory, returned to memory."""
    images = [
        [resized(image, rule) for image in read_images(p.reference, p.target)]
        for p in pairs[: 4 * sizes.evidence_batch]
    ]
    shape, _ = Counter(target.shape for _, target in images).most_common(1)[0]
    alike = [both for both in images if both[0].shape == both[1].shape == shape]
    images = [alike[number % len(alike)] for number in range(sizes.evidence_batch)]
    pixels = np.ones((shape[0] // 8, shape[1] // 8), np.float32), np.ones((shape[0] // 16, shape[1] // 16), np.float32)
    evidence = BatchedPairFeatures(context.device)
    context.reset_peak()
    seconds = context.seconds(
        lambda: evidence([r for r, _ in images], [t for _, t in images], [pixels] * len(images)),
        repeats=2 if context.tiny else 7,
    )
    return {
        "what": "evidence, batched",
        "device": context.device.type,
        "batch": len(images),
        "seconds": seconds,
        "pairs_per_s": len(images) / seconds,
        "peak_gib": context.peak_gib(),
    }


def _evidence_on_cores(
    context: Any, pairs: Sequence[Pair], rule: ResizeRule, folder: Path, cores: int
) -> Iterator[dict[str, Any]]:
    """In running processes: the cores' part of a pair, and all of its work."""
    with _light_workers(), own_processes(cores) as pool:
        for what, whole in (("evidence, the cores' part", False), ("evidence, all on the cores", True)):
            if context.remaining() < 5 and not context.tiny:
                return
            tasks = [Task(p.reference, p.target, rule, folder / f"warm {whole}", whole) for p in pairs]
            list(pool.map(prepare, tasks[: 2 * cores]))
            start = time.perf_counter()
            cache = folder / f"timed {whole}"
            outcomes = list(pool.map(prepare, [replace(task, cache=cache) for task in tasks]))
            seconds = time.perf_counter() - start
            if whole:  # training below uses these
                append_to_index(cache, [(each.described, each.key) for each in outcomes if each.described])
            yield {"what": what, "cores": cores, "seconds": seconds, "pairs_per_s": len(pairs) / seconds}


def _overrides(sizes: Sizes, folder: Path, name: str) -> list[str]:
    return [
        f"out={folder / name}",
        f"data.pairs=[{folder / 'pairs' / 'pairs.jsonl'}]",
        f"data.evidence={folder / 'timed True'}",
        "held_out.pairs=[]",
        f"train.minutes={sizes.seconds / 60}",
        "train.steps=-1",
        "train.epochs=1000",
        f"train.batch_size={sizes.batch}",
        "train.save_every=100000",
        "train.log_every=1000",
        "train.report_to=[]",
    ]


def _loaders() -> int:
    """Number of data loader processes, limited by shared memory."""
    shared = Path("/dev/shm")
    capacity = int(shutil.disk_usage(shared).free / 2**20 / 300) if shared.is_dir() else 0
    return max(0, min(8, usable_cores() - 1, capacity))


def _step(sizes: Sizes, folder: Path, device: torch.device) -> dict[str, Any]:
    """One step of the cold start with its batch on the device: forward, backward, optimiser."""
    recipe = load_recipe(
        RECIPES / "sft.yaml", SftRecipe, [*sizes.model, *_overrides(sizes, folder, f"{device.type}-step")]
    )
    checkpoint = open_checkpoint(recipe.model, recipe.out, 0)
    checkpoint.processor.image_processor.cache = recipe.data.evidence
    trainer = build_trainer(recipe, checkpoint, [])
    trainer.model.to(device)
    batch = trainer.data_collator(
        [trainer.train_dataset[i] for i in range(min(sizes.batch, len(trainer.train_dataset)))]
    )
    batch = {name: value.to(device) for name, value in batch.items()}
    optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1e-4, fused=device.type == "cuda")
    trainer.model.train()

    def step() -> float:
        loss = trainer.compute_loss(trainer.model, dict(batch))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    step()
    taken = []
    until = time.perf_counter() + sizes.seconds / 2
    while len(taken) < 3 or time.perf_counter() < until:
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    seconds = float(np.median(taken))
    pairs = len(batch["image_grid_thw"]) // 2
    return {
        "what": "cold start, one step in memory",
        "batch": pairs,
        "seconds": seconds,
        "pairs_per_s": pairs / seconds,
    }


def _cold_start(sizes: Sizes, folder: Path, device: torch.device) -> dict[str, Any]:
    """The recipe's cold start with its data loader, features on disk."""
    loaders = 0 if sizes is TINY else _loaders()
    own = [*sizes.model, *_overrides(sizes, folder, f"{device.type}-sft"), f"train.workers={loaders}"]
    summary = train_sft(load_recipe(RECIPES / "sft.yaml", SftRecipe, own))
    speed = summary["steps"] / summary["seconds"]
    return {
        "what": "cold start, as trained",
        "batch": sizes.batch,
        "loaders": loaders,
        "steps": summary["steps"],
        "seconds": 1 / speed,
        "pairs_per_s": sizes.batch * speed,
    }


def _reinforcement(sizes: Sizes, folder: Path, device: torch.device) -> dict[str, Any]:
    """The recipe's reinforcement learning from that cold start, with groups of eight."""
    own = [
        f"model.checkpoint={folder / f'{device.type}-sft' / 'model'}",
        *_overrides(sizes, folder, f"{device.type}-rl"),
    ]
    recipe = load_recipe(RECIPES / "rl.yaml", RlRecipe, own)
    summary = train_rl(recipe)
    speed = summary["steps"] / summary["seconds"]
    return {
        "what": "reinforcement, as trained",
        "answers": sizes.batch,
        "steps": summary["steps"],
        "seconds": 1 / speed,
        "answers_per_s": sizes.batch * speed,
        "pairs_per_s": sizes.batch / recipe.grpo.generations * speed,
    }


def _on_cpu(folder: Path, cores: int, seconds: float) -> Iterable[dict[str, Any]]:
    """The same on the CPU, in a process that sees no device; returns the rows printed within the time."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(cores)}
    command = [sys.executable, __file__, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        text, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        text, _ = process.communicate()
    lines = [line for line in text.splitlines(keepends=True) if line.startswith("{") and line.endswith("\n")]
    return [{"device": "cpu", "cores": cores, **json.loads(line)} for line in lines]


def main(folder: Path) -> None:
    """Measure training on the CPU with existing pairs and features; print one row per line."""
    for measure in (_step, _cold_start, _reinforcement):
        print(json.dumps(measure(FULL, folder, torch.device("cpu"))), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
