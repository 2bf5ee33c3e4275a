"""A signal ends a command with one line and 128 + its number, whenever it comes, and leaves the terminal as it was."""

import os
import signal
import subprocess
import sys
import time

import pytest

pty = pytest.importorskip("pty", reason="signals and terminals are POSIX's")
ENDING = {signal.SIGINT: "interrupted", signal.SIGTERM: "ended by SIGTERM", signal.SIGHUP: "ended by SIGHUP"}
HIDDEN, SHOWN = b"\x1b[?25l", b"\x1b[?25h"


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "differad", *map(str, arguments)],
        # A test run that was started in the background hands down an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **options,
    )


def synthesize(out, workers=1):
    return "synthesize", "--count", "100000", "--size", "64", "--seed", "1", "--workers", str(workers), "--out", out


def wait_for_pairs(out, process):
    deadline = time.monotonic() + 60
    manifest = out / "pairs.jsonl"
    while time.monotonic() < deadline and process.poll() is None:
        if manifest.exists() and manifest.read_bytes().count(b"\n") > 2:
            return
        time.sleep(0.02)
    raise AssertionError("no pairs were drawn")


@pytest.mark.parametrize("number", list(ENDING))
def test_while_it_loads(tmp_path, number):
    """The entry is loaded, the command is not: this process stops at the first import of NumPy, which it waits in."""
    (tmp_path / "numpy.py").write_text(
        "import pathlib, time\npathlib.Path(__file__).with_name('loading').touch()\ntime.sleep(60)\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    process = start("models", stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path})
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (tmp_path / "loading").exists():
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.decode()) == (128 + number, f"differad: {ENDING[number]}\n")


@pytest.mark.parametrize("number", list(ENDING))
@pytest.mark.parametrize("workers", [1, 2])
def test_while_it_works(tmp_path, number, workers):
    out = tmp_path / "out"
    process = start(*synthesize(out, workers), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    wait_for_pairs(out, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    (line,) = err.decode().splitlines()
    assert process.returncode == 128 + number
    assert line.startswith(f"differad: {ENDING[number]} at pairs: ")
    assert line.endswith(" of 100000; the same command goes on from there")
    assert not (out / ".differad.lock").exists()


def test_the_cursor_is_shown_again(tmp_path):
    out = tmp_path / "out"
    terminal, its = pty.openpty()
    process = start(*synthesize(out), stderr=its, stdout=its, env={**os.environ, "TERM": "xterm"})
    os.close(its)
    wait_for_pairs(out, process)
    process.send_signal(signal.SIGTERM)
    seen = b""
    while chunk := read(terminal):
        seen += chunk
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert HIDDEN in seen
    assert seen.rindex(SHOWN) > seen.rindex(HIDDEN)


def read(terminal):
    try:
        return os.read(terminal, 65536)
    except OSError:  # nobody has it open any more
        return b""


def test_a_signal_that_is_ignored_stays_so(tmp_path):
    """As under nohup."""
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "differad", "synthesize", "--count", "40", "--size", "64", "--out", str(out), "-q"],
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
        stdout=subprocess.DEVNULL,
    )
    wait_for_pairs(out, process)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=60) == 0
