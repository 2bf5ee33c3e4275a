"""What a worker of a synthesis run does: draw a few pairs, encode them and bring them to the disk, whole or not at all.

Knows nothing of other workers, of resuming or of engines: `perform` depends on its arguments alone, so whoever calls it, in
whatever process and order, leaves the same bytes, given the same OpenCV and NumPy.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np

from differad.boxes import to_list
from differad.data.shard_index import INDEX
from differad.data.shards import PARTS, Sample, check_end, read_shards, write_parquet, write_webdataset
from differad.data.stamps import sha256
from differad.errors import InputError, WriteError
from differad.files import ends_with, sync_files, write_bytes
from differad.images import read_image
from differad.synthesis.draw import Drawer, DrawOptions
from differad.synthesis.pairs import SyntheticPair

# What a set is made of, in its folder.
NOTE = "synthesis.json"
# The last chunk of every PNG file.
_PNG_ENDING = b"\0\0\0\0IEND\xaeB`\x82"


@dataclass(frozen=True)
class Work:
    """A run as its workers see it; `out` and the paths in `options` are absolute, `sources` a digest of what they hold.

    A task is `step` pairs, from an index that is a multiple of `step` after the first one; the last ends at `count`.
    """

    options: DrawOptions
    sources: str
    out: Path
    format: str
    step: int
    count: int


@dataclass(frozen=True)
class Done:
    """What a task left: lines for the manifest, whose files are on the disk, and what stopped it early, if anything did."""

    lines: tuple[str, ...]
    error: str | None = None


@dataclass(frozen=True)
class Entry:
    """What a line of a run's manifest stands for: `pairs` pairs from index `first`, some anomalous; `files` hold them."""

    first: int
    pairs: int
    anomalous: int
    files: tuple[str, ...]


@dataclass(frozen=True)
class Format:
    """A way to store pairs: the manifest's name, the folders that hold files, whether a file holds a whole task, and
    how a task and a line are dealt with. `check` reads a file, `check_end` its end alone; both raise InputError where it is not
    whole.

    File number n (`00000000.png`, `shard-00000000.tar`) belongs to line n of the manifest, from 0.
    """

    manifest: str
    folders: tuple[str, ...]
    sharded: bool
    perform: Callable[[Work, range], Done]
    read_line: Callable[[dict[str, Any]], Entry]
    check: Callable[[Path], None]
    check_end: Callable[[Path], None]


def perform(work: Work, start: int) -> Done:
    """Draw and store the pairs of the task that begins at index `start`."""
    indices = range(start, min(start + work.step, work.count))
    return FORMATS[work.format].perform(work, indices)


def pair_id(seed: int, index: int) -> str:
    """The id of a pair; the seed is part of it, so that sets of several seeds can be used together."""
    return f"{seed}-{index:08d}"


def encode_pair(pair: SyntheticPair, seed: int, index: int) -> Sample:
    """The pair as PNG files with its manifest line; a normal pair has no mask."""
    return Sample(
        key=f"{index:08d}",
        reference=_encode(cv2.cvtColor(pair.reference, cv2.COLOR_RGB2BGR)),
        target=_encode(cv2.cvtColor(pair.target, cv2.COLOR_RGB2BGR)),
        mask=_encode(pair.mask.view(np.uint8) * np.uint8(255)) if pair.mask.any() else None,
        record={
            "id": pair_id(seed, index),
            "category": pair.category,
            "boxes": to_list(pair.boxes),
            "group": None,
            "kind": pair.kind,
            "facts": pair.facts,
        },
    )


def write_pictures(out: Path, sample: Sample) -> dict[str, str | None]:
    """Write a sample's pictures below `out`; return their paths relative to it, None for no mask. Raises WriteError.

    They are brought to the disk by whoever names them.
    """
    names: dict[str, str | None] = {}
    for part in PARTS:
        content = getattr(sample, part)
        names[part] = None if content is None else f"{part}/{sample.key}.png"
        if content is not None:
            write_bytes(out / part / f"{sample.key}.png", content, sync=False)
    return names


def _encode(picture: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    # OpenCV's own setting (run lengths, one filter) takes 1.4 ms for 224x224 noise and texture and 66 KiB; zlib's level 1
    # takes 2.1 ms and 56 KiB, Pillow's default 10 ms and 50 KiB.
    _, content = cv2.imencode(".png", picture)
    return content.tobytes()


def _samples(work: Work, indices: range) -> Iterator[Sample]:
    drawer = _drawer(work.options, work.sources)
    for index in indices:
        with _Naming(index, work.options.seed):
            pair = drawer.draw(index)
        yield encode_pair(pair, work.options.seed, index)


@lru_cache(maxsize=1)
def _drawer(options: DrawOptions, sources: str) -> Drawer:  # noqa: ARG001 - other sources, another drawer
    return Drawer(options)


class _Naming:
    """Says in whatever goes wrong inside which pair was being drawn, so that it can be drawn again on its own."""

    def __init__(self, index: int, seed: int) -> None:
        self._pair = f"pair {index} of seed {seed}"

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, InputError):
            raise InputError(f"{self._pair}: {error}") from error
        if error is not None:
            error.add_note(f"while drawing {self._pair}")


def _store_pictures(work: Work, indices: range) -> Done:
    lines: list[str] = []
    files: list[Path] = []
    stopped = None
    try:
        for sample in _samples(work, indices):
            names = write_pictures(work.out, sample)
            files += [work.out / name for name in names.values() if name is not None]
            head = {"id": sample.record["id"], "category": sample.record["category"], **names}
            lines.append(json.dumps({**head, **sample.record}, ensure_ascii=False, allow_nan=False))
    except InputError as error:
        stopped = _message(error)
    try:
        sync_files(files)
    except WriteError as error:  # which of the files are whole is not known
        return Done((), _message(error))
    return Done(tuple(lines), stopped)


def _read_pair_line(record: dict[str, Any]) -> Entry:
    files = tuple(str(record[part]) for part in PARTS if record[part] is not None)
    return Entry(int(record["id"].rpartition("-")[2]), 1, int(bool(record["boxes"])), files)


def _check_image(path: Path) -> None:
    read_image(path)


def _check_image_end(path: Path) -> None:
    try:
        is_whole = ends_with(path, _PNG_ENDING)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a PNG file") from None
    if not is_whole:
        raise InputError(f"{path}: not whole, its end is missing")


def _check_shard(path: Path) -> None:
    for _ in read_shards(path):
        pass


def _shards(ending: str, write: Callable[[Path, Iterator[Sample]], None]) -> Format:
    """One file for all pairs of a task."""

    def store(work: Work, indices: range) -> Done:
        name = f"shard-{indices.start // work.step:08d}{ending}"
        anomalous = 0

        def counted() -> Iterator[Sample]:
            nonlocal anomalous
            for sample in _samples(work, indices):
                anomalous += bool(sample.record["boxes"])
                yield sample

        try:
            write(work.out / name, counted())
            checksum = sha256(work.out / name)
        except InputError as error:
            return Done((), _message(error))
        line = {
            "shard": name,
            "first": indices.start,
            "pairs": len(indices),
            "anomalous": anomalous,
            "sha256": checksum,
        }
        return Done((json.dumps(line),))

    return Format(INDEX, ("",), True, store, _read_shard_line, _check_shard, check_end)


def _read_shard_line(record: dict[str, Any]) -> Entry:
    return Entry(int(record["first"]), int(record["pairs"]), int(record["anomalous"]), (str(record["shard"]),))


def _message(error: InputError) -> str:
    return f"{error}; run again: the set goes on" if isinstance(error, WriteError) else str(error)


FORMATS = {
    "folder": Format("pairs.jsonl", PARTS, False, _store_pictures, _read_pair_line, _check_image, _check_image_end),
    "webdataset": _shards(".tar", write_webdataset),
    "parquet": _shards(".parquet", write_parquet),
}
