"""The process that trains, for gpu.py: it loads torch and TRL once, while pairs are still drawn, and then does as it is told.

A line of JSON on stdin is a stage, a line on stdout its result: `{"stage": "sft", "recipe": …, "overrides": […], "minutes": …}`
gives `{"found": {…}}` or `{"error": "…"}`. What libraries print goes to stderr. A stage that crashes ends the process.
"""

import json
import os
import queue
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from differad.core import Location, Pair
from differad.errors import DifferadError
from differad.evaluation.run import evaluate
from differad.locators.base import Outcome, locate_concurrently
from differad.locators.threads import usable_cores
from differad.locators.tiny import TinyLocator, TinyOptions
from differad.locators.tiny.preparing import own_processes

_EVALUATED = ("pairs", "miou", "acc_0.3", "normal_accuracy", "auroc")
_locators: dict[str, TinyLocator] = {}


def serve() -> None:
    """Answer every line until there are no more."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    orders: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    print(json.dumps({"found": _ready()}), file=answers)
    while True:
        order = json.loads(orders.get())
        try:
            found = {"found": _STAGES[order["stage"]](order)}
        except DifferadError as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(found), file=answers)


def _listen(orders: "queue.Queue[str]") -> None:
    """Pass lines on; where there are no more, whoever gave them has ended, and so does this process, whatever it does."""
    # Not sys.stdin: a process that is forked while a thread waits in it, as those that load batches are, waits for ever.
    with os.fdopen(os.dup(0), "rb", buffering=0) as lines:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for line in iter(lines.readline, b""):
            orders.put(line.decode())
    os._exit(0)


def _ready() -> dict[str, Any]:
    """Load what takes long; say what the machine is."""
    import torch

    import differad.training.evidence
    import differad.training.rl
    import differad.training.sft  # noqa: F401

    if not torch.accelerator.is_available():
        return {"device": f"CPU, {usable_cores()} cores", "torch": torch.__version__}
    device = torch.accelerator.current_accelerator()
    torch.zeros(1, device=device)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else str(device)
    return {"device": name, "torch": torch.__version__}


def _evidence(order: dict[str, Any]) -> dict[str, Any]:
    from differad.training.evidence import compute_pair_features
    from differad.training.recipe import load_any_recipe

    recipe = load_any_recipe(order["recipe"], order["overrides"])
    found = compute_pair_features(
        recipe, workers=order["workers"], minutes=order["minutes"], device=order["device"]
    ).to_dict()
    return found | {"peak_gib": _peak_gib()}


def _sft(order: dict[str, Any]) -> dict[str, Any]:
    from differad.training.recipe import SftRecipe, load_recipe
    from differad.training.sft import train_sft

    recipe = load_recipe(order["recipe"], SftRecipe, order["overrides"])
    return _trained(train_sft(recipe, resume=True), recipe, "pairs_per_s")


def _rl(order: dict[str, Any]) -> dict[str, Any]:
    from differad.training.recipe import RlRecipe, load_recipe
    from differad.training.rl import train_rl

    recipe = load_recipe(order["recipe"], RlRecipe, order["overrides"])
    return _trained(train_rl(recipe, resume=True), recipe, "answers_per_s")


def _trained(summary: dict[str, Any], recipe: Any, rate: str) -> dict[str, Any]:
    """Figures of a run; `rate` names what a batch holds."""
    speed = summary["steps"] / max(summary["seconds"], 1e-9)
    rows = round(speed * recipe.train.batch_size * recipe.train.accumulate, 1)

    return {name: summary[name] for name in ("steps", "seconds", "resumed_from")} | {
        "steps_per_s": round(speed, 3),
        rate: rows,
        "peak_gib": _peak_gib(),
    }


def _peak_gib() -> float | None:
    """GiB that tensors took on the GPU at most since the last stage."""
    import torch

    if not torch.cuda.is_available():
        return None
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return round(peak, 3)


_STAGES = {"evidence": _evidence, "sft": _sft, "rl": _rl}


class OnAllCores:
    """The policy in a folder as `tiny` runs it, in a process for each of `workers` cores."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.name, self.weights, self.options = str(folder), (folder,), TinyOptions()
        self._workers = workers

    def locate(self, pair: Pair) -> Location:
        """Where the target of a pair is abnormal."""
        return locate_in_worker(self.name, pair)

    def locate_many(self, pairs: Iterator[Pair]) -> Iterator[Outcome]:
        """Locate a stream in order."""
        with own_processes(self._workers) as pool:
            asked = _Asked(self.name, pool)
            yield from locate_concurrently(asked, pairs, self._workers)


class _Asked:
    """A locator whose every call waits for a worker; threads call it side by side."""

    def __init__(self, folder: str, pool: Any) -> None:
        self.name, self._pool = folder, pool

    def locate(self, pair: Pair) -> Location:
        location: Location = self._pool.submit(locate_in_worker, self.name, pair).result()
        return location


def locate_in_worker(folder: str, pair: Pair) -> Location:
    """Locate a pair with the policy in `folder`, loaded once a process, on one thread."""
    if folder not in _locators:
        _locators[folder] = TinyLocator(TinyOptions(workers=1), folder=folder)
    return _locators[folder].locate(pair)


def evaluate_folder(model: str, manifest: str, out: str, limit: str, workers: str) -> None:
    """Print the metrics of a policy on a spread of `limit` pairs of a manifest, as JSON."""
    metrics = evaluate([manifest], OnAllCores(Path(model), int(workers)), out, limit=int(limit), progress=False)
    overall = metrics["overall"]
    print(json.dumps({name: overall.get(name) for name in _EVALUATED}))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        evaluate_folder(*sys.argv[1:])
    else:
        serve()
