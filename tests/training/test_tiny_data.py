"""The photographs of `recipes/tiny/data.sh`: copied if present, otherwise requested in one line."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

RECIPE = Path(__file__).parents[2] / "recipes" / "tiny"
REMEDY = "no photograph of 700 pixels or more; install some"


def photograph(path, side):
    """Noise, so that the file is larger than a thumbnail's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side + 60, 3), np.uint8)).save(path)


def run(*command, **environment):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, env={**os.environ, "PATH": path, **environment}
    )


def test_large_images_are_copied_and_shrunk(tmp_path):
    photograph(tmp_path / "photos" / "deep" / "large.png", 1500)
    photograph(tmp_path / "photos" / "small.png", 300)
    (tmp_path / "photos" / "no_image.png").write_bytes(bytes(70_000))
    done = run(sys.executable, RECIPE / "photographs.py", tmp_path / "out", tmp_path / "absent", tmp_path / "photos")
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["deep_large.jpg"]
    assert max(Image.open(tmp_path / "out" / "deep_large.jpg").size) == 1400


def test_where_there_are_none_one_line_says_so_and_no_folder_is_left(tmp_path):
    (tmp_path / "empty").mkdir()
    done = run(sys.executable, RECIPE / "photographs.py", tmp_path / "out", tmp_path / "empty")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert REMEDY in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_the_full_set_is_not_generated_without_photographs(tmp_path):
    (tmp_path / "empty").mkdir()
    done = run("bash", RECIPE / "data.sh", tmp_path / "data", PHOTOGRAPHS=str(tmp_path / "empty"))
    assert (done.returncode, len(done.stderr.splitlines()), done.stdout) == (2, 1, "")
    assert REMEDY in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_an_empty_folder_of_photographs_is_none(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "data" / "photographs").mkdir(parents=True)
    done = run("bash", RECIPE / "data.sh", tmp_path / "data", PHOTOGRAPHS=str(tmp_path / "empty"))
    assert (done.returncode, REMEDY in done.stderr) == (2, True)
