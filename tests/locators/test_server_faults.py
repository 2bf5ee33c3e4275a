"""What a server may do wrong: repeat secrets, redirect, answer in another shape, without end, or not at all."""

import base64
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from PIL import Image

from desk import SAID, Desk, say
from differad.core import Location, Pair
from differad.errors import LocatorError, OptionError
from differad.locators import load_locator
from differad.locators.chat_client import MAX_ANSWER
from differad.locators.server import ServerLocator, ServerOptions

NAME = "Qwen2-VL-tiny"
KEY, PASSWORD = "sk-planted/key+1", "planted p@ss:word"
ADDRESS_PASSWORD = "planted%20p%40ss%3Aword"
SECRETS = [KEY, PASSWORD, ADDRESS_PASSWORD, base64.b64encode(f"ann:{PASSWORD}".encode()).decode()]
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def make_pixels(seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def pair() -> Pair:
    return Pair(make_pixels(0), make_pixels(1))


def ask(desk: Desk, **options: Any) -> Location:
    return ServerLocator(NAME, desk.url, ServerOptions(**{"retries": 0, "timeout": 20.0, **options})).locate(pair())


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(make_pixels(number)).save(folder / f"{number}.png")
    lines = [
        {"id": str(n), "category": "c", "reference": "0.png", "target": f"{n}.png", "boxes": [[1, 2, 30, 40]]}
        for n in (1, 2)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "pairs.jsonl"


def differad(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "differad", *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def repeat_secrets(desk: Desk, status: int) -> None:
    said = " ".join(SECRETS)

    def reply(number: int, question: dict[str, Any]) -> tuple[int, str, bytes]:
        if status == 200:
            return say(f"<think>I was sent {said}</think><answer>(98,28),(196,112)</answer>")
        return status, "application/json", json.dumps({"error": {"message": f"wrong key: {said}"}}).encode()

    desk.reply = reply


@pytest.mark.parametrize("status", [200, 401])
def test_planted_secrets_are_found_nowhere(desk: Desk, manifest: Path, tmp_path: Path, status: int) -> None:
    repeat_secrets(desk, status)
    address = desk.url.replace("://", f"://ann:{ADDRESS_PASSWORD}@")
    model = ["--model", f"openai:{NAME}@{address}", "-o", "retries=0"]
    one = [manifest.parent / "0.png", manifest.parent / "1.png"]
    out = tmp_path / "out"
    runs = [
        ["locate", *one, *model, "-v"],
        ["locate", *one, *model, "--json", "--save", out / "one.png"],
        ["locate", "--pairs", manifest, *model, "--out", out / "predictions.jsonl"],
        ["locate", "--pairs", manifest, *model, "--out", out / "predictions.jsonl", "--json", "-v"],
        ["evaluate", manifest, *model, "--out", out / "evaluated"],
        ["evaluate", manifest, *model, "--out", out / "evaluated", "--json", "-v"],
        ["inspect", *one, *model, "--out", out / "inspected"],
    ]
    out.mkdir()
    said = []
    for arguments in runs:
        done = differad(*arguments, OPENAI_API_KEY=KEY, OPENAI_LOG="debug")
        assert done.returncode == (1 if status == 401 else 3 if arguments[0] == "inspect" else 0), done.stderr
        said.append(done.stdout + done.stderr)
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {"run.json", "predictions.jsonl"} <= {path.name for path in files}
    assert ({"metrics.json", "report.html", "results.csv"} <= {path.name for path in files}) is (status == 200)
    texts = [*said, *(path.read_bytes().decode("latin-1") for path in files), *map(str, files)]
    for secret in [*SECRETS, "ann:", json.dumps(PASSWORD)[1:-1]]:
        assert not any(secret in text for text in texts), secret
    # The user of the address is who asks: basic authentication, which HTTP has no second header for.
    assert {headers["authorization"] for headers in desk.headers} == {f"Basic {SECRETS[-1]}"}


def test_a_repeated_key_is_taken_out_before_the_message_is_cut(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for padding in range(150, 200):
        desk.reply = lambda number, question, n=padding: (401, "text/plain", b"x" * n + KEY.encode())  # type: ignore[misc]
        with pytest.raises(LocatorError, match="status 401") as caught:
            ask(desk)
        assert KEY[:6] not in str(caught.value)


@pytest.mark.parametrize(
    "model",
    [
        "openai:m@http://ann:planted/word@host/v1",
        "openai:m@http://ann:planted#word@host/v1",
        "openai:m@http://ann:planted word@host/v1",
        "openai:m@http://ann:planted@host:port/v1",
        "openai:m@http://host/v1?key=planted",
        "openai:m@http://[ann:planted@host/v1",
        "openai:@http://ann:planted@host/v1",
        "http://ann:planted@host/v1",
        "openai:gpt-9@http://ann:planted@host/v1",
    ],
)
def test_a_wrong_address_is_refused_without_its_password(model: str) -> None:
    with pytest.raises(OptionError) as caught:
        load_locator(model)
    assert "planted" not in str(caught.value)


def test_a_wrong_option_is_refused_without_the_password() -> None:
    with pytest.raises(OptionError, match="retries") as caught:
        load_locator(f"openai:{NAME}@http://ann:planted@host/v1", retries="many")
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize("key", ["planted\nkey", "plänted", "planted\x1b"])
def test_a_key_that_no_header_takes_is_refused_without_it(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(OptionError, match="MY_KEY") as caught:
        load_locator(f"openai:{NAME}@http://host/v1", api_key_env="MY_KEY")
    assert key[:3] not in str(caught.value)


def test_a_key_among_the_options_is_refused_without_it() -> None:
    with pytest.raises(OptionError, match="'api_key'") as caught:
        load_locator(f"openai:{NAME}@http://host/v1", api_key="planted")
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_leads_to_another_origin(desk: Desk, status: int) -> None:
    other = Desk()
    try:
        place = f"{other.url}/chat/completions"

        def write(file: BinaryIO) -> None:
            file.write(f"HTTP/1.1 {status} Moved\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode())

        desk.write = write
        with pytest.raises(LocatorError, match=rf"status {status}, a redirect to {other.url[:-3]}, which is not"):
            ask(desk, retries=2)
        assert len(desk.questions) == 1
        assert not other.questions
    finally:
        other.close()


def test_a_redirect_within_the_server_is_followed(desk: Desk) -> None:
    def write(file: BinaryIO) -> None:
        if len(desk.questions) == 1:
            file.write(b"HTTP/1.1 307 Moved\r\nLocation: /v2/chat/completions\r\nContent-Length: 0\r\n\r\n")
            return
        body = say(SAID)[2]
        file.write(OK + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    desk.write = write
    assert ask(desk).valid
    assert desk.bodies[0] == desk.bodies[1]


def test_a_redirect_in_a_circle_ends(desk: Desk) -> None:
    desk.write = lambda file: file.write(b"HTTP/1.1 307 Moved\r\nLocation: /v1\r\nContent-Length: 0\r\n\r\n") and None
    with pytest.raises(LocatorError, match="not followed"):
        ask(desk)
    assert len(desk.questions) == 6  # the first and five redirects


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"choices": {"a": 1}}, "choices"),
        ({"choices": [{"message": "hi"}]}, "choices.0.message"),
        ({"choices": ["hi"]}, "choices.0"),
        ({"choices": [{"message": {"content": ["a"]}}]}, "choices.0.message.content"),
        ({"choices": [{"message": {"content": 5}}]}, "choices.0.message.content"),
        ({"choices": [{"message": {"content": "a", "reasoning": {}}}]}, "choices.0.message.reasoning"),
        ({"choices": None}, "choices"),
        ([1], "no chat completion"),
        ("hi", "no chat completion"),
        (None, "no chat completion"),
    ],
)
def test_an_answer_of_another_shape_costs_its_pair(desk: Desk, body: object, where: str) -> None:
    def reply(number: int, question: dict[str, Any]) -> tuple[int, str, bytes]:
        return (200, "application/json", json.dumps(body).encode()) if number == 1 else say(SAID)

    desk.reply = reply
    locator = ServerLocator(NAME, desk.url, ServerOptions(concurrency=1, retries=0))
    first, second = locator.locate_many([pair(), pair()])
    assert isinstance(first, LocatorError)
    assert where in str(first)
    assert "\n" not in str(first)
    assert isinstance(second, Location)


@pytest.mark.parametrize("body", [b'{"choices":' + b"[" * 100_000, b'"\xff"', b""])
def test_an_answer_that_is_no_json_costs_its_pair(desk: Desk, body: bytes) -> None:
    desk.reply = lambda number, question: (200, "application/json", body)
    with pytest.raises(LocatorError, match="no chat completion"):
        ask(desk)


def trickle(head: bytes, desk: Desk) -> Any:
    def write(file: BinaryIO) -> None:
        file.write(head)
        while not desk.closing.wait(0.1):
            file.write(b"1\r\n \r\n" if head.startswith(OK) else b"x")
            file.flush()

    return write


@pytest.mark.parametrize("head", [OK + b"Transfer-Encoding: chunked\r\n\r\n", b"HTTP/1.1 200 OK\r\nX-Long: "])
def test_an_answer_byte_by_byte_is_given_up_at_the_deadline(desk: Desk, head: bytes) -> None:
    desk.write = trickle(head, desk)
    start = time.monotonic()
    with pytest.raises(LocatorError, match=r"no answer within 0\.7 s after 2 tries"):
        ask(desk, timeout=0.7, retries=1)
    assert time.monotonic() - start < 10  # two tries of 0.7 s and a wait of half a second; the rest is a busy machine's
    assert len(desk.questions) == 2


def test_all_tries_of_a_request_end_at_the_deadline(desk: Desk) -> None:
    desk.write = lambda file: desk.closing.wait(20) and None
    start = time.monotonic()
    with pytest.raises(LocatorError, match=r"no answer within 1\.2 s, repetitions included; raise deadline"):
        ask(desk, timeout=0.4, retries=50)  # three times the timeout
    assert time.monotonic() - start < 10  # fifty tries would take 20 s and their waits 400 s
    with pytest.raises(LocatorError, match=r"no answer within 0\.5 s, repetitions included"):
        ask(desk, timeout=30, retries=0, deadline=0.5)


def test_waits_that_a_server_asks_for_end_at_the_deadline(desk: Desk) -> None:
    desk.write = lambda file: file.write(b"HTTP/1.1 503 Busy\r\nRetry-After: 30\r\nContent-Length: 0\r\n\r\n") and None
    start = time.monotonic()
    with pytest.raises(LocatorError, match=r"no answer within 1 s, repetitions included"):
        ask(desk, deadline=1.0, retries=5)
    assert time.monotonic() - start < 10


# A resolver that does not answer: the call cannot be interrupted.
HANGING_LOOKUP = """
import socket, sys, threading
found = socket.getaddrinfo
def look_up(host, *rest, **how):
    if host in ("slow.invalid", b"slow.invalid"):
        print("looking up", flush=True)
        threading.Event().wait(60)
    return found(host, *rest, **how)
socket.getaddrinfo = look_up
from differad.cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("command", ["locate 0.png 1.png", "evaluate pairs.jsonl --out evaluated"])
def test_ctrl_c_ends_a_run_while_a_name_is_looked_up(manifest: Path, command: str) -> None:
    model = ["--model", f"openai:{NAME}@http://slow.invalid/v1", "-o", "timeout=50"]
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING_LOOKUP, *command.split(), *model],
        cwd=manifest.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "looking up\n"
        before = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=40)
        took = time.monotonic() - before
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGINT
    assert took < 3  # about a tenth of a second on an idle machine; the lookup takes 60


def test_a_hanging_lookup_ends_at_the_deadline_and_an_unknown_name_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = socket.getaddrinfo
    release = threading.Event()

    def look_up(host: Any, *rest: Any, **how: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else str(host)
        if name == "slow.invalid":
            release.wait(30)
        if name.endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return found(host, *rest, **how)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    options = ServerOptions(timeout=0.5, retries=0)
    with pytest.raises(LocatorError, match=r"no answer within 0\.5 s"):
        ServerLocator(NAME, "http://slow.invalid/v1", options).locate(pair())
    release.set()
    with pytest.raises(LocatorError, match=r"no connection after 1 tries \(.*; is the server up"):
        ServerLocator(NAME, "http://no.invalid/v1", options).locate(pair())


def endless(status: bytes, head: bytes, part: bytes) -> Any:
    def write(file: BinaryIO) -> None:
        file.write(b"HTTP/1.1 " + status + b"\r\nTransfer-Encoding: chunked\r\n" + head + b"\r\n")
        while True:
            file.write(chunk(part))

    return write


def write_gzip(status: bytes, megabytes: int) -> Any:
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    packed = b"".join(packer.compress(b" " * 2**20) for _ in range(megabytes)) + packer.flush()
    assert len(packed) < 2**20

    def write(file: BinaryIO) -> None:
        file.write(b"HTTP/1.1 " + status + b"\r\nContent-Encoding: gzip\r\n")
        file.write(b"Content-Length: %d\r\n\r\n" % len(packed) + packed)

    return write


@pytest.mark.parametrize("status", [b"200 OK", b"400 Bad"])
def test_an_answer_without_end_is_cut_off(desk: Desk, status: bytes) -> None:
    desk.write = endless(status, b"", b" " * 60_000)
    with pytest.raises(LocatorError, match="longer than 4 MB" if status.startswith(b"200") else "status 400"):
        ask(desk)


@pytest.mark.parametrize("status", [b"200 OK", b"400 Bad"])
def test_a_large_answer_in_gzip_takes_little_memory(desk: Desk, status: bytes) -> None:
    desk.write = write_gzip(status, 300)
    locator = ServerLocator(NAME, desk.url, ServerOptions(retries=0))
    tracemalloc.start()
    try:
        with pytest.raises(LocatorError, match="longer than 4 MB" if status.startswith(b"200") else "status 400"):
            locator.locate(pair())
        assert tracemalloc.get_traced_memory()[1] < 10 * MAX_ANSWER
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_compressed_answer_is_read(desk: Desk, coding: str) -> None:
    body = say(SAID)[2]
    packed = gzip.compress(body) if coding == "gzip" else zlib.compress(body)

    def write(file: BinaryIO) -> None:
        file.write(OK + f"Content-Encoding: {coding}\r\nContent-Length: {len(packed)}\r\n\r\n".encode() + packed)

    desk.write = write
    assert ask(desk).valid
    assert desk.headers[0]["accept-encoding"] == "identity"


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"gzip, gzip"])
def test_a_coding_that_cannot_be_read_costs_the_pair(desk: Desk, coding: bytes) -> None:
    desk.write = lambda file: (
        file.write(OK + b"Content-Encoding: " + coding + b"\r\nContent-Length: 4\r\n\r\n\1\2\3\4") and None
    )
    with pytest.raises(LocatorError, match="no chat completion"):
        ask(desk)


def test_the_longest_answer_that_is_read(desk: Desk) -> None:
    frame = len(say("")[2])
    desk.reply = lambda number, question: say("x" * (MAX_ANSWER - frame))
    assert not ask(desk).valid
    desk.reply = lambda number, question: say("x" * (MAX_ANSWER - frame + 1))
    with pytest.raises(LocatorError, match="longer than 4 MB"):
        ask(desk)


@pytest.mark.parametrize(
    ("command", "number", "hangs"),
    [
        ("locate --pairs pairs.jsonl --out predictions.jsonl", signal.SIGINT, "before the status"),
        ("locate 0.png 1.png", signal.SIGINT, "after it"),
        ("evaluate pairs.jsonl --out evaluated", signal.SIGTERM, "after it"),
        ("inspect 0.png 1.png 2.png --out inspected", signal.SIGINT, "before the status"),
    ],
)
def test_a_signal_ends_a_run_while_the_server_hangs(
    desk: Desk, manifest: Path, command: str, number: int, hangs: str
) -> None:
    asked = threading.Event()

    def write(file: BinaryIO) -> None:
        if hangs == "after it":
            file.write(OK + b"Transfer-Encoding: chunked\r\n\r\n")
            file.flush()
        asked.set()
        desk.closing.wait(60)

    desk.write = write
    model = ["--model", f"openai:{NAME}@{desk.url}", "-o", "timeout=50", "-o", "retries=9"]
    process = subprocess.Popen(
        [sys.executable, "-m", "differad", *command.split(), *model],
        cwd=manifest.parent,
        stderr=subprocess.PIPE,
        text=True,
        # A test run that was started in the background hands down an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert asked.wait(60)
        time.sleep(0.3)
        before = time.monotonic()
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
        took = time.monotonic() - before
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert took < 3  # about a tenth of a second on an idle machine
    assert said.startswith("differad: ")
    assert said.count("\n") == 1
    assert len(desk.questions) <= 2


def test_a_stream_that_is_left_gives_up_its_requests_alone(desk: Desk) -> None:
    """Another stream of the same locator goes on."""
    release = threading.Event()

    def reply(number: int, question: dict[str, Any]) -> tuple[int, str, bytes]:
        if number > 1:
            release.wait(20)
        return say(SAID)

    desk.reply = reply
    locator = ServerLocator(NAME, desk.url, ServerOptions(concurrency=1, timeout=60))
    left = locator.locate_many([pair(), pair(), pair()])
    next(left)
    others: list[Location] = []
    thread = threading.Thread(target=lambda: others.append(locator.locate(pair())))
    thread.start()
    while len(desk.questions) < 3:
        time.sleep(0.01)
    start = time.monotonic()
    left.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < 10
    release.set()
    thread.join(20)
    assert others[0].valid


def test_threads_end_with_their_locator(desk: Desk) -> None:
    def running() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "differad requests"]

    before = len(running())
    locator = ServerLocator(NAME, desk.url)
    locator.locate(pair())
    assert len(running()) == before + 1
    del locator
    deadline = time.monotonic() + 20
    while len(running()) > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(running()) == before
