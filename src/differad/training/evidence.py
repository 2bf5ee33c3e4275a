"""The evidence of a recipe's pairs, computed ahead of training: in batches on an accelerator, or on all cores.

Training computes what is missing by itself, one pair after the other; this is many times as fast. What is there is kept, so
a second run goes on where the first was stopped. The files are those that `data.evidence` names: see locators/tiny/processor.py.
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
from differad.locators.tiny.batched import BatchedEvidence
from differad.locators.tiny.cache import evidence_file, write_evidence
from differad.locators.tiny.evidence import AREA, PATCH
from differad.locators.tiny.known import write_known
from differad.locators.tiny.preparing import Outcome, Prepared, Task, own_processes, prepare
from differad.locators.tiny.processor import MERGE
from differad.progress import track
from differad.training.recipe import Model, Recipe

# Pairs of one shape that are computed at once: the largest matrix takes 21 MB a pair.
BATCH = 16
# Tasks in flight for each worker: enough that none waits.
_AHEAD = 4
# Threads that write files.
_WRITERS = 4


@dataclass(frozen=True)
class EvidenceSummary:
    """What became of a recipe's pairs: `computed` here, `kept` from before; those that time did not allow are in neither."""

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


def compute_evidence(
    recipe: Recipe, *, workers: int | None = None, minutes: float | None = None, device: str = "auto"
) -> EvidenceSummary:
    """Evidence of all pairs of a recipe, also of its held-out ones, in its folder `data.evidence`; at most for so long.

    `device` is auto (an accelerator if there is one), cpu (all of it in `workers` processes) or a name that torch knows; as many
    workers as cores unless told. Raises OptionError, ManifestError, ImageError.
    """
    began = time.monotonic()
    folder = recipe.data.evidence
    if folder is None:
        raise OptionError(
            "data.evidence: missing; expected the folder that the evidence of the embedded policy is kept in"
        )
    chosen = _device(device)
    rule = _rule(recipe.model)
    pairs = list(_pairs(recipe))
    random.Random(recipe.data.seed).shuffle(pairs)  # a run that is cut short has some of every manifest
    tasks = (Task(p.reference, p.target, rule, folder, chosen is None) for p in pairs)
    until = None if minutes is None else began + 60 * minutes
    counts = _run(tasks, len(pairs), folder, workers or usable_cores(), until, chosen)
    seconds = time.monotonic() - began
    kept, computed = counts[True], counts[False]
    return EvidenceSummary(
        str(folder), str(chosen or "cpu"), len(pairs), computed, kept, round(seconds, 3), round(computed / seconds, 2)
    )


def _device(name: str) -> torch.device | None:
    """Where batches are computed; None for processes on the CPU. Raises OptionError."""
    if name == "auto":
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "cpu":
        return None
    try:
        return torch.device(name)
    except RuntimeError:
        raise OptionError(f"device={name!r}: not known; expected auto, cpu, cuda, cuda:1, …") from None


def _rule(model: Model) -> ResizeRule:
    """How the recipe's policy resizes images. Raises OptionError for a model that sees no evidence."""
    if model.tiny is not None:
        low, high = AREA if model.min_pixels is None else model.min_pixels, model.max_pixels or AREA
        return ResizeRule(PATCH * MERGE, low, high, least_side=PATCH)
    if model.start is None or not (Path(model.start) / "preprocessor_config.json").is_file():
        raise OptionError("model: no embedded policy; expected model.tiny, or in model.checkpoint the folder of one")
    own = ResizeRule.from_folder(Path(model.start))
    low, high = model.min_pixels or own.min_pixels, model.max_pixels or own.max_pixels
    return ResizeRule(own.factor, low, high, own.least_side)


def _pairs(recipe: Recipe) -> Iterator[Pair]:
    yield from labelled_pairs(recipe.held_out.pairs, recipe.held_out.limit)
    yield from islice((pair for manifest in recipe.data.pairs for pair in read_pairs(manifest)), recipe.data.limit)


def _run(
    tasks: Iterator[Task], total: int, folder: Path, workers: int, until: float | None, device: torch.device | None
) -> dict[bool, int]:
    """How many pairs were there (True) and how many were computed (False)."""
    counts = {True: 0, False: 0}
    known: list[tuple[str, bytes]] = []
    batches = None if device is None else _Batches(folder, device)
    with own_processes(workers) as pool, ThreadPoolExecutor(_WRITERS) as writers:
        waiting: deque[Future[Outcome]] = deque(pool.submit(prepare, t) for t in islice(tasks, _AHEAD * workers))
        for found in track(_results(waiting, tasks, pool, until), "evidence", total=total):
            counts[found.kept] += 1
            if found.left is not None and batches is not None:
                batches.add(found.key, found.left, writers)
            if found.described is not None:
                known.append((found.described, found.key))
        if batches is not None:
            counts[False] -= batches.finish(writers, until)
    write_known(folder, [(described, key) for described, key in known if evidence_file(folder, key).exists()])
    return counts


def _results(
    waiting: "deque[Future[Outcome]]", tasks: Iterator[Task], pool: Any, until: float | None
) -> Iterator[Outcome]:
    """What the workers give, in order, until the tasks or the time end."""
    while waiting:
        found = waiting.popleft().result()
        if until is None or time.monotonic() < until:
            waiting.extend(pool.submit(prepare, task) for task in islice(tasks, 1))
        yield found


class _Batches:
    """Prepared pairs by their shapes; a full batch is computed and written."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._folder, self._evidence = folder, BatchedEvidence(device)
        self._waiting: dict[tuple[tuple[int, ...], ...], list[tuple[bytes, Prepared]]] = {}
        self._written: deque[Future[Any]] = deque()
        self._keys: set[bytes] = set()

    def add(self, key: bytes, pair: Prepared, writers: ThreadPoolExecutor) -> None:
        """Take a pair in."""
        if key in self._keys:  # the same images once more
            return
        self._keys.add(key)
        group = self._waiting.setdefault((pair.reference.shape, pair.target.shape), [])
        group.append((key, pair))
        if len(group) == BATCH:
            self._compute(group, writers)

    def finish(self, writers: ThreadPoolExecutor, until: float | None) -> int:
        """Compute what is left over while there is time; all is written afterwards. Returns how many pairs were left out."""
        out = 0
        for group in sorted(self._waiting.values(), key=len, reverse=True):
            if until is not None and time.monotonic() >= until:
                out += len(group)
            elif group:
                self._compute(group, writers)
        for future in self._written:
            future.result()
        return out

    def _compute(self, group: list[tuple[bytes, Prepared]], writers: ThreadPoolExecutor) -> None:
        pairs = [pair for _, pair in group]
        found = self._evidence(
            [pair.reference for pair in pairs], [pair.target for pair in pairs], [pair.pixels for pair in pairs]
        )
        for (key, _), rows in zip(group, found, strict=True):
            self._written.append(writers.submit(write_evidence, self._folder, key, rows))
        while len(self._written) > 64 * _WRITERS:
            self._written.popleft().result()
        group.clear()
