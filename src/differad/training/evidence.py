"""Compute the pair features of a recipe ahead of training: in batches on an accelerator, or on all cores.

Training computes missing features itself, one pair after another; this is many times as fast. Existing files are reused, so a
second run continues where the first stopped. Files go to the folder `data.evidence`: see locators/tiny/processor.py.
"""

import random
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from differad.answers.resize import ResizeRule
from differad.core import Pair
from differad.data.manifest import read_pairs
from differad.errors import OptionError
from differad.evaluation.selection import labelled_pairs
from differad.locators.threads import usable_cores
from differad.locators.tiny.batched import BatchedPairFeatures
from differad.locators.tiny.cache import pair_features_file, write_pair_features
from differad.locators.tiny.evidence import AREA, PATCH
from differad.locators.tiny.known import append_to_index
from differad.locators.tiny.preparing import Outcome, Prepared, Task, own_processes, prepare
from differad.locators.tiny.processor import MERGE
from differad.progress import track
from differad.training.recipe import Model, Recipe

# Pairs of one shape in a batch: the largest matrix takes 21 MB per pair.
BATCH = 16
# Queued tasks per worker: enough that none waits.
_AHEAD = 4
# Threads that write files.
_WRITERS = 4


@dataclass(frozen=True)
class PairFeatureSummary:
    """Counts of a recipe's pairs: `computed` in this run, `kept` from earlier runs; pairs beyond the time limit in neither."""

    folder: str
    device: str
    pairs: int
    computed: int
    kept: int
    seconds: float
    pairs_per_second: float

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `differad train evidence --json`."""
        return asdict(self)


def compute_pair_features(
    recipe: Recipe, *, workers: int | None = None, minutes: float | None = None, device: str = "auto"
) -> PairFeatureSummary:
    """Compute the features of all pairs of a recipe, also held-out ones, into its folder `data.evidence`, for at most `minutes`.

    `device` is auto (an accelerator if there is one), cpu (everything in `workers` processes) or a torch device; `workers` is the
    number of cores by default. Raises OptionError, ManifestError, ImageError.
    """
    began = time.monotonic()
    folder = recipe.data.evidence
    if folder is None:
        raise OptionError("data.evidence: missing; expected the folder for the pair features of the embedded policy")
    chosen = _device(device)
    rule = _rule(recipe.model)
    pairs = list(_pairs(recipe))
    random.Random(recipe.data.seed).shuffle(pairs)  # an interrupted run then has some pairs of every manifest
    tasks = (Task(p.reference, p.target, rule, folder, chosen is None) for p in pairs)
    deadline = None if minutes is None else began + 60 * minutes
    counts = _run(tasks, len(pairs), folder, workers or usable_cores(), deadline, chosen)
    seconds = time.monotonic() - began
    kept, computed = counts[True], counts[False]
    return PairFeatureSummary(
        str(folder), str(chosen or "cpu"), len(pairs), computed, kept, round(seconds, 3), round(computed / seconds, 2)
    )


def _device(name: str) -> torch.device | None:
    """The device for batches; None for processes on the CPU. Raises OptionError."""
    if name == "auto":
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "cpu":
        return None
    try:
        return torch.device(name)
    except RuntimeError:
        raise OptionError(f"device={name!r}: not known; expected auto, cpu, cuda, cuda:1, …") from None


def _rule(model: Model) -> ResizeRule:
    """The resize rule of the recipe's policy. Raises OptionError for a model that takes no pair features."""
    if model.tiny is not None:
        low, high = AREA if model.min_pixels is None else model.min_pixels, model.max_pixels or AREA
        return ResizeRule(PATCH * MERGE, low, high, least_side=PATCH)
    if model.start is None or not (Path(model.start) / "preprocessor_config.json").is_file():
        raise OptionError("model: no embedded policy; expected model.tiny, or in model.checkpoint the folder of one")
    rule = ResizeRule.from_folder(Path(model.start))
    low, high = model.min_pixels or rule.min_pixels, model.max_pixels or rule.max_pixels
    return ResizeRule(rule.factor, low, high, rule.least_side)


def _pairs(recipe: Recipe) -> Iterator[Pair]:
    yield from labelled_pairs(recipe.held_out.pairs, recipe.held_out.limit)
    yield from islice((pair for manifest in recipe.data.pairs for pair in read_pairs(manifest)), recipe.data.limit)


def _run(
    tasks: Iterator[Task], total: int, folder: Path, workers: int, deadline: float | None, device: torch.device | None
) -> dict[bool, int]:
    """Number of pairs whose features existed (True) and were computed (False)."""
    counts = {True: 0, False: 0}
    index: list[tuple[str, bytes]] = []
    batches = None if device is None else _Batches(folder, device)
    with own_processes(workers) as pool, ThreadPoolExecutor(_WRITERS) as writers:
        waiting: deque[Future[Outcome]] = deque(pool.submit(prepare, t) for t in islice(tasks, _AHEAD * workers))
        for outcome in track(_results(waiting, tasks, pool, deadline), "evidence", total=total):
            counts[outcome.kept] += 1
            if outcome.left is not None and batches is not None:
                batches.add(outcome.key, outcome.left, writers)
            if outcome.described is not None:
                index.append((outcome.described, outcome.key))
        if batches is not None:
            counts[False] -= batches.finish(writers, deadline)
    append_to_index(folder, [(described, key) for described, key in index if pair_features_file(folder, key).exists()])
    return counts


def _results(
    waiting: "deque[Future[Outcome]]", tasks: Iterator[Task], pool: Any, deadline: float | None
) -> Iterator[Outcome]:
    """The workers' results in order, until the tasks end or the deadline passes."""
    while waiting:
        outcome = waiting.popleft().result()
        if deadline is None or time.monotonic() < deadline:
            waiting.extend(pool.submit(prepare, task) for task in islice(tasks, 1))
        yield outcome


class _Batches:
    """Groups prepared pairs by shape; computes and writes each full batch."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._folder, self._extract = folder, BatchedPairFeatures(device)
        self._waiting: dict[tuple[tuple[int, ...], ...], list[tuple[bytes, Prepared]]] = {}
        self._written: deque[Future[Any]] = deque()
        self._keys: set[bytes] = set()

    def add(self, key: bytes, pair: Prepared, writers: ThreadPoolExecutor) -> None:
        """Add a pair."""
        if key in self._keys:  # the same images again
            return
        self._keys.add(key)
        group = self._waiting.setdefault((pair.reference.shape, pair.target.shape), [])
        group.append((key, pair))
        if len(group) == BATCH:
            self._compute(group, writers)

    def finish(self, writers: ThreadPoolExecutor, deadline: float | None) -> int:
        """Compute the remaining groups until the deadline, then wait for all files. Returns the number of pairs left out."""
        left_out = 0
        for group in sorted(self._waiting.values(), key=len, reverse=True):
            if deadline is not None and time.monotonic() >= deadline:
                left_out += len(group)
            elif group:
                self._compute(group, writers)
        for future in self._written:
            future.result()
        return left_out

    def _compute(self, group: list[tuple[bytes, Prepared]], writers: ThreadPoolExecutor) -> None:
        pairs = [pair for _, pair in group]
        features = self._extract(
            [pair.reference for pair in pairs], [pair.target for pair in pairs], [pair.pixels for pair in pairs]
        )
        for (key, _), rows in zip(group, features, strict=True):
            self._written.append(writers.submit(write_pair_features, self._folder, key, rows))
        while len(self._written) > 64 * _WRITERS:
            self._written.popleft().result()
        group.clear()
