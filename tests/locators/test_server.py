"""A served model: `transformers serve` on a tiny checkpoint, and a real HTTP server for what goes wrong on the way."""

import base64
import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from desk import SAID, Desk, free_port, say
from differad.core import Location, Pair
from differad.errors import ImageError, LocatorError, MissingExtraError, OptionError
from differad.images import RGB, read_images
from differad.locators.local import LocalLocator, LocalOptions
from differad.locators.server import ServerLocator, ServerOptions, _FileUrls, family_of_name, parse_server
from tiny_models import SPECIALS

NAME = "Qwen2-VL-tiny"


def make_image(width: int = 200, height: int = 100, seed: int = 0) -> RGB:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pair() -> Pair:
    return Pair(make_image(140, 140), make_image(200, 100))


def images_of(question: dict[str, Any]) -> list[str]:
    parts = question["messages"][1]["content"]
    return [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]


def decoded(url: str) -> RGB:
    return np.asarray(Image.open(BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))


# As in test_local: thousandths of 200x100, and 196x112 resized pixels of it.
BOXES = {
    "qwen2_vl": [[19.6, 2.8, 39.2, 11.2]],
    "qwen2_5_vl": [[100, 25, 200, 100]],
    "qwen3_vl": [[19.6, 2.8, 39.2, 11.2]],
}
FAMILIES = {"qwen2_vl": "qwen2-vl", "qwen2_5_vl": "qwen2.5-vl", "qwen3_vl": "qwen3-vl"}


@pytest.mark.parametrize("model_type", list(BOXES))
def test_transformers_serve_answers_in_pixels_of_the_target(
    checkpoint: Callable[..., Path], transformers_server: str, model_type: str
) -> None:
    folder = str(checkpoint(model_type))
    options = ServerOptions(family=FAMILIES[model_type], processor=folder, retries=0)
    location = ServerLocator(folder, transformers_server, options).locate(pair())
    assert_allclose(location.boxes, BOXES[model_type])
    assert location.valid
    assert location.reasoning == "The cap is gone."
    assert location.answer == SAID
    assert location.model == f"openai:{folder}@{transformers_server}"


def plain(text: str) -> str:
    """A server leaves some special tokens and outer white space out of its text."""
    for special in SPECIALS:
        text = text.replace(special, "")
    return text.strip()


@pytest.mark.parametrize("model_type", list(BOXES))
def test_local_and_served_say_the_same(
    checkpoint: Callable[..., Path], transformers_server: str, model_type: str
) -> None:
    """The server processes the same images and prompt independently: its processor is transformers' own."""
    folder = str(checkpoint(model_type, None))
    served = ServerLocator(
        folder, transformers_server, ServerOptions(family="qwen2-vl", max_tokens=12, concurrency=2, retries=0)
    )
    local = LocalLocator(folder, LocalOptions(device="cpu", family="qwen2-vl", max_new_tokens=12))
    stream = [Pair(make_image(150, 90, i), make_image(120 + 30 * i, 140, 9 + i)) for i in range(3)]
    answers = []
    for there, here in zip(served.locate_many(stream), local.locate_many(stream), strict=True):
        assert isinstance(there, Location), there
        assert isinstance(here, Location), here
        assert plain(there.answer) == plain(here.answer)
        answers.append(plain(here.answer))
    assert len(set(answers)) > 1, "the answers must depend on the images for this test to say anything"


def test_a_model_that_the_server_does_not_have(transformers_server: str, tmp_path: Path) -> None:
    locator = ServerLocator(str(tmp_path / "none"), transformers_server, ServerOptions(family="qwen2-vl", retries=0))
    with pytest.raises(LocatorError, match="status"):
        locator.locate(pair())


def test_the_request_holds_two_images_and_the_prompt(desk: Desk) -> None:
    ServerLocator(NAME, desk.url, ServerOptions(max_tokens=77, temperature=0.5, seed=3)).locate(pair())
    (question,) = desk.questions
    assert {key: question[key] for key in ("model", "max_tokens", "temperature", "seed")} == {
        "model": NAME,
        "max_tokens": 77,
        "temperature": 0.5,
        "seed": 3,
    }
    reference, target = images_of(question)
    assert_array_equal(decoded(reference), make_image(140, 140))
    assert_array_equal(decoded(target), make_image(200, 100))
    assert [message["role"] for message in question["messages"]] == ["system", "user"]
    assert "(x1,y1),(x2,y2)" in question["messages"][1]["content"][-1]["text"]


@pytest.mark.parametrize("as_file", [True, False])
def test_the_reference_goes_first_and_byte_identical(desk: Desk, tmp_path: Path, as_file: bool) -> None:
    """So that a server's own prefix cache hits: all before the target is the same bytes in every question."""
    path = tmp_path / "good.png"
    Image.fromarray(make_image(140, 140)).save(path)
    locator = ServerLocator(NAME, desk.url, ServerOptions(concurrency=1))
    references = [path if as_file else make_image(140, 140) for _ in range(3)]
    stream = [Pair(reference, make_image(100 + 20 * i, 100, i)) for i, reference in enumerate(references)]
    assert all(isinstance(outcome, Location) for outcome in locator.locate_many(stream))
    before = []
    for body, question in zip(desk.bodies, desk.questions, strict=True):
        reference, target = images_of(question)
        before.append(body.partition(target.encode())[0])
        assert reference.encode() in before[-1]
    assert len(set(before)) == 1


def test_files_travel_as_they_are_where_the_pixels_stay_the_same(desk: Desk, tmp_path: Path) -> None:
    image = Image.fromarray(make_image())
    turned = Image.Exif()
    turned[0x0112] = 6
    paths = {name: tmp_path / name for name in ("a.jpg", "b.png", "c.png", "d.jpg", "e.png", "f.png", "g.bmp")}
    image.save(paths["a.jpg"])
    image.save(paths["b.png"])
    image.convert("L").save(paths["c.png"])
    image.save(paths["d.jpg"], exif=turned)
    image.convert("RGBA").save(paths["e.png"])
    Image.fromarray(np.linspace(0, 65535, 10_000).reshape(100, 100).astype(np.uint16)).save(paths["f.png"])
    image.save(paths["g.bmp"])
    locator = ServerLocator(NAME, desk.url)
    for name, as_it_is in zip(paths, [True, True, True, False, False, False, False], strict=True):
        locator.locate(Pair(paths["b.png"], paths[name]))
        reference, target = images_of(desk.questions[-1])
        assert base64.b64decode(reference.partition(",")[2]) == paths["b.png"].read_bytes()
        assert (base64.b64decode(target.partition(",")[2]) == paths[name].read_bytes()) is as_it_is, name
        assert target.startswith("data:image/jpeg;" if name == "a.jpg" else "data:image/png;")
        assert_array_equal(decoded(target), read_images(paths["b.png"], paths[name])[1])


def test_a_file_that_changed_is_read_anew(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "reference.png"
    locator = ServerLocator(NAME, desk.url)
    for seed in (1, 2):
        Image.fromarray(make_image(60, 40 + seed, seed)).save(path)
        locator.locate(Pair(path, make_image()))
        assert_array_equal(decoded(images_of(desk.questions[-1])[0]), make_image(60, 40 + seed, seed))


def test_a_busy_server_is_asked_again_after_growing_waits(desk: Desk) -> None:
    desk.reply = lambda number, question: (503, "text/plain", b"busy") if number < 3 else say(SAID)
    location = ServerLocator(NAME, desk.url, ServerOptions(retries=2)).locate(pair())
    assert_allclose(location.boxes, BOXES["qwen2_vl"])
    first, second, third = desk.times
    # The client waits 0.5 s, then 1 s, each less up to a quarter; a busy machine may make either longer, never shorter.
    assert second - first > 0.37
    assert third - second > 0.74


@pytest.mark.parametrize(
    ("status", "retries", "asked", "said"),
    [(503, 1, 2, "status 503"), (400, 3, 1, "status 400"), (401, 3, 1, "set the key"), (404, 3, 1, "check NAME")],
)
def test_a_refusal_is_an_error_of_the_pair(desk: Desk, status: int, retries: int, asked: int, said: str) -> None:
    desk.reply = lambda number, question: (status, "application/json", b'{"error": {"message": "no"}}')
    with pytest.raises(LocatorError, match=said) as caught:
        ServerLocator(NAME, desk.url, ServerOptions(retries=retries)).locate(pair())
    assert len(desk.questions) == asked
    assert "\n" not in str(caught.value)


def test_a_silent_server_is_given_up(desk: Desk) -> None:
    def wait(number: int, question: dict[str, Any]) -> tuple[int, str, bytes]:
        desk.closing.wait(20)
        return say(SAID)

    desk.reply = wait
    with pytest.raises(LocatorError, match=r"no answer within 0\.8 s after 2 tries"):
        ServerLocator(NAME, desk.url, ServerOptions(timeout=0.8, retries=1)).locate(pair())
    assert len(desk.questions) == 2


def test_no_server_at_all() -> None:
    with pytest.raises(LocatorError, match="no connection after 1 tries"):
        ServerLocator(NAME, f"http://127.0.0.1:{free_port()}/v1", ServerOptions(retries=0)).locate(pair())


@pytest.mark.parametrize(
    "reply",
    [
        (200, "text/html", b"<html>hello</html>"),
        (200, "application/json", b"{broken"),
        (200, "application/json", b"{}"),
        (200, "application/json", b'{"choices": []}'),
        (200, "application/json", b'{"choices": [{"index": 0}]}'),
        (200, "application/json", b"[]"),
    ],
)
def test_a_reply_that_is_no_completion(desk: Desk, reply: tuple[int, str, bytes]) -> None:
    desk.reply = lambda number, question: reply
    with pytest.raises(LocatorError, match="chat completions"):
        ServerLocator(NAME, desk.url, ServerOptions(retries=0)).locate(pair())


@pytest.mark.parametrize("content", [None, "", "no idea"])
def test_an_answer_without_a_box_is_invalid_and_no_error(desk: Desk, content: str | None) -> None:
    desk.reply = lambda number, question: say(content)
    location = ServerLocator(NAME, desk.url).locate(pair())
    assert not location.valid
    assert location.answer == (content or "")


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
def test_reasoning_that_the_server_split_off_is_put_back(desk: Desk, key: str) -> None:
    desk.reply = lambda number, question: say(
        "<answer>(98,28),(196,112)</answer>", **{key: "A cap (1,2),(3,4) is gone."}
    )
    location = ServerLocator(NAME, desk.url).locate(pair())
    assert location.reasoning == "A cap (1,2),(3,4) is gone."
    assert_allclose(location.boxes, BOXES["qwen2_vl"])


def numbered(count: int) -> list[Pair]:
    """Targets whose grey level is their number, which the desk gives back as the box's left edge in thousandths."""
    return [Pair(make_image(40, 40), np.full((100, 1000, 3), i, np.uint8), id=str(i)) for i in range(count)]


def read_number(question: dict[str, Any]) -> int:
    return int(decoded(images_of(question)[1])[0, 0, 0])


def test_requests_overlap_and_come_back_in_order(desk: Desk) -> None:
    """A barrier opens only when three requests are under way; within each three, the first is answered last."""
    together, others_done = threading.Barrier(3), [threading.Semaphore(0), threading.Semaphore(0)]

    def reply(number: int, question: dict[str, Any]) -> tuple[int, str, bytes]:
        together.wait(20)
        value = read_number(question)
        if value % 3 == 0:
            for _ in range(2):
                assert others_done[value // 3].acquire(timeout=20)
        else:
            others_done[value // 3].release()
        return say(f"<answer>({value},0),(500,500)</answer>")

    desk.reply = reply
    outcomes = list(ServerLocator(NAME, desk.url, ServerOptions(concurrency=3, retries=0)).locate_many(numbered(6)))
    assert [outcome.boxes[0, 0] for outcome in outcomes if isinstance(outcome, Location)] == [0, 1, 2, 3, 4, 5]


def test_no_more_requests_at_once_than_allowed(desk: Desk) -> None:
    under_way, most, lock = 0, 0, threading.Lock()

    def reply(number: int, question: dict[str, Any]) -> tuple[int, str, bytes]:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        desk.closing.wait(0.05)
        with lock:
            under_way -= 1
        return say(SAID)

    desk.reply = reply
    taken: list[Pair] = []
    stream = (taken.append(each) or each for each in numbered(12))
    outcomes = ServerLocator(NAME, desk.url, ServerOptions(concurrency=2)).locate_many(stream)
    next(outcomes)
    assert len(taken) <= 4  # two pairs per allowed request
    assert len(list(outcomes)) == 11
    assert most == 2


def test_one_bad_pair_costs_itself_only(desk: Desk, tmp_path: Path) -> None:
    def reply(number: int, question: dict[str, Any]) -> tuple[int, str, bytes]:
        return (400, "text/plain", b"no") if read_number(question) == 2 else say(SAID)

    desk.reply = reply
    stream = numbered(4)
    stream[0] = Pair(tmp_path / "none.png", make_image())
    outcomes = list(ServerLocator(NAME, desk.url, ServerOptions(concurrency=2)).locate_many(stream))
    assert [type(outcome) for outcome in outcomes] == [ImageError, Location, LocatorError, Location]


def test_a_stream_that_is_left_early_asks_no_further(desk: Desk) -> None:
    outcomes = ServerLocator(NAME, desk.url, ServerOptions(concurrency=1)).locate_many(numbered(50))
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    assert len(desk.questions) <= 3


def test_the_key_comes_from_the_environment(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    ServerLocator(NAME, desk.url).locate(pair())
    monkeypatch.setenv("MY_KEY", "secret")
    ServerLocator(NAME, desk.url, ServerOptions(api_key_env="MY_KEY")).locate(pair())
    assert [headers["authorization"] for headers in desk.headers] == ["Bearer none", "Bearer secret"]


def test_resized_families_need_the_processor_folder(desk: Desk, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="processor=FOLDER"):
        ServerLocator("Qwen/Qwen2.5-VL-7B-Instruct", desk.url)
    with pytest.raises(OptionError, match=r"no preprocessor_config\.json"):
        ServerLocator("Qwen/Qwen2.5-VL-7B-Instruct", desk.url, ServerOptions(processor=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("Qwen/Qwen-VL-Chat", "qwen-vl"),
        ("Qwen/Qwen2-VL-2B-Instruct", "qwen2-vl"),
        ("Qwen/Qwen2.5-VL-7B-Instruct-AWQ", "qwen2.5-vl"),
        ("qwen3-vl-235b-a22b-instruct", "qwen3-vl"),
        ("OpenGVLab/InternVL3_5-8B", "internvl"),
        ("openbmb/MiniCPM-V-4_5", "minicpm-v"),
        ("TIGER-Lab/Mantis-8B-siglip-llama3", "mantis"),
        ("mPLUG/mPLUG-Owl3-7B-240728", "mplug-owl3"),
        ("zai-org/cogvlm-grounding-generalist-hf", "cogvlm"),
        ("GD-ML/UniVG-R1", "univg-r1"),
        ("Michael4933/Migician", "migician"),
    ],
)
def test_names_imply_families(name: str, family: str) -> None:
    assert family_of_name(name) == family


def test_a_name_that_implies_nothing_is_refused() -> None:
    with pytest.raises(OptionError, match="--family"):
        ServerLocator("gpt-9", "http://127.0.0.1:9/v1")


@pytest.mark.parametrize(
    ("value", "parsed"),
    [
        ("openai:NAME@http://host:8000/v1", ("NAME", "http://host:8000/v1")),
        ("openai:Qwen/Qwen3-VL@https://cloud.example/v1/", ("Qwen/Qwen3-VL", "https://cloud.example/v1/")),
        ("openai:a@b@http://h/v1", ("a@b", "http://h/v1")),
    ],
)
def test_server_addresses(value: str, parsed: tuple[str, str]) -> None:
    assert parse_server(value) == parsed


@pytest.mark.parametrize(
    "value",
    ["openai:", "openai:name", "openai:@http://h/v1", "openai:n@ftp://h", "openai:n@http://", "openai:n@http:///v1"],
)
def test_wrong_server_addresses(value: str) -> None:
    with pytest.raises(OptionError, match="openai:NAME@http://HOST:PORT/v1"):
        parse_server(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("concurrency", 0),
        ("timeout", 0.0),
        ("retries", -1),
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("family", "gpt"),
    ],
)
def test_options_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=name):
        ServerOptions(**{name: value})  # type: ignore[arg-type]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(MissingExtraError, match=r"openai.*differad\[openai\]"):
        ServerLocator(NAME, "http://127.0.0.1:9/v1")


def test_a_file_that_is_gone_since_it_was_read_is_sent_as_pixels(tmp_path: Path) -> None:
    assert _FileUrls(2).get(tmp_path / "gone.png") is None
