"""If memory does not suffice for one pair, that pair fails with the reason, and the others are answered."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from differad import ImageError, Pair, load_locator
from differad.headers import unreadable
from differad.memory import is_out_of_memory

# 36 megapixels: two of them as RGB take 216 MB. The process may grow by less than that once it has answered a small pair.
LARGE, ROOM = 6000, 150_000_000
SCRIPT = """
import resource, sys
from differad import Pair, load_locator
folder, room = sys.argv[1], int(sys.argv[2])
locator = load_locator("difference", workers=1)
pairs = [Pair(f"{folder}/{name}_good.png", f"{folder}/{name}.png", id=name) for name in ("small", "large", "small")]
locator.locate(pairs[0])
size = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (size + room, size + room))
for outcome in locator.locate_many(pairs):
    print(type(outcome).__name__, getattr(outcome, "anomalous", outcome))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    cells = np.random.default_rng(0).integers(40, 200, (12, 12, 3), np.uint8)
    for name, side in (("small", 96), ("large", LARGE)):
        for ending in ("", "_good"):
            Image.fromarray(cells).resize((side, side), Image.Resampling.NEAREST).save(
                folder / f"{name}{ending}.png", compress_level=1
            )
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="the size of a process is read from /proc")
def test_a_large_pair_among_small_ones_costs_itself_alone(folder):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(ROOM)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    first, large, last = done.stdout.splitlines()
    assert first == last == "Location False"
    assert "not enough memory" in large
    assert large.startswith(("ImageError ", "LocatorError "))
    assert "broken" not in large


COMMAND = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]) << 20,) * 2)
from differad.cli.main import main
main(["locate", *sys.argv[2:]])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what a process may address is limited otherwise")
@pytest.mark.parametrize("megabytes", [150, 220, 290, 330, 360, 420, 500, 600])
def test_a_process_that_may_not_grow(folder, megabytes):
    """Memory too small for the libraries or for the images, or sufficient: a verdict or one line, never a traceback."""
    images = [str(folder / name) for name in ("small_good.png", "small.png")]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, str(megabytes), *images],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stderr
    if done.returncode in (1, 2):  # else a library written in C ended the process with words of its own
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("OpenBLAS") or "not enough memory" in done.stderr


def test_a_failure_that_is_kept_keeps_no_image(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    pair = Pair(tmp_path / "broken.png", tmp_path / "broken.png", id="a")
    (error,) = load_locator("difference").locate_many([pair])
    assert isinstance(error, ImageError)
    assert (error.__traceback__, error.__context__) == (None, None)


def test_what_libraries_say_of_memory():
    assert is_out_of_memory(OSError(12, "Cannot allocate memory"))
    assert not is_out_of_memory(ValueError("out of memory"))
    assert "not enough memory" in str(unreadable("a.png", MemoryError()))
    assert "broken or truncated" in str(unreadable("a.png", OSError("image file is truncated")))


def test_c_code_that_could_not_make_its_error_says_that_memory_ran_out():
    assert is_out_of_memory(SystemError("error return without exception set"))
    assert is_out_of_memory(SystemError("<built-in function f> returned NULL without setting an exception"))
    assert not is_out_of_memory(SystemError("bad argument to internal function"))
