"""Output of a run: one line per logging step, one bar on a terminal, no chatter of libraries, only errors with -q."""

import fcntl
import json
import logging
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import warnings

import pytest

pytest.importorskip("trl", reason="the train extra is not installed")
import datasets
import transformers
from huggingface_hub.utils.tqdm import are_progress_bars_disabled

from differad.cli.main import run
from differad.progress import LOGGER
from differad.training.output import duration, format_number
from differad.training.sft import train_sft

NUMBER = r"-?\d\S* *"
TIMING = r"[\d.]+ s/step  \d+ s left"
LINE = {
    "sft": rf"step {{step}}/4  loss {NUMBER} {TIMING}",
    "rl": rf"step {{step}}/4  loss {NUMBER} reward {NUMBER} kl {NUMBER} {TIMING}",
}
HELD_OUT = r" +miou \d\S* \(held out\)"
OURS = ("differad: warning: ", "differad: prompts are shared in rollout and loss")


@pytest.fixture
def write_recipe(make_recipe, tmp_path, pairs):
    """A file with the recipe of the phase: four steps, a checkpoint and held-out pairs every two, curves for TensorBoard."""

    def write(phase, *overrides):
        own = ("train.steps=4", "train.save_every=2", "train.report_to=[tensorboard]", f"held_out.pairs=[{pairs}]")
        recipe = make_recipe(phase, *own, "held_out.every=2", *overrides)
        path = tmp_path / f"{phase}.json"
        path.write_text(recipe.model_dump_json())
        return path

    return write


def steps_of(text):
    """The lines about steps; every other line has to be one of ours."""
    lines = text.splitlines()
    others = [line for line in lines if not line.startswith("step ")]
    assert [line for line in others if not line.startswith(OURS)] == []
    return [line for line in lines if line.startswith("step ")]


@pytest.mark.parametrize("phase", ["sft", "rl"])
def test_a_piped_run_writes_one_tidy_line_at_each_logging_step(write_recipe, capfd, phase):
    assert run(["train", phase, str(write_recipe(phase)), "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["steps"] == 4
    assert [name for name in ("{", "it/s", "model shards", "Loading", "\r", "[transformers]") if name in err] == []
    assert ("differad: prompts are shared" in err) == (phase == "rl")
    lines = steps_of(err)
    for step, line in enumerate(lines, 1):
        assert re.fullmatch(LINE[phase].format(step=step) + (HELD_OUT if step % 2 == 0 else ""), line), line
    assert len(lines) == 4
    assert len({line.index(" s/step") for line in lines}) == 1  # figures stand below each other


def test_held_out_metrics_between_logging_steps_have_a_line_of_their_own(write_recipe, capfd):
    assert run(["train", "sft", str(write_recipe("sft")), "train.log_every=3"]) == 0
    lines = steps_of(capfd.readouterr().err)
    assert [line.split()[:3:2] for line in lines] == [["step", "miou"], ["step", "loss"], ["step", "miou"]]
    assert [line.split()[1] for line in lines] == ["2/4", "3/4", "4/4"]


def test_a_resumed_run_goes_on_with_its_numbers(write_recipe, capfd):
    path = str(write_recipe("sft"))
    assert run(["train", "sft", path, "train.steps=2"]) == 0
    capfd.readouterr()
    assert run(["train", "sft", path, "--resume"]) == 0
    assert [line.split()[1] for line in steps_of(capfd.readouterr().err)] == ["3/4", "4/4"]


@pytest.mark.parametrize("phase", ["sft", "rl"])
def test_quiet_says_nothing(write_recipe, capfd, phase):
    assert run(["train", phase, str(write_recipe(phase)), "--quiet"]) == 0
    assert capfd.readouterr().err == ""


def test_verbose_lets_libraries_speak(write_recipe, capfd):
    assert run(["train", "sft", str(write_recipe("sft", "train.steps=1")), "--verbose"]) == 0
    err = capfd.readouterr().err
    assert "Writing model shards" in err
    assert re.search("^step 1/1  loss ", err, re.MULTILINE)


@pytest.mark.parametrize("level", [logging.WARNING, logging.ERROR])
def test_a_run_leaves_the_libraries_as_it_found_them(make_recipe, level):
    def state():
        loggers = [logging.getLogger(name) for name in (None, "transformers", "transformers.trainer_utils", "trl")]
        bars = datasets.utils.are_progress_bars_disabled(), are_progress_bars_disabled()
        bars = *bars, transformers.utils.logging.is_progress_bar_enabled()
        return [(logger.level, list(logger.filters)) for logger in loggers], bars, list(warnings.filters), sys.stdout

    before, ours = state(), LOGGER.level
    LOGGER.setLevel(level)
    try:
        train_sft(make_recipe("sft", "train.steps=1"))
    finally:
        LOGGER.setLevel(ours)
    assert state() == before


def test_a_run_that_goes_on_logs_as_often_as_its_recipe_says(write_recipe, capfd):
    assert (
        run(["train", "sft", str(write_recipe("sft", "train.steps=2", "train.save_every=2", "train.log_every=2"))]) == 0
    )
    capfd.readouterr()
    longer = write_recipe("sft", "train.steps=4", "train.save_every=3", "train.log_every=1")
    assert run(["train", "sft", str(longer), "--resume"]) == 0
    err = capfd.readouterr().err
    assert re.findall("^step ([0-9/]+)  loss", err, re.MULTILINE) == ["3/4", "4/4"]
    assert "do not match" not in err


def test_an_interrupted_run_says_how_far_it_came(write_recipe):
    """Held-out pairs were located meanwhile: their bar is not the run's."""
    command = [sys.executable, "-m", "differad", "train", "sft", str(write_recipe("sft", "train.steps=2000"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        # A suite that was started in the background hands down an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        for line in process.stderr:
            if "3/2000" in line:
                break
        process.send_signal(signal.SIGINT)
        last = process.communicate(timeout=60)[1].splitlines()[-1]
    assert process.returncode == 130
    assert re.fullmatch(
        r"differad: interrupted at step: \d+ of 2000; --resume goes on from the last whole checkpoint", last
    )


def on_a_terminal(*command):
    """What the command shows, with the control codes, on a terminal so wide that no warning is broken."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 400, 0, 0))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TERM": "xterm-256color"}
    for name in ("COLUMNS", "LINES"):  # a runner of tests may say how wide its own terminal is
        environment.pop(name, None)
    process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=environment)
    os.close(its)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:  # raised by Linux for a terminal without writers
        pass
    os.close(ours)
    assert process.wait(timeout=60) == 0, shown[-3000:]
    return shown.decode()


def test_a_terminal_has_one_bar_and_the_lines_above_it(write_recipe):
    shown = on_a_terminal(sys.executable, "-m", "differad", "train", "rl", str(write_recipe("rl")))
    rows = [row for row in re.split(r"[\r\n]+", re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", shown)) if row]
    bars = [row for row in rows if "━" in row]
    assert re.fullmatch(rf"step ━+ 4/4 loss {NUMBER} reward {NUMBER} kl {NUMBER} 0 s left *", bars[-1])
    rest = [row for row in rows if "━" not in row]
    assert rest.pop().startswith("4 steps; model: ")
    lines = steps_of("\n".join(rest))
    assert len(lines) == 4
    assert all(re.match(LINE["rl"].format(step=step), line) for step, line in enumerate(lines, 1))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.4123, "0.412"),
        (1.3149, "1.31"),
        (12.345, "12.3"),
        (1234.5, "1234"),
        (0.00213, "0.002"),
        (0.00004321, "4e-05"),
        (-0.0123, "-0.012"),
        (0.0, "0"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_figures_have_few_digits(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (45, "45 s"),
        (89.7, "90 s"),
        (100, "2 min"),
        (720, "12 min"),
        (12000, "3 h 20 min"),
        (190800, "2 d 5 h"),
    ],
)
def test_spans_have_one_or_two_units(seconds, text):
    assert duration(seconds) == text
