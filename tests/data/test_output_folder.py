"""The output folder of a build: one build at a time, marked until finished, started over without touching other files."""

import os
import signal
import subprocess
import sys
import time

import pytest

from differad.data.build import BuildOptions, build
from differad.data.locks import exclusive_run
from differad.data.output_folder import MARKER, create_output_folder
from differad.data.pairing import Pairing
from differad.errors import InputError, ManifestError
from miniatures import mvtec

COPY = BuildOptions(Pairing("random"), files="copy")
STUCK = """
import sys, time
from differad.data.build import BuildOptions, build
from differad.data.pairing import Pairing

def wait(built):
    print("built", flush=True)
    time.sleep(600)

build("mvtec", {root!r}, {out!r}, BuildOptions(Pairing("random"), files="copy"), finish=wait, progress=False)
"""

HOLD = """
import sys, time
from pathlib import Path
from differad.data.locks import exclusive_run

with exclusive_run(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def root(tmp_path):
    return mvtec(tmp_path / "data", ("nut",))


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def stuck(root, tmp_path):
    """A build that has written all files and is not finished."""
    code = STUCK.format(root=str(root), out=str(tmp_path / "out"))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "built\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def kill(process):
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_two_builds_at_the_same_time_and_one_that_was_killed(stuck, root, tmp_path):
    out = tmp_path / "out"
    for force in (False, True):
        with pytest.raises(InputError, match="out: another run writes to it; wait for it"):
            build("mvtec", root, out, COPY, force=force)
    kill(stuck)
    with pytest.raises(InputError, match="holds an unfinished build; --force removes what it made and starts over"):
        build("mvtec", root, out, COPY)
    made = files(out)
    build("mvtec", root, out, COPY, force=True)
    assert set(files(out)) == {name for name in made if not name.startswith(".")}
    with pytest.raises(InputError, match="not empty"):  # a finished build is never removed
        build("mvtec", root, out, COPY, force=True)


def test_other_files_are_not_removed(stuck, root, tmp_path):
    kill(stuck)
    out = tmp_path / "out"
    copies = next(path for path in out.rglob("train") if path.is_dir())
    (copies / "mine.png").write_bytes(b"mine")
    (out / "pairs.jsonl.77.tmp").write_bytes(b"half")
    with pytest.raises(InputError, match=r"not empty; .* holds files"):
        build("mvtec", root, out, COPY, force=True)
    assert files(out) == [(copies / "mine.png").relative_to(out).as_posix()]
    (copies / "mine.png").unlink()
    for folder in sorted(out.rglob("*"), reverse=True):
        folder.rmdir()
    assert len(build("mvtec", root, out, COPY).pairs) > 0


@pytest.mark.parametrize("listed", ['"../data/nut"', '"/etc/hosts"', "{"])
def test_a_marker_that_no_build_wrote_removes_nothing(root, tmp_path, listed):
    out = tmp_path / "out"
    out.mkdir()
    (out / MARKER).write_text(f'"files of an unfinished build"\n{listed}\n')
    with pytest.raises(InputError, match="does not list what a build made"):
        build("mvtec", root, out, COPY, force=True)
    assert (root / "nut").is_dir()


def test_a_build_that_fails_leaves_nothing(root, tmp_path):
    (root / "nut" / "ground_truth" / "scratch" / "002_mask.png").unlink()
    with pytest.raises(ManifestError):
        build("mvtec", root, tmp_path / "out", COPY)
    assert files(tmp_path / "out") == []
    assert list((tmp_path / "out").iterdir()) == []


def test_an_interrupted_build_leaves_nothing(tmp_path):
    def build_until_interrupted():
        with create_output_folder(tmp_path / "out") as folder:
            folder.record(folder.path / "a" / "b.txt")
            (folder.path / "a").mkdir()
            (folder.path / "a" / "b.txt").write_text("")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_until_interrupted()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_lock_of_a_killed_run_is_free(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "in\n"
    with pytest.raises(InputError, match="another run writes to it"), exclusive_run(tmp_path):
        pass
    kill(process)
    process.stdout.close()
    assert len(list(tmp_path.iterdir())) == 1  # the lock file that the kill left
    begin = time.monotonic()
    with exclusive_run(tmp_path):
        pass
    assert time.monotonic() - begin < 5
    assert list(tmp_path.iterdir()) == []
