"""Shares of work and errors among two real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="the train extra is not installed")
import yaml


def torchrun(*arguments):
    """Two processes on this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def test_shares_are_joined_and_an_error_ends_all(make_recipe, broken_pairs, tmp_path):
    """Seven pairs: an odd share each, and rounds in which one process has nothing to read, or nothing that can be read."""
    recipe = make_recipe("rl", f"held_out.pairs=[{broken_pairs}]")
    path = tmp_path / "recipe.json"
    path.write_text(recipe.model_dump_json())
    done = torchrun(str(Path(__file__).with_name("sharing_pairs.py")), str(path), str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    main, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert main["joined"] == other["joined"] == [0, 1, 2, 3, 4]
    assert ["truncated" in text for text in main["alone"]] == [False] * 5 + [True, False]
    assert main["split"] == main["lockstep"] == main["alone"]
    assert other["split"] is other["lockstep"] is None
    assert main["passes"] == other["passes"] > 0  # a sharded model gathers its weights in each
    reason = "process 1 of 2: part.png: broken"
    assert (main["share"], other["share"]) == (["PeerError", reason], ["ImageError", "part.png: broken"])
    reason = "process 0 of 2: ZeroDivisionError: division by zero"
    assert (main["main"], other["main"]) == (["ZeroDivisionError", "division by zero"], ["PeerError", reason])
    assert main["run"] == ["PeerError", "process 1 of 2: ZeroDivisionError: division by zero"]  # it waited at a barrier
    assert other["run"] == ["ZeroDivisionError", "division by zero"]  # a bug keeps its name and place


def test_a_run_that_fails_on_one_process_ends_on_all_in_one_line(make_recipe, broken_pairs, tmp_path):
    """Each process answers its own pair; one pair cannot be read."""
    recipe = make_recipe("rl", f"data.pairs=[{broken_pairs}]", "train.steps=2")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    done = torchrun("-m", "differad", "train", "rl", str(path))
    assert done.returncode != 0
    ours = done.stderr.partition("torch/distributed")[0]  # torchrun's own report follows
    lines = [line for line in ours.splitlines() if "of 2: " in line]
    assert len(lines) == 1, done.stderr[-3000:]
    assert "differad: process " in lines[0]  # a progress bar may stand before it
    assert f"{broken_pairs.parent / '2_test.png'}: " in lines[0]
    assert "Traceback" not in ours
    assert "terminate called" not in done.stderr
