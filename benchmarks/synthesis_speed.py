"""Speed and memory of `differad synthesize` beside a plain loop, and the time of a pair by stage.

    python benchmarks/synthesis_speed.py --count 10000 --json

Baseline: one process that generates the same pairs in the same run and saves them with Pillow's default compression. Memory is
the sum of the peaks of the run and its worker processes for sets of several sizes: constant if nothing accumulates.
Reads /proc, so Linux only.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import cv2
from PIL import Image

from differad.synthesis.draw import PairGenerator, SynthesisOptions
from differad.synthesis.run import synthesize
from differad.synthesis.store import encode_pair, write_images

MEMORY_SHARES = (0.1, 0.25, 0.5)
RUN = (
    "import sys; from differad.synthesis.draw import SynthesisOptions; from differad.synthesis.run import synthesize; "
    "synthesize(SynthesisOptions(size=int(sys.argv[1])), int(sys.argv[2]), sys.argv[3], workers=int(sys.argv[4]))"
)


def plain_loop(options, count, out):
    """Pairs per second of the baseline."""
    generator, lines = PairGenerator(options), []
    out.mkdir()
    start = time.perf_counter()
    for index in range(count):
        pair = generator.generate(index)
        for name, pixels in (("reference", pair.reference), ("target", pair.target), ("mask", pair.mask)):
            Image.fromarray(pixels).save(out / f"{index:08d}_{name}.png")
        lines.append(json.dumps({"id": str(index), "boxes": pair.boxes.tolist()}))
    (out / "pairs.jsonl").write_text("\n".join(lines))
    return count / (time.perf_counter() - start)


def shares(options, count, out):
    """Milliseconds per pair and stage, in one process."""
    for part in ("reference", "target", "mask"):
        (out / part).mkdir(parents=True)
    generator, spent = PairGenerator(options), defaultdict(float)
    for index in range(count):
        times = [time.perf_counter()]
        pair = generator.generate(index)
        times.append(time.perf_counter())
        sample = encode_pair(pair, options.seed, index)
        times.append(time.perf_counter())
        write_images(out, sample)
        times.append(time.perf_counter())
        for name, before, after in zip(("draw", "encode", "write"), times, times[1:], strict=False):
            spent[name] += after - before
    whole = sum(spent.values())
    milliseconds = {name: round(1000 * seconds / count, 2) for name, seconds in spent.items()}
    return {"milliseconds": milliseconds, "share": {name: round(s / whole, 3) for name, s in spent.items()}}


def peak_mib(size, count, out, workers):
    """Sum of the peak memory of a run and its workers in MiB."""
    command = [sys.executable, "-c", RUN, str(size), str(count), str(out), str(workers)]
    process, peaks = subprocess.Popen(command), {}
    while process.poll() is None:
        for pid in (process.pid, *children(process.pid)):
            peaks[pid] = max(peaks.get(pid, 0.0), high_water_mib(pid))
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"the run of {count} pairs ended with {process.returncode}")
    return sum(peaks.values())


def children(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []  # it has ended


def high_water_mib(pid):
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    values = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    return int(values[0]) / 1024 if values else 0.0


def measure(options, count, folder):
    cv2.setNumThreads(1)
    sample = max(100, count // 10)
    baseline = plain_loop(options, sample, folder / "plain")
    parts = shares(options, sample, folder / "parts")
    rates = {}
    for workers in (1, 2):
        summary = synthesize(options, count, folder / f"workers{workers}", workers=workers, progress=False)
        rates[f"{workers} workers"] = summary.pairs_per_second
    counts = sorted({max(32, round(share * count)) for share in MEMORY_SHARES})
    peaks = {number: round(peak_mib(options.size, number, folder / f"peak{number}", 2), 1) for number in counts}
    files = [path.stat().st_size for path in (folder / "workers1").rglob("*.png")]
    return {
        "pairs": count,
        "size": options.size,
        "pairs_per_second": {"plain loop (Pillow)": round(baseline, 1), **{k: round(v, 1) for k, v in rates.items()}},
        "ratio_to_plain_loop": {name: round(rate / baseline, 2) for name, rate in rates.items()},
        "part_of_a_pair": parts,
        "kib_per_pair": round(sum(files) / 1024 / count, 1),
        "peak_mib_of_run_and_2_workers": {str(number): mib for number, mib in peaks.items()},
        "growth_mib_per_1000_pairs": round(1000 * (peaks[counts[-1]] - peaks[counts[0]]) / (counts[-1] - counts[0]), 3),
    }


def table(report):
    print(f"{report['pairs']} pairs of {report['size']}x{report['size']}, {report['kib_per_pair']} KiB each\n")
    print(f"{'':22}{'pairs/s':>9}{'ratio':>8}")
    for name, rate in report["pairs_per_second"].items():
        print(f"{name:22}{rate:9.1f}{report['ratio_to_plain_loop'].get(name, 1.0):8.2f}")
    print(f"\n{'part':22}{'ms/pair':>9}{'share':>8}")
    for name, spent in report["part_of_a_pair"]["milliseconds"].items():
        print(f"{name:22}{spent:9.2f}{report['part_of_a_pair']['share'][name]:8.1%}")
    print(f"\n{'pairs':22}{'peak MiB, run and 2 workers':>28}")
    for number, mib in report["peak_mib_of_run_and_2_workers"].items():
        print(f"{number:22}{mib:28.1f}")
    print(f"growth: {report['growth_mib_per_1000_pairs']} MiB per 1,000 pairs")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="pairs of the sets that are timed")
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(SynthesisOptions(size=arguments.size), arguments.count, Path(folder))
    print(json.dumps(report, indent=1)) if arguments.json else table(report)


if __name__ == "__main__":
    main()
