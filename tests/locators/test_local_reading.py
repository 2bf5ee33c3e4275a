"""Images of a stream, read in threads while a local checkpoint answers."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_pairs import MODEL_TYPES, SHORT, Checkpoint, cpu, line, located, make_image, pairs
from PIL import Image

from differad.core import Location, Pair
from differad.images import digest
from differad.locators.local import READ_AHEAD, LocalLocator, LocalOptions


def written(pairs: list[Pair], folder: Path) -> list[Pair]:
    """The pairs as files; equal images are one file."""
    names: dict[bytes, Path] = {}
    for pair in pairs:
        for image in (pair.reference, pair.target):
            assert isinstance(image, np.ndarray)
            path = names.setdefault(digest(image), folder / f"{len(names)}.png")
            Image.fromarray(image).save(path)
    return [Pair(names[digest(pair.reference)], names[digest(pair.target)], id=pair.id) for pair in pairs]  # type: ignore[arg-type]


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("differad-reader")]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of files as they are decoded, those that are being decoded included."""
    from differad.locators import reading

    names: list[str] = []
    decode = reading.decode_image

    def noted(source: Any) -> Any:
        names.append(Path(source).name)
        return decode(source)

    monkeypatch.setattr(reading, "decode_image", noted)
    return names


@pytest.mark.parametrize(
    ("model_type", "patch_bytes", "kept"),
    [("qwen2_vl", None, 0), ("qwen2_vl", 0, 4), *((model_type, None, 4) for model_type in MODEL_TYPES)],
)
def test_images_read_meanwhile_change_no_answer(
    checkpoint: Checkpoint,
    model_type: str,
    patch_bytes: int | None,
    kept: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether patches are made ahead or, where they would take too much memory, are not; errors stay where they belong."""
    from differad.locators import local

    if patch_bytes is not None:
        monkeypatch.setattr(local, "_PATCH_BYTES", patch_bytes)
    (tmp_path / "broken.png").write_bytes(b"no image")
    stream = written(line(9, sizes=True), tmp_path)
    stream.insert(4, Pair(stream[0].reference, tmp_path / "broken.png"))
    stream.insert(8, Pair(make_image(140, 140), make_image(5000, 20)))
    stream += [Pair(tmp_path / "broken.png", stream[0].target)] * 6  # a window of nothing but errors
    stream += stream[:2]
    folder = str(checkpoint(model_type, None))
    options = {**SHORT, "batch_size": 3, "temperature": 1.0, "remember_prefixes": kept}
    expected, found = (
        [
            getattr(each, "answer", str(each))
            for each in LocalLocator(folder, LocalOptions(**options)).locate_many(stream)
        ]
        for options in (options, {**options, "workers": 3})
    )
    assert found == expected
    assert sum("broken" in each for each in found) == 7
    assert len(set(found)) >= 5
    assert readers() == []


def test_an_image_that_several_pairs_show_is_decoded_once(
    checkpoint: Checkpoint, tmp_path: Path, decoded: list[str]
) -> None:
    stream = written([Pair(make_image(64, 64), make_image(64, 64, seed=1 + i)) for i in range(4)], tmp_path)
    for workers in (0, 3):
        decoded.clear()
        locator = LocalLocator(str(checkpoint("qwen2_vl")), cpu(batch_size=2, workers=workers))
        assert len([located(outcome) for outcome in locator.locate_many(stream)]) == 4
        assert sorted(decoded) == [f"{i}.png" for i in range(5)]


def test_the_next_pairs_are_read_while_the_last_batch_is_answered(
    checkpoint: Checkpoint, tmp_path: Path, decoded: list[str]
) -> None:
    stream = written([Pair(make_image(64, 64, seed=i), make_image(64, 64, seed=50 + i)) for i in range(12)], tmp_path)
    taken: list[Pair] = []
    locator = LocalLocator(str(checkpoint("qwen2_vl")), cpu(batch_size=2, workers=2))
    outcomes = locator.locate_many(taken.append(pair) or pair for pair in stream)
    next(outcomes)
    assert len(taken) == 2 * READ_AHEAD
    for _ in range(2):
        next(outcomes)
    assert len(taken) == 2 * 2 * READ_AHEAD
    deadline = time.monotonic() + 60
    while len(decoded) < 2 * 8:  # nobody asks for an outcome meanwhile
        assert time.monotonic() < deadline
        time.sleep(0.01)
    outcomes.close()  # type: ignore[attr-defined]
    assert readers() == []
    assert len(decoded) == 2 * 8


def answer_until(locator: LocalLocator, stream: list[Pair], stop: int) -> None:
    for number, _ in enumerate(locator.locate_many(stream), start=1):
        _ = 1 / (number - stop)


def test_a_caller_that_fails_leaves_no_thread(checkpoint: Checkpoint, tmp_path: Path) -> None:
    stream = written([Pair(make_image(64, 64, seed=i), make_image(64, 64, seed=50 + i)) for i in range(12)], tmp_path)
    locator = LocalLocator(str(checkpoint("qwen2_vl")), cpu(batch_size=2, workers=2))
    for stop in (1, 3, 5):
        with pytest.raises(ZeroDivisionError):
            answer_until(locator, stream, stop)
        assert readers() == []
    locator.locate(stream[0])
    assert readers() == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_that_fails_costs_no_pair_before(checkpoint: Checkpoint, workers: int) -> None:
    def stream() -> Iterator[Pair]:
        yield from pairs()[:4]
        raise OSError("the line is gone")

    locator = LocalLocator(str(checkpoint("qwen2_vl")), cpu(batch_size=2, workers=workers))
    found: list[object] = []
    with pytest.raises(OSError, match="the line is gone"):
        found.extend(locator.locate_many(stream()))
    assert [type(each) for each in found] == [Location] * 4
    assert readers() == []


@pytest.mark.parametrize("workers", [0, 2])
def test_seconds_are_no_more_than_the_whole_takes(checkpoint: Checkpoint, workers: int) -> None:
    locator = LocalLocator(str(checkpoint("qwen2_vl")), cpu(batch_size=1, workers=workers))
    start = time.perf_counter()
    taken = [located(outcome).seconds for outcome in locator.locate_many(pairs())]
    assert min(taken) > 0
    assert sum(taken) <= time.perf_counter() - start
