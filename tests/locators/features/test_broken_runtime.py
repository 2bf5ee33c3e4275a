"""An ONNX Runtime that is installed and cannot be imported: OpenCV answers, which is said once; asked for by name, one line."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from differad.synthesis.pairs import make_pair

BROKEN = {
    "another NumPy": "raise ImportError('numpy.core.multiarray\\nfailed to import')",
    "a part is missing": "import no_such_module_anywhere",
    "a library is missing": "raise OSError('libcudart.so.12: cannot open shared object file')",
    "no reason": "raise ImportError",
    "a folder left behind": None,
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    pair = make_pair(np.random.default_rng(1), "grain", size=224)
    for name in ("reference", "target"):
        Image.fromarray(getattr(pair, name)).save(folder / f"{name}.png")
    return folder


def locate(images, *arguments, package=None):
    """One pair in a process of its own, with a folder in front of the installed packages."""
    places = [*([str(package)] if package else []), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-m", "differad", "locate", "reference.png", "target.png", "--json", *arguments],
        cwd=images, env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture(params=BROKEN.values(), ids=BROKEN.keys())
def package(request, tmp_path):
    (tmp_path / "onnxruntime").mkdir()
    if request.param is not None:
        (tmp_path / "onnxruntime" / "__init__.py").write_text(request.param)
    return tmp_path


def answer(done):
    document = json.loads(done.stdout)
    del document["seconds"]
    return document


@pytest.mark.parametrize("model", ["auto", "features"])
def test_opencv_answers_and_one_line_says_why(images, package, model):
    done = locate(images, "--model", model, package=package)
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("differad: warning: onnxruntime is installed and cannot be imported (")
    assert line.endswith("runtime=opencv")
    option = "runtime" if model == "features" else "features.runtime"
    plain = locate(images, "--model", model, "-o", f"{option}=opencv", package=package)
    assert plain.stderr == ""
    assert answer(plain) == answer(done)


def test_asked_for_by_name_it_is_an_error(images, package):
    done = locate(images, "--model", "features", "-o", "runtime=onnxruntime", package=package)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "runtime='onnxruntime': expected opencv, as the installed onnxruntime cannot be imported (" in line
