"""A chat completions server for tests: real HTTP, with answers that a test sets."""

import json
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, BinaryIO

SAID = "<think>The cap is gone.</think><answer>(98,28),(196,112)</answer>"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Desk:
    """A real HTTP server that answers with `reply(number, question)`: (status, content type, body).

    If `write` is set, it writes the whole response instead, with the status line.
    """

    def __init__(self) -> None:
        self.questions: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.reply: Callable[[int, dict[str, Any]], tuple[int, str, bytes]] = lambda number, question: say(SAID)
        self.write: Callable[[BinaryIO], None] | None = None
        self.closing = threading.Event()
        self._lock = threading.Lock()
        desk = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                desk.bodies.append(body)
                question = json.loads(body)
                number = desk.record(question, {name.lower(): value for name, value in self.headers.items()})
                try:
                    if desk.write is not None:
                        self.close_connection = True
                        desk.write(self.wfile)
                        return
                    status, kind, answer = desk.reply(number, question)
                    self.send_response(status)
                    self.send_header("Content-Type", kind)
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)
                except ConnectionError:
                    return  # The client gave up waiting, which some tests provoke.

            def log_message(self, *_: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def record(self, question: dict[str, Any], headers: dict[str, str]) -> int:
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
