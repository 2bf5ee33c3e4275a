"""benchmarks/calibrate_tiny.py in small: the numbers of a policy's decision, and where the locator finds them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from differad.boxes import as_boxes
from differad.data.manifest import read_pairs
from differad.evaluation.metrics import auroc
from differad.locators import load_locator
from differad.synthesis.draw import SynthesisOptions
from differad.synthesis.run import synthesize

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "calibrate_tiny.py"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    out = tmp_path_factory.mktemp("drawn") / "set"
    options = SynthesisOptions(seed=1, size=96, normal_share=0.5, siblings=0.5)
    return Path(synthesize(options, 12, out, progress=False).manifest)


def calibrate(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_the_numbers_found_are_those_the_locator_decides_by(untaught, manifest, tmp_path):
    folder = shutil.copytree(untaught, tmp_path / "model")
    ran = calibrate(manifest, "--folder", folder, "--once", "--write")
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert report["pairs"] == 12
    assert report["written"] == str(folder / "decision.json")
    assert json.loads((folder / "decision.json").read_text()) == report["deciding"]
    own = load_locator(folder, closer=False, margin=0.0)
    assert own.options.threshold == report["deciding"]["threshold"]
    pairs = list(read_pairs(manifest))
    found = [outcome.confidence for outcome in own.locate_many(pairs)]
    abnormal = [len(as_boxes(pair.boxes)) > 0 for pair in pairs]
    ranked = [
        [value for value, is_one in zip(found, abnormal, strict=True) if is_one == which] for which in (True, False)
    ]
    # The locator ranks the pairs as the script does: weights are rounded to 0.001, which may turn nearly even pairs about.
    assert auroc(*ranked) == pytest.approx(
        report["calibrated"]["auroc"], abs=1 / (sum(abnormal) * (12 - sum(abnormal)))
    )


def test_what_cannot_be_calibrated_is_said_in_a_line(untaught, manifest, tmp_path):
    lines = [line for line in manifest.read_text().splitlines() if not json.loads(line)["boxes"]]
    normal = manifest.with_name("normal.jsonl")
    normal.write_text("".join(line + "\n" for line in lines))
    for arguments, message in (
        ((normal, "--folder", untaught), f"{len(lines)} labelled pairs, 0 abnormal; expected normal and abnormal ones"),
        ((manifest, "--folder", tmp_path), "no config.json; expected the folder of an embedded policy"),
    ):
        ran = calibrate(*arguments)
        assert ran.returncode == 2
        assert message in ran.stderr
        assert ran.stderr.count("\n") == 1
    refused = calibrate(manifest, "--write")
    assert refused.returncode == 2
    assert "--write: expected --folder FOLDER" in refused.stderr
