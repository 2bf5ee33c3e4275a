"""Tiny checkpoints, built once, and the servers that answer for them, stopped when the tests end."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from desk import SAID, free_port


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`checkpoint(model_type, answer)`: the folder of a checkpoint that says `answer`; None: one that depends on its input."""
    import torch

    # On tiny models a second thread costs more than it brings, and very much more on a busy machine.
    torch.set_num_threads(1)
    made: dict[tuple[str, str | None], Path] = {}

    def build(model_type: str, answer: str | None = SAID) -> Path:
        from tiny_models import build_checkpoint

        if (model_type, answer) not in made:
            made[model_type, answer] = build_checkpoint(tmp_path_factory.mktemp(model_type), model_type, answer)
        return made[model_type, answer]

    return build


@pytest.fixture(scope="session")
def transformers_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `transformers serve`, which loads the checkpoint that a request names."""
    port, log = free_port(), tmp_path_factory.mktemp("serve") / "log.txt"
    script = Path(__file__).with_name("serve_checkpoint.py")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, script, str(port)], stdout=out, stderr=out, env=environment)
    try:
        _wait_until_healthy(process, port, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_healthy(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise RuntimeError(f"transformers serve did not come up:\n{log.read_text()[-3000:]}")
