"""Runs one command line of the documentation, in bash.

A plain call of differad, with nothing for a shell to do, runs in a fork of a process that has imported differad and torch before:
most of what a page's commands take is importing.
"""

import multiprocessing
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from docs_blocks import ROOT, without_comment

LIMIT = 300  # seconds of one command
_PLAIN = re.compile(r"differad (?:[^'\"|&;<>$*~`\\#]|'[^']*')*")
_PRELOAD = ["pytest", "differad.cli.app", "differad.training.sft", "differad.training.rl"]


@dataclass(frozen=True)
class Done:
    """Result of a command: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


def execute(command: str, folder: Path) -> Done:
    """Run a command line in `folder`."""
    if _PLAIN.fullmatch(plain := without_comment(command)):
        return _fork(shlex.split(plain)[1:], folder)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=LIMIT, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


def environment(folder: Path) -> dict[str, str]:
    """Of a new user at home in `folder`, with this differad installed, and no network."""
    places = [str(Path(sys.executable).parent), os.environ["PATH"]]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DIFFERAD_")}
    return {
        **kept, "HOME": str(folder), "PATH": os.pathsep.join(places), "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip


def _fork(arguments: list[str], folder: Path) -> Done:
    out, err = folder.with_name(f"{folder.name}.out"), folder.with_name(f"{folder.name}.err")
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(_PRELOAD)
    process = forks.Process(target=_differad, args=(arguments, folder, environment(folder), (out, err)))
    process.start()
    process.join(LIMIT)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"{arguments}: not done after {LIMIT} s")
    return Done(process.exitcode, out.read_text(), err.read_text())


def _differad(arguments: list[str], folder: Path, variables: dict[str, str], streams: tuple[Path, Path]) -> None:
    for number, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    from differad.cli.main import main

    main(arguments)
