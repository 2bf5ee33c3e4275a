"""Progress without a terminal: occasional lines, none when quiet; the position of an interrupted run."""

import logging
import re
import time

import pytest

from differad.progress import LOGGER, latest_position, progress_bar, track


@pytest.fixture
def level():
    before = LOGGER.level
    yield LOGGER.setLevel
    LOGGER.setLevel(before)


def work(seconds_between_lines):
    with progress_bar(seconds_between_lines=seconds_between_lines) as bar:
        task = bar.add_task("pairs", total=3)
        for _ in range(3):
            time.sleep(0.05)
            bar.advance(task)


def test_a_piped_run_writes_a_line_now_and_then(capsys):
    work(0.02)
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all(re.fullmatch(r"pairs: [0-3] of 3", line) for line in lines)


def test_a_short_run_writes_none(capsys):
    work(60.0)
    assert capsys.readouterr().err == ""


def test_quiet_writes_none(capsys, level):
    level(logging.ERROR)
    work(0.02)
    assert capsys.readouterr().err == ""


def interrupted_at(number):
    try:
        for item in track(range(5), "checking", 5):
            if item == number:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        return latest_position()


def test_after_an_interruption_one_can_ask_how_far_the_work_had_come():
    assert interrupted_at(2) == "checking: 2 of 5"
    assert interrupted_at(None) is None  # not interrupted
    assert latest_position() == ""
