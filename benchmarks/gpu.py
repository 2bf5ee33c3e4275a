"""All GPU measurements on one GPU in a few minutes: run it, copy the folder back, read results.md.

    python benchmarks/gpu.py --out runs/gpu --minutes 7      # on a machine with a GPU; needs no network
    python benchmarks/gpu.py --out runs/gpu --tiny           # all stages at the smallest sizes, on a CPU too

Needs torch, transformers and the packages of the extra `train`; the checkout need not be installed (PYTHONPATH=src). Stages run
one after another, each in its own process with its share of the time:

    card     the GPU and the versions; its two ceilings: a large matrix product in bfloat16, and a device copy
    checks   shared and repeated prompts, with their distances to float64
    grpo     one GRPO step compared with stock TRL
    locate   `locate` compared with plain `generate`
    policy   the embedded policy: pair features, cold start and reinforcement learning

Each measurement is written to OUT/results.jsonl at once, one line each, and OUT/results.md has all of them as tables. A stage
that fails, or runs out of time, gives a row with the reason, and the next stage starts; OUT/STAGE.log has its output. A run that
is killed keeps its rows, and its stage and worker processes end within a second.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from gpu_context import RESULTS, Context, Row, read_rows

# Each stage's share of the time; unused time goes to later stages.
SHARES = {"card": 0.06, "checks": 0.14, "grpo": 0.45, "locate": 0.2, "policy": 0.15}
# Seconds after its deadline at which a stage is stopped: it checks the time only between measurements.
GRACE = 15.0
_TABLE = "results.md"
_SOURCES = Path(__file__).resolve().parents[1] / "src"


def write_row(out: Path, row: Row) -> None:
    """Add a row to the results and rewrite the tables; each file is complete at any time."""
    rows = [*read_rows(out), row]
    _replace(out / RESULTS, "".join(json.dumps(each, default=str) + "\n" for each in rows))
    _replace(out / _TABLE, tables(rows))


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def tables(rows: list[Row]) -> str:
    """Rows as Markdown, one table per sequence of rows with the same keys."""
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
    """Run the measurements of one stage in this process."""
    import torch

    threading.Thread(target=end_with, args=(arguments.driver,), daemon=True).start()
    name = "cuda" if torch.cuda.is_available() and not arguments.cpu else "cpu"
    folder = arguments.out / arguments.stage
    folder.mkdir(exist_ok=True)
    seconds = arguments.until - time.time()
    context = Context(torch.device(name), arguments.tiny, arguments.out, folder, time.monotonic() + seconds)
    warnings.simplefilter("ignore", FutureWarning)
    start = time.perf_counter()
    for row in importlib.import_module(f"gpu_{arguments.stage}").rows(context):
        write_row(arguments.out, {"stage": arguments.stage, **row})
    print(f"{arguments.stage}: {time.perf_counter() - start:.0f} s of {seconds:.0f} s", file=sys.stderr)


def end_with(driver: int) -> None:
    """End this process and its children when its parent `driver` has ended."""
    while os.getppid() == driver:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


def run_all(arguments: argparse.Namespace) -> None:
    """Run each stage in its own process, with its share of the remaining time."""
    out = arguments.out
    if (out / RESULTS).exists():
        sys.exit(f"{out / RESULTS} holds another run; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    end = time.monotonic() + 60 * arguments.minutes
    chosen = [name for name in SHARES if name in (arguments.only or SHARES)]
    for number, stage in enumerate(chosen):
        left = end - time.monotonic()
        share = SHARES[stage] / sum(SHARES[name] for name in chosen[number:])
        enough = arguments.tiny or left * share >= 2
        before = len(read_rows(out))
        reason = run_apart(arguments, stage, left * share) if enough else "no time is left"
        if reason is None and len(read_rows(out)) == before:
            reason = "it measured nothing"
        if reason:
            write_row(out, {"stage": stage, "what": "stage", "error": reason})
    print((out / _TABLE).read_text())


def run_apart(arguments: argparse.Namespace, stage: str, seconds: float) -> str | None:
    """Run one stage; return why it failed, or None."""
    command = [sys.executable, __file__, "--out", str(arguments.out), "--stage", stage, "--driver", str(os.getpid())]
    command += ["--until", str(time.time() + seconds)] + ["--tiny"] * arguments.tiny + ["--cpu"] * arguments.cpu
    # Use the checkout's own sources, and no hub, which may be unreachable.
    path = os.pathsep.join(filter(None, [str(_SOURCES), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    log = arguments.out / f"{stage}.log"
    print(f"{stage} …", file=sys.stderr)
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
        try:
            code = process.wait(timeout=None if arguments.tiny else seconds + GRACE)
        except subprocess.TimeoutExpired:
            return f"stopped after {seconds + GRACE:.0f} s"
        finally:
            # Kill its children too, some of which may outlive it.
            with suppress(ProcessLookupError):
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
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes, without time limits")
    parser.add_argument("--cpu", action="store_true", help="use the CPU although there is a GPU")
    parser.add_argument("--only", nargs="+", choices=SHARES, help="only these stages")
    parser.add_argument("--stage", choices=SHARES, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--driver", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        run_stage(arguments)
    else:
        run_all(arguments)


if __name__ == "__main__":
    main()
