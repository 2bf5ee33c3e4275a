"""`benchmarks/gpu.py` in small on a CPU: all its stages, stages that fail, and a run that is stopped."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
STAGES = ("card", "checks", "grpo", "locate", "policy")
# Starts a worker, as a stage may, and stays where it is after two rows.
STUCK = """
import os, subprocess, sys, time

def rows(context):
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield {"what": "processes", "processes": [os.getpid(), worker.pid]}
    yield {"what": "second", "gib": context.peak_gib()}
    time.sleep(600)
"""
BREAKS_OFF = """
def rows(context):
    yield {"what": "half", "seconds": 0.5}
    raise ValueError("the other half")
"""
MEASURES_NOTHING = """
def rows(context):
    yield from ()
"""


def read(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def run(program: Path, out: Path, *options: str) -> list[dict[str, Any]]:
    command = [sys.executable, str(program), "--cpu", "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == (out / "results.md").read_text().strip()
    return read(out)


def with_stages(folder: Path, **stages: str) -> Path:
    """The program with stages of a test's own beside it."""
    folder.mkdir()
    for name in ("gpu.py", "gpu_context.py"):
        shutil.copy(BENCHMARKS / name, folder)
    for name, code in stages.items():
        (folder / f"gpu_{name}.py").write_text(code)
    return folder / "gpu.py"


def is_running(process: int) -> bool:
    """A process that ended and that nobody has asked after is still listed."""
    return psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE


def test_stages_run_on_a_cpu_in_small(tmp_path):
    rows = run(BENCHMARKS / "gpu.py", tmp_path / "out", "--tiny", "--only", *STAGES)
    assert [row for row in rows if "error" in row] == []
    assert tuple(dict.fromkeys(row["stage"] for row in rows)) == STAGES
    tables = (tmp_path / "out" / "results.md").read_text()
    assert [line for line in tables.splitlines() if line.startswith("## ")] == [f"## {stage}" for stage in STAGES]
    ceilings = {row["what"]: row for row in rows if row["stage"] == "card"}
    assert ceilings["bfloat16 product"]["tflops"] > 0
    assert ceilings["device copy"]["tb_per_s"] > 0
    distances = [row for row in rows if "shared_to_float64" in row]
    assert len(distances) == 4
    # Sums in another order are rounded otherwise: a few times the error of the other way, as `agreement` has it.
    assert all(0 < row["shared_to_float64"] <= 4 * row["repeated_to_float64"] for row in distances)
    assert {row["what"].partition(":")[0] for row in rows if row["stage"] == "grpo" and "step_s" in row} == {
        "stock",
        "shared",
        "one step with its optimiser",
    }
    assert {row["device"] for row in rows if row["stage"] == "policy" and "device" in row} == {"cpu"}
    speeds = [row for row in rows if "ms_a_pair" in row]
    assert {row["side"] for row in speeds} == {"plain generate", "kept prefix", "transformers' prompt cache"}
    for row in speeds:
        assert row["tokens"] == 32
        assert row["of_floor"] == pytest.approx(row["ms_a_pair"] / row["floor_ms"])
        # Rounding may turn a tie; ways that compute something else share no answer.
        assert row["equal_answers"] > 0.5


def test_a_stage_that_fails_leaves_the_reason_and_the_next_begins(tmp_path):
    program = with_stages(
        tmp_path / "benchmarks", card="import no_such_package", checks=BREAKS_OFF, grpo=MEASURES_NOTHING
    )
    rows = run(program, tmp_path / "out", "--tiny", "--only", "card", "checks", "grpo", "locate")
    assert [(row["stage"], row["what"]) for row in rows] == [
        ("card", "stage"),
        ("checks", "half"),
        ("checks", "stage"),
        ("grpo", "stage"),
        ("locate", "stage"),
    ]
    card, checks, grpo, locate = (row["error"] for row in rows if row["what"] == "stage")
    assert card.endswith("No module named 'no_such_package'")
    assert checks.endswith("ValueError: the other half")
    assert grpo == "it measured nothing"
    assert locate.endswith("No module named 'gpu_locate'")


def test_a_stage_without_time_is_left_out_with_the_reason(tmp_path):
    program = with_stages(tmp_path / "benchmarks", card=STUCK)
    rows = run(program, tmp_path / "out", "--minutes", "0.01", "--only", "card")
    assert rows == [{"stage": "card", "what": "stage", "error": "no time is left"}]
    again = subprocess.run(
        [sys.executable, str(program), "--out", str(tmp_path / "out")], capture_output=True, text=True
    )
    assert again.returncode == 1
    assert "holds another run" in again.stderr
    assert read(tmp_path / "out") == rows


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_stopped_keeps_its_rows_and_leaves_no_process(tmp_path, how):
    out, program = tmp_path / "out", with_stages(tmp_path / "benchmarks", card=STUCK)
    with subprocess.Popen(
        [sys.executable, str(program), "--tiny", "--cpu", "--out", str(out), "--only", "card"]
    ) as run:
        deadline = time.monotonic() + 60
        while not (out / "results.md").exists() or "second" not in (out / "results.md").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        first, second = read(out)
        assert all(map(is_running, first["processes"]))
        run.send_signal(how)
    deadline = time.monotonic() + 20
    while any(map(is_running, first["processes"])) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, first["processes"]))
    assert read(out) == [first, second]
    assert second == {"stage": "card", "what": "second", "gib": None}
    assert "| second | – |" in (out / "results.md").read_text()
