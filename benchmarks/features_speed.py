"""Speed and memory of the `features` locator: the backbone by runtime, and whole pairs, in one run.

    python benchmarks/features_speed.py --pairs 24 --json

The backbone is timed on images of 448x448 on one thread, by OpenCV and, where installed, ONNX Runtime and OpenVINO,
in turns image by image, so that other work on the machine affects all alike; each in a process of its own for memory.
Pairs are synthetic (or those of `--manifest`): with a new reference each, with one reference for all, and without `difference`.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from differad.core import Pair
from differad.data.manifest import read_pairs
from differad.locators.features import FeaturesLocator, FeaturesOptions
from differad.locators.features.backbone import Backbone
from differad.locators.features.efficientnet import to_onnx
from differad.locators.features.weights import BACKBONE, read_safetensors
from differad.synthesis.pairs import make_pair

SIDE = 448


def peak_mib() -> float:
    """Peak of this process's own memory (Linux); what `getrusage` tells a child includes its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


def runner(name: str) -> Callable[[np.ndarray], object]:
    if name != "openvino":
        return Backbone(name).maps
    import openvino

    core = openvino.Core()
    network = core.read_model(to_onnx(read_safetensors(BACKBONE)))
    # Full precision: processors with bfloat16 units would answer faster, with three digits.
    settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(network, "CPU", settings)
    return lambda image: compiled(((image.astype(np.float32) - 127) / 128).transpose(2, 0, 1)[None].copy())


def memory_of(name: str) -> float:
    """MiB that loading and running one image adds to a fresh process."""
    cv2.setNumThreads(1)
    before = peak_mib()
    runner(name)(np.zeros((SIDE, SIDE, 3), np.uint8))
    return peak_mib() - before


def time_runtimes(names: list[str], rounds: int) -> dict[str, dict[str, float]]:
    cv2.setNumThreads(1)
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    runners = {name: runner(name) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, run in runners.items():
            start = time.perf_counter()
            run(image)
            times[name].append(time.perf_counter() - start)
    return {
        name: {"median_ms": 1e3 * statistics.median(t[1:]), "least_ms": 1e3 * min(t[1:])} for name, t in times.items()
    }


def seconds_a_pair(locator: FeaturesLocator, pairs: list[Pair]) -> float:
    locator.locate(pairs[0])
    start = time.perf_counter()
    for pair in pairs[1:]:
        locator.locate(pair)
    return (time.perf_counter() - start) / (len(pairs) - 1)


def stream_rate(locator: FeaturesLocator, pairs: list[Pair]) -> float:
    start = time.perf_counter()
    answered = sum(1 for _ in locator.locate_many(pairs))
    return answered / (time.perf_counter() - start)


def measure(pairs: list[Pair]) -> dict[str, object]:
    names = ["opencv", *(name for name in ("onnxruntime", "openvino") if find_spec(name))]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        memory = {name: round(pool.submit(memory_of, name).result()) for name in names}
    threads = cv2.getNumThreads()
    runtimes = time_runtimes(names, 12)
    cv2.setNumThreads(threads)
    one = [replace(pair, reference=pairs[0].reference) for pair in pairs]
    per_pair = {
        "fused_new_reference": seconds_a_pair(FeaturesLocator(), pairs),
        "alone_new_reference": seconds_a_pair(FeaturesLocator(FeaturesOptions(fuse=False)), pairs),
        "alone_same_reference": seconds_a_pair(FeaturesLocator(FeaturesOptions(fuse=False)), one),
    }
    return {
        "runtimes": {name: {k: round(v, 1) for k, v in times.items()} for name, times in runtimes.items()},
        "runtime_mib": memory,
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "seconds_a_pair": {name: round(value, 3) for name, value in per_pair.items()},
        "pairs_per_second_of_a_stream": {
            "fused": round(stream_rate(FeaturesLocator(), pairs), 2),
            "alone": round(stream_rate(FeaturesLocator(FeaturesOptions(fuse=False)), pairs), 2),
        },
        "peak_mib": round(peak_mib()),
    }


def synthetic_pairs(count: int) -> list[Pair]:
    kinds = ("board", "grain", "printed", "brushed")
    return [
        make_pair(np.random.default_rng(seed), kinds[seed % len(kinds)]).as_pair(str(seed)) for seed in range(count)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=24, help="how many pairs, at least 2")
    parser.add_argument("--manifest", type=Path, help="time the pairs of this pairs.jsonl in place of synthetic ones")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    pairs = (
        list(read_pairs(arguments.manifest))[: arguments.pairs]
        if arguments.manifest
        else synthetic_pairs(arguments.pairs)
    )
    report = measure(pairs)
    if arguments.json:
        print(json.dumps(report, indent=1))
        return
    for name, value in report.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
