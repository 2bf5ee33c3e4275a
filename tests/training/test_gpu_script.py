"""A small run of recipes/tiny/gpu.sh on a CPU: it continues after a kill, reuses finished stages and ends with a policy."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import psutil
import pytest

pytest.importorskip("trl", reason="the train extra is not installed")

from differad.locators.tiny import TinyLocator

ROOT = Path(__file__).parents[2]
SMALL = ("train.batch_size=8", "model.min_pixels=16384", "model.max_pixels=16384")
STAGES = ["run", "pairs", "evidence", "compare", "sft", "rl", "evaluate sft", "evaluate rl"]
MINUTES = "0.4"

pytestmark = pytest.mark.skipif(os.name == "nt", reason="a shell script")


def start(out):
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = ["bash", str(ROOT / "recipes" / "tiny" / "gpu.sh"), str(out), MINUTES, *SMALL, "--workers", "2"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def rows(out):
    path = out / "result.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(condition, process, seconds=240):
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < until
        time.sleep(0.05)


def pids_below(pid):
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def all_end(pids, seconds=20):
    until = time.monotonic() + seconds
    while any(map(psutil.pid_exists, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(psutil.pid_exists, pids))


def test_killed_and_run_again_it_leaves_a_policy(tmp_path):
    out = tmp_path / "out"
    process = start(out)
    # The kill falls into the comparer's training: pairs and evidence are done.
    wait_for(lambda: any(row["stage"] == "evidence" for row in rows(out)), process)
    below = pids_below(process.pid)
    process.kill()
    process.wait()
    process.stdout.close()
    assert all_end(below)
    done = {row["stage"]: row for row in rows(out)}
    assert done["pairs"]["pairs"] >= 8
    assert done["evidence"]["computed"] >= 1

    again = start(out)
    text, _ = again.communicate(timeout=400)
    assert again.returncode == 0, text
    assert [row["stage"] for row in rows(out)] == STAGES
    assert [row.get("failed") for row in rows(out)] == [None] * len(STAGES)
    now = {row["stage"]: row for row in rows(out)}
    assert (now["pairs"], now["evidence"]) == (done["pairs"], done["evidence"])
    assert now["sft"]["steps"] >= 1
    assert now["rl"]["answers_per_s"] > 0
    assert now["evaluate rl"]["pairs"] >= 8
    assert_carried(out / "back")
    assert TinyLocator(folder=out / "model").name == f"tiny@{out}/model"


def assert_carried(back):
    """Few and small files; the archive holds a policy that can be used."""
    files = list(back.iterdir())
    assert len(files) <= 8
    assert all(path.stat().st_size < 16 << 20 for path in files)
    assert {path.name for path in files} == {"result.jsonl", "result.md", "curves.jsonl", "log.txt", "model.tar"}
    with tarfile.open(back / "model.tar") as archive:
        archive.extractall(back.parent / "carried", filter="data")
    TinyLocator(folder=back.parent / "carried" / "model")
    runs = {json.loads(line)["run"] for line in (back / "curves.jsonl").read_text().splitlines()}
    assert runs == {"compare", "sft", "rl"}


def test_ended_it_writes_what_there_is_and_nothing_lives_on(tmp_path):
    out = tmp_path / "out"
    process = start(out)
    wait_for(lambda: len(pids_below(process.pid)) >= 4, process)
    below = pids_below(process.pid)
    process.send_signal(signal.SIGTERM)
    process.stdout.close()
    assert process.wait(timeout=30) == 143
    assert all_end(below)
    assert [row["stage"] for row in rows(out)] == ["run"]
