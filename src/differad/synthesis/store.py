"""The work of one task of a synthesis run: generate a few pairs, encode them and write them, each file whole or not at all.

Knows nothing of other workers, of resuming or of engines: `perform` depends on its arguments alone, so any process in any
order writes the same bytes, given the same OpenCV and NumPy.
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
from differad.synthesis.draw import PairGenerator, SynthesisOptions
from differad.synthesis.pairs import SyntheticPair

# The file with the options and sources of a set, in its folder.
METADATA = "synthesis.json"
# The last chunk of every PNG file.
_PNG_ENDING = b"\0\0\0\0IEND\xaeB`\x82"


@dataclass(frozen=True)
class Work:
    """A run as its workers see it; `out` and the paths in `options` are absolute, `sources` holds digests of their content.

    A task is `step` pairs, from an index that is a multiple of `step` after the first one; the last ends at `count`.
    """

    options: SynthesisOptions
    sources: str
    out: Path
    format: str
    step: int
    count: int


@dataclass(frozen=True)
class TaskResult:
    """Result of a task: lines for the manifest, whose files are written, and the error that stopped it early, if any."""

    lines: tuple[str, ...]
    error: str | None = None


@dataclass(frozen=True)
class ManifestEntry:
    """A line of a run's manifest: `pairs` pairs from index `first`, of which `anomalous` have a defect, stored in `files`."""

    first: int
    pairs: int
    anomalous: int
    files: tuple[str, ...]


@dataclass(frozen=True)
class Format:
    """A storage format: the manifest's name, the folders of files, whether one file holds a whole task, how a task is
    performed and a line read. `check` reads a file, `check_end` its end alone; both raise InputError if it is incomplete.

    File number n (`00000000.png`, `shard-00000000.tar`) belongs to line n of the manifest, from 0.
    """

    manifest: str
    folders: tuple[str, ...]
    sharded: bool
    perform: Callable[[Work, range], TaskResult]
    read_line: Callable[[dict[str, Any]], ManifestEntry]
    check: Callable[[Path], None]
    check_end: Callable[[Path], None]


def perform(work: Work, start: int) -> TaskResult:
    """Generate and store the pairs of the task that begins at index `start`."""
    indices = range(start, min(start + work.step, work.count))
    return FORMATS[work.format].perform(work, indices)


def pair_id(seed: int, index: int) -> str:
    """The id of a pair; it holds the seed, so that sets of several seeds can be used together."""
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


def write_images(out: Path, sample: Sample) -> dict[str, str | None]:
    """Write a sample's images below `out`; return their paths relative to it, None for no mask. Raises WriteError.

    The caller flushes them to the disk.
    """
    names: dict[str, str | None] = {}
    for part in PARTS:
        content = getattr(sample, part)
        names[part] = None if content is None else f"{part}/{sample.key}.png"
        if content is not None:
            write_bytes(out / part / f"{sample.key}.png", content, sync=False)
    return names


def _encode(image: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    # OpenCV's default (run lengths, one filter) takes 1.4 ms for 224x224 noise and texture and 66 KiB; zlib's level 1
    # takes 2.1 ms and 56 KiB, Pillow's default 10 ms and 50 KiB.
    _, content = cv2.imencode(".png", image)
    return content.tobytes()


def _samples(work: Work, indices: range) -> Iterator[Sample]:
    generator = _generator(work.options, work.sources)
    for index in indices:
        with _NamePairInErrors(index, work.options.seed):
            pair = generator.generate(index)
        yield encode_pair(pair, work.options.seed, index)


@lru_cache(maxsize=1)
def _generator(options: SynthesisOptions, sources: str) -> PairGenerator:  # noqa: ARG001 - part of the cache's key
    return PairGenerator(options)


class _NamePairInErrors:
    """Adds to errors raised inside which pair was being generated, so that it can be reproduced alone."""

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
            error.add_note(f"while generating {self._pair}")


def _store_images(work: Work, indices: range) -> TaskResult:
    lines: list[str] = []
    files: list[Path] = []
    failure = None
    try:
        for sample in _samples(work, indices):
            names = write_images(work.out, sample)
            files += [work.out / name for name in names.values() if name is not None]
            head = {"id": sample.record["id"], "category": sample.record["category"], **names}
            lines.append(json.dumps({**head, **sample.record}, ensure_ascii=False, allow_nan=False))
    except InputError as error:
        failure = _message(error)
    try:
        sync_files(files)
    except WriteError as error:  # any of the files may be incomplete
        return TaskResult((), _message(error))
    return TaskResult(tuple(lines), failure)


def _read_pair_line(record: dict[str, Any]) -> ManifestEntry:
    files = tuple(str(record[part]) for part in PARTS if record[part] is not None)
    return ManifestEntry(int(record["id"].rpartition("-")[2]), 1, int(bool(record["boxes"])), files)


def _check_image(path: Path) -> None:
    read_image(path)


def _check_image_end(path: Path) -> None:
    try:
        is_whole = ends_with(path, _PNG_ENDING)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a PNG file") from None
    if not is_whole:
        raise InputError(f"{path}: incomplete, its end is missing")


def _check_shard(path: Path) -> None:
    for _ in read_shards(path):
        pass


def _shards(ending: str, write: Callable[[Path, Iterator[Sample]], None]) -> Format:
    """One file for all pairs of a task."""

    def store(work: Work, indices: range) -> TaskResult:
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
            return TaskResult((), _message(error))
        line = {
            "shard": name,
            "first": indices.start,
            "pairs": len(indices),
            "anomalous": anomalous,
            "sha256": checksum,
        }
        return TaskResult((json.dumps(line),))

    return Format(INDEX, ("",), True, store, _read_shard_line, _check_shard, check_end)


def _read_shard_line(record: dict[str, Any]) -> ManifestEntry:
    return ManifestEntry(int(record["first"]), int(record["pairs"]), int(record["anomalous"]), (str(record["shard"]),))


def _message(error: InputError) -> str:
    return f"{error}; run the same command again to continue the set" if isinstance(error, WriteError) else str(error)


FORMATS = {
    "folder": Format("pairs.jsonl", PARTS, False, _store_images, _read_pair_line, _check_image, _check_image_end),
    "webdataset": _shards(".tar", write_webdataset),
    "parquet": _shards(".parquet", write_parquet),
}
