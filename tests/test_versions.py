"""Output of a failing `make test-newest`, and the content of its files."""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def test_only_what_differs_is_named(tmp_path):
    pins = tmp_path / "constraints.txt"
    pins.write_text(f"# a comment\nnumpy=={version('numpy')}\nPyYAML==0.1  # old\nabsent==1\n")
    command = [sys.executable, ROOT / "scripts/versions.py", "--against", pins]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[1:] == [f"pyyaml {version('pyyaml')} (pinned: 0.1)"]


def test_the_set_is_printed():
    command = [sys.executable, ROOT / "scripts/versions.py"]
    words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert f"numpy=={version('numpy')}" in words


def test_what_the_border_names_exists():
    parts = re.findall(
        r"tests/\S+",
        " ".join(re.findall(r"^(?:BORDER|NEWEST_TESTS) .*$", (ROOT / "Makefile").read_text(), re.MULTILINE)),
    )
    assert len(parts) > 15
    for part in parts:
        path, _, name = part.partition("::")
        assert f"def {name}" in (ROOT / path).read_text(), part


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_the_workflow_runs_each_python_on_each_system(python):
    jobs = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]
    assert all(python in jobs[name]["strategy"]["matrix"]["python"] for name in ("suite", "windows"))
    assert "Programming Language :: Python :: " + python in (ROOT / "pyproject.toml").read_text()
