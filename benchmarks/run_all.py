"""Run all benchmarks of speed and memory one after the other, and write one page with their results.

    python benchmarks/run_all.py [--only grpo inspect]      # docs/benchmarks.md, a plot; 10 minutes on two cores

Needs an otherwise idle machine, and `pip install 'differad[local,train,fast]' matplotlib scikit-image`. Each program runs in
its own process, names its baseline in its docstring, and may be run alone with larger numbers. A failure is reported on the
page, and the other programs still run.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
HERE = Path(__file__).parent
# A row of a growth table: its first two numbers are the varied sizes, the bold one is the ratio.
ROW = re.compile(r"^\| (\d+) \| (\d+) \|.*\*\*([\d.]+) x\*\*", re.MULTILINE)


@dataclass(frozen=True)
class Benchmark:
    """A program, its options, its title on the page, and a remark on its figures."""

    program: str
    options: tuple[str, ...]
    title: str
    note: str = ""


BENCHMARKS = {
    "grpo": Benchmark("grpo_speed.py", ("--steps", "2"), "A GRPO step beside stock TRL"),
    "inspect": Benchmark(
        "inspect_speed.py", ("--targets", "200"), "Many targets against one reference beside plain generate"
    ),
    "tiny": Benchmark(
        "tiny_speed.py",
        ("--json",),
        "The embedded locators",
        "With one reference for all (`seconds_same_reference`) only the first target shows the reference's part. The others "
        "cannot be aligned to it, so `auto` uses `tiny` instead of `features` for them, and the registration of `difference` "
        "fails: these rows do not measure the gain of a cached reference. The gain is the reference's share of a pass, "
        "`milliseconds_of_a_look.reference`, and shows only in `tiny`, which processes all pairs alike.",
    ),
    "difference": Benchmark(
        "difference_speed.py", ("--pairs", "40", "--json"), "`difference` beside a crude difference"
    ),
    "features": Benchmark("features_speed.py", ("--pairs", "16", "--json"), "`features`, by runtime"),
    "rewards": Benchmark("rewards_speed.py", ("--json",), "Reading and scoring answers beside a plain loop"),
    "synthesis": Benchmark("synthesis_speed.py", ("--count", "600", "--json"), "Generating pairs beside a plain loop"),
    "index": Benchmark(
        "index_speed.py", ("--sizes", "12500", "25000", "--json"), "Indexing a data set beside re-encoding it"
    ),
    "many": Benchmark(
        "many_pairs.py",
        ("--pairs", "10000", "100000", "--images", "5000", "10000"),
        "Work on many pairs, by their number",
    ),
    "memory": Benchmark("evaluate_memory.py", ("--pairs", "2000", "--json"), "Memory of an evaluation beside lists"),
}


def run(benchmark: Benchmark) -> tuple[str, float]:
    """A program's output, and its seconds."""
    start = time.perf_counter()
    command = [sys.executable, str(HERE / benchmark.program), *benchmark.options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    output = done.stdout.strip()
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        output = f"Failed with exit code {done.returncode}: {reason}"
    return output, time.perf_counter() - start


def section(benchmark: Benchmark, output: str, seconds: float) -> str:
    command = " ".join(["python", f"benchmarks/{benchmark.program}", *benchmark.options])
    body = table(json.loads(output)) if output.startswith("{") else output
    note = f"\n{benchmark.note}\n" if benchmark.note else ""
    return f"## {benchmark.title}\n\n{fence(f'{command}      # {seconds:.0f} s', seconds)}\n\n{body}\n{note}"


def fence(command: str, seconds: float) -> str:
    """A block of the page; a long one is marked so that tests/test_docs.py does not run it."""
    note = f" not run: needs a quiet machine for {seconds:.0f} s" if seconds > 20 else ""
    return f"```sh{note}\n{command}\n```"


def table(report: dict[str, object]) -> str:
    """A JSON document as a table, one row a value, its keys joined by dots."""
    return "\n".join(["| what | value |", "|---|---|", *(f"| {key} | {value} |" for key, value in flat(report))])


def flat(report: object, prefix: str = "") -> list[tuple[str, object]]:
    """Leaves of nested objects and lists with their paths; numbers to four digits."""
    if isinstance(report, list):
        report = dict(enumerate(report))
    if not isinstance(report, dict):
        return [(prefix, f"{report:.4g}" if isinstance(report, float) else report)]
    return [leaf for key, value in report.items() for leaf in flat(value, f"{prefix}.{key}" if prefix else str(key))]


def draw(outputs: dict[str, str], path: Path) -> None:
    """Plot ratios over the number of answers, over targets at once and over the size of images."""
    from matplotlib import pyplot

    grpo, cached = (
        [(int(tokens), int(many), float(ratio)) for tokens, many, ratio in ROW.findall(outputs.get(name, ""))]
        for name in ("grpo", "inspect")
    )
    # The growth table of GRPO names answers first.
    grpo = [(tokens, many, ratio) for many, tokens, ratio in grpo]
    titles = ("GRPO step, times stock TRL", "locating, times plain generate")
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6.4), layout="constrained")
    for row, rows, title, many in zip(
        axes, (grpo, cached), titles, ("answers a group", "targets at once"), strict=True
    ):
        usual = rows[0][1] if rows else 0
        curves = (
            (sorted((m, x) for t, m, x in rows if t == 256), f"{many} (images of 256 tokens)"),
            (sorted((t, x) for t, m, x in rows if m == usual), f"tokens an image ({usual} {many})"),
        )
        for axis, (points, what) in zip(row, curves, strict=True):
            axis.plot(*zip(*points, strict=True), marker="o") if points else None
            axis.axhline(1, color="grey", linewidth=0.8)
            axis.set_ylim(0)
            axis.set_xlabel(what)
            axis.set_title(title, fontsize=10)
            axis.grid(alpha=0.3)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS), help="only these")
    parser.add_argument("--page", type=Path, default=Path("docs/benchmarks.md"))
    parser.add_argument("--picture", type=Path, default=Path("docs/images/benchmarks.png"))
    arguments = parser.parse_args()
    load, start = os.getloadavg()[0], time.perf_counter()
    outputs, sections = {}, []
    for name in arguments.only:
        outputs[name], seconds = run(BENCHMARKS[name])
        sections.append(section(BENCHMARKS[name], outputs[name], seconds))
        print(f"{name}: {seconds:.0f} s", file=sys.stderr)
    whole = (time.perf_counter() - start) / 60
    head = (
        f"# Benchmarks\n\n{fence('python benchmarks/run_all.py', 60 * whole)}\n\n"
        f"{whole:.1f} minutes on {os.cpu_count()} cores, load {load:.1f} before. "
        "The remaining floating-point operations, and why: [grpo_speed.md](grpo_speed.md).\n\n"
        f"![Ratios over answers and images' sizes](images/{arguments.picture.name})\n"
    )
    arguments.page.write_text("\n".join([head, *sections]))
    draw(outputs, arguments.picture)
    if failed := [name for name, text in outputs.items() if text.startswith("Failed")]:
        sys.exit(f"failed: {', '.join(failed)}; see {arguments.page}")


if __name__ == "__main__":
    main()
