"""All that is promised of GPUs, measured on one card in a few minutes: run it, copy the folder back, read results.md.

    python benchmarks/gpu.py --out runs/gpu --minutes 7      # on a machine with a GPU; needs no network
    python benchmarks/gpu.py --out runs/gpu --tiny           # all stages at the smallest sizes, on a CPU too

Needs torch, transformers and the packages of the extra `train`; the checkout need not be installed (PYTHONPATH=src). Stages run
one after another, each in a process of its own with its share of the time:

    card     the card and the versions; its two ceilings: a large matrix product in bfloat16, and a device copy
    checks   shared prompts against repeated ones, each by its distance to float64
    grpo     one GRPO step beside stock TRL's
    locate   `locate` beside plain `generate`
    policy   the embedded policy: pair features, cold start and reinforcement

Each measurement is one line of OUT/results.jsonl as soon as it is made, and OUT/results.md holds all of them as tables. A stage
that fails, or runs out of time, leaves a row with the reason, and the next one begins; OUT/STAGE.log has what it printed.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from itertools import groupby
from pathlib import Path
from typing import Any

from gpu_context import RESULTS, Context, Row, read_rows

# Each with its share of the time; what a stage leaves goes to those behind it.
SHARES = {"card": 0.06, "checks": 0.14, "grpo": 0.45, "locate": 0.2, "policy": 0.15}
# Seconds beyond its deadline after which a stage is stopped: it looks at the clock between two measurements only.
GRACE = 15.0
_TABLE = "results.md"


def write_row(out: Path, row: Row) -> None:
    """Append a row, safe on disk, and write the tables anew."""
    with (out / RESULTS).open("a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())
    part = out / f"{_TABLE}.part"
    part.write_text(tables(read_rows(out)))
    part.replace(out / _TABLE)


def tables(rows: list[Row]) -> str:
    """Rows as Markdown, a table for each run of rows with the same keys."""
    blocks = []
    for stage, of_stage in groupby(rows, key=lambda row: row["stage"]):
        blocks.append(f"## {stage}")
        for names, alike in groupby(of_stage, key=lambda row: [name for name in row if name != "stage"]):
            lines = [names, ["---"] * len(names), *([cell(row[name]) for name in names] for row in alike)]
            blocks.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(blocks) + "\n"


def cell(value: Any) -> str:
    """A value with three significant digits."""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return "–" if value is None else str(value).replace("|", "\\|")


def run_stage(arguments: argparse.Namespace) -> None:
    """Make the measurements of one stage in this process."""
    import torch

    parent = os.getppid()
    name = "cuda" if torch.cuda.is_available() and not arguments.cpu else "cpu"
    folder = arguments.out / arguments.stage
    folder.mkdir(exist_ok=True)
    deadline = time.monotonic() + arguments.seconds
    context = Context(torch.device(name), arguments.tiny, arguments.out, folder, deadline)
    warnings.simplefilter("ignore", FutureWarning)
    start = time.perf_counter()
    for row in importlib.import_module(f"gpu_{arguments.stage}").rows(context):
        write_row(arguments.out, {"stage": arguments.stage, **row})
        if os.getppid() != parent:
            sys.exit("the run was stopped")
    print(f"{arguments.stage}: {time.perf_counter() - start:.0f} s of {arguments.seconds:.0f} s", file=sys.stderr)


def run_all(arguments: argparse.Namespace) -> None:
    """Run the stages in processes of their own, each in its share of what is left of the time."""
    out = arguments.out
    if read_rows(out):
        sys.exit(f"{out / RESULTS} holds another run; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * arguments.minutes
    chosen = [name for name in SHARES if name in (arguments.only or SHARES)]
    for number, stage in enumerate(chosen):
        left = end - time.monotonic()
        share = SHARES[stage] / sum(SHARES[name] for name in chosen[number:])
        if not arguments.tiny and left * share < 2:
            write_row(out, {"stage": stage, "what": "stage", "error": "no time is left"})
            continue
        reason = run_apart(arguments, stage, left * share)
        if reason:
            write_row(out, {"stage": stage, "what": "stage", "error": reason})
    print((out / _TABLE).read_text())


def run_apart(arguments: argparse.Namespace, stage: str, seconds: float) -> str | None:
    """Run one stage; why it did not come to its end, or None."""
    command = [sys.executable, __file__, "--out", str(arguments.out), "--stage", stage, "--seconds", str(seconds)]
    command += ["--tiny"] * arguments.tiny + ["--cpu"] * arguments.cpu
    log = arguments.out / f"{stage}.log"
    print(f"{stage} …", file=sys.stderr)
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(timeout=None if arguments.tiny else seconds + GRACE)
        except subprocess.TimeoutExpired:
            return f"stopped after {seconds + GRACE:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if code == 0:
        return None
    last = log.read_text(errors="replace").strip().splitlines()
    return f"exit status {code}: {last[-1][:300] if last else 'it printed nothing'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results and logs")
    parser.add_argument("--minutes", type=float, default=7.0, help="time for all stages")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes, without limits of time")
    parser.add_argument("--cpu", action="store_true", help="use the CPU although there is a GPU")
    parser.add_argument("--only", nargs="+", choices=SHARES, help="these stages alone")
    parser.add_argument("--stage", choices=SHARES, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        run_stage(arguments)
    else:
        run_all(arguments)


if __name__ == "__main__":
    main()
