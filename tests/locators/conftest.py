"""Tiny checkpoints, built once, and the servers that answer for them, stopped when the tests end."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

SAID = "<think>The cap is gone.</think><answer>(98,28),(196,112)</answer>"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`checkpoint(model_type, answer)`: the folder of a checkpoint that says `answer`; None: one that looks at its input."""
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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


class Desk:
    """A real HTTP server that answers as `reply(number, question)` says: (status, content type, body)."""

    def __init__(self) -> None:
        self.questions: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.reply: Callable[[int, dict[str, Any]], tuple[int, str, bytes]] = lambda number, question: say(SAID)
        self.closing = threading.Event()
        self._lock = threading.Lock()
        desk = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                desk.bodies.append(body)
                question = json.loads(body)
                number = desk.note(question, {name.lower(): value for name, value in self.headers.items()})
                status, kind, answer = desk.reply(number, question)
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", kind)
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)
                except ConnectionError:
                    return  # The client gave up waiting, which is what some tests are about.

            def log_message(self, *_: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def note(self, question: dict[str, Any], headers: dict[str, str]) -> int:
        with self._lock:
            self.questions.append(question)
            self.headers.append(headers)
            self.times.append(time.monotonic())
            return len(self.questions)

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()


def say(content: str | None, **message: Any) -> tuple[int, str, bytes]:
    """A chat completion with one choice."""
    body = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "desk",
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content, **message}}
        ],
    }
    return 200, "application/json", json.dumps(body).encode()


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk()
    yield made
    made.close()
