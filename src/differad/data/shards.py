"""Shards: many pairs in one file, for training that reads sequentially. WebDataset tar or Parquet, images as PNG.

A tar holds `KEY.reference.png`, `KEY.target.png`, `KEY.mask.png` (anomalous pairs) and `KEY.json` (the pair's manifest line,
which names those members); a Parquet file holds the same as columns. Writing is deterministic: the same samples give the
same bytes.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from differad.boxes import as_boxes
from differad.core import Pair
from differad.data.manifest import PairRecord, parse_line
from differad.data.masks import boxes_from_mask, decode_mask
from differad.data.parquet_rows import image_bytes, read_rows, require_pyarrow
from differad.data.shard_index import ShardEntry, check_content, check_count, check_present, read_index
from differad.data.tar_members import read_members
from differad.errors import InputError, ManifestError
from differad.files import atomic_write, ends_with
from differad.images import decode_images

PARTS = ("reference", "target", "mask")
# Pairs per Parquet row group, which a writer or a reader holds in memory: about 10 MB at 224x224.
ROW_GROUP = 64
# The last bytes of a complete file: two empty blocks of a tar, Parquet's magic number.
_ENDINGS = {".tar": bytes(2 * tarfile.BLOCKSIZE), ".parquet": b"PAR1"}


@dataclass(frozen=True)
class Sample:
    """A pair to be stored: its key in the shard, its images as bytes of PNG files, and its manifest line.

    `record` is as in `pairs.jsonl`, without `reference`, `target` and `mask`; `mask` is None for a normal pair.
    """

    key: str
    reference: bytes
    target: bytes
    mask: bytes | None
    record: dict[str, Any]


def write_webdataset(path: Path, samples: Iterable[Sample]) -> None:
    """Write a tar in WebDataset's format, atomically. Raises WriteError."""
    with atomic_write(path) as fresh, tarfile.open(fresh, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            names = {part: f"{sample.key}.{part}.png" for part in PARTS if getattr(sample, part) is not None}
            for part, name in names.items():
                _add_member(tar, name, getattr(sample, part))
            line = json.dumps({**sample.record, **names}, ensure_ascii=False, allow_nan=False)
            _add_member(tar, f"{sample.key}.json", line.encode())


def write_parquet(path: Path, samples: Iterable[Sample]) -> None:
    """Write a Parquet file, atomically. Raises WriteError, MissingExtraError."""
    arrow, parquet = require_pyarrow()
    text, data = arrow.string(), arrow.binary()
    schema = arrow.schema(
        [("id", text), ("category", text), ("kind", text), ("group", text)]
        + [("boxes", arrow.list_(arrow.list_(arrow.float64(), 4))), ("anomalous", arrow.bool_()), ("facts", text)]
        + [(part, data) for part in PARTS]
    )
    stream = iter(samples)
    # PNG is compressed already.
    with atomic_write(path) as fresh, parquet.ParquetWriter(fresh, schema, compression="none") as writer:
        while rows := [_to_row(sample) for sample in islice(stream, ROW_GROUP)]:
            writer.write_table(arrow.Table.from_pylist(rows, schema=schema))


def read_shards(path: str | Path) -> Iterator[Pair]:
    """Stream the pairs of a shard, or of every shard in a folder, in order.

    Images are (H, W, 3) uint8 arrays; `extra` holds the other keys of the line, and as `mask` the (H, W) bool mask of an
    anomalous pair. Raises InputError if there is no shard, ManifestError for a broken one, ImageError. Shards that are
    truncated, listed in `shards.jsonl` but missing, or not listed in their folder's `shards.jsonl` are reported before the
    first pair. The checksum of each listed shard is verified before its first pair, its number of pairs after the last.
    """
    files = shard_files(path)
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    entries = read_index(folder)
    if Path(path).is_dir():
        check_present(folder, entries, files)
    for file in files:
        check_end(file)
    for file in files:
        yield from _read_shard(file, entries.get(file.name))


def _read_shard(path: Path, entry: ShardEntry | None) -> Iterator[Pair]:
    if entry is not None:
        check_content(path, entry)
    count = 0
    for pair in READERS[path.suffix](path):
        count += 1
        yield pair
    if entry is not None:
        check_count(path, entry, count)


def check_end(path: Path) -> None:
    """Check that a shard has the end of a complete file; only its end is read. Raises ManifestError.

    Without this, a tar that is truncated between two files would read like a complete one.
    """
    try:
        is_whole = ends_with(path, _ENDINGS[path.suffix])
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); expected a shard") from None
    if not is_whole:
        raise ManifestError(f"{path}: incomplete, its end is missing; write the shard again")


def shard_files(path: str | Path) -> list[Path]:
    """The shard `path`, or the shards in the folder `path`, in order, e.g. to divide among readers. Raises InputError."""
    path = Path(path)
    shards = sorted(file for file in path.iterdir() if file.suffix in READERS) if path.is_dir() else [path]
    if path.is_dir() and not shards and (path / "pairs.jsonl").is_file():
        raise InputError(
            f"{path}: holds single images; expected shards (read_pairs({str(path / 'pairs.jsonl')!r}) reads these)"
        )
    if not shards or shards[0].suffix not in READERS or not shards[0].is_file():
        raise InputError(f"{path}: no shard; expected a file that ends in {' or '.join(READERS)}, or a folder of them")
    return shards


def _add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    # TarInfo's default time (0), owner and mode: the file does not depend on the machine or the time.
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _to_row(sample: Sample) -> dict[str, Any]:
    record = sample.record
    return {
        "id": record["id"],
        "category": record["category"],
        "kind": record.get("kind", ""),
        "group": record.get("group"),
        "boxes": record.get("boxes"),
        "anomalous": record.get("anomalous"),
        "facts": json.dumps(record.get("facts", {}), ensure_ascii=False, allow_nan=False),
        **{part: getattr(sample, part) for part in PARTS},
    }


def _read_webdataset(path: Path) -> Iterator[Pair]:
    for key, members in groupby(read_members(path), key=lambda member: _split(member.name)[0]):
        where, parts = f"{path}: {key}", dict[str, bytes]()
        for member in members:
            part = _split(member.name)[1]
            if part in parts:
                raise ManifestError(f"{where}: two files for {part!r}; expected one of each for a pair")
            parts[part] = member.content
        line = parts.pop("json", b"").decode("utf-8", "replace")
        yield _to_pair(line, parts, where)


def _split(name: str) -> tuple[str, str]:
    """Key and part ("reference", "json", …) of a member's name; the key ends at the name's first dot."""
    folder, slash, name = name.rpartition("/")
    key, _, ending = name.partition(".")
    return folder + slash + key, ending.partition(".")[0]


def _read_parquet(path: Path) -> Iterator[Pair]:
    for row in read_rows(path):
        where = f"{path}: {row.get('id')}"
        cells = {part: image_bytes(row.pop(part, None), f"{where}: {part}") for part in PARTS}
        parts = {part: content for part, content in cells.items() if content is not None}
        yield _to_pair(_to_line(row, where), parts, where)


def _to_line(row: dict[str, Any], where: str) -> str:
    """The columns of a row, without its images, as a manifest line. Raises ManifestError."""
    facts = row.pop("facts", None) or {}
    try:
        if isinstance(facts, str):
            facts = json.loads(facts)
        return json.dumps({**row, "facts": facts, "reference": "reference", "target": "target"})
    except (ValueError, TypeError, RecursionError) as error:
        raise ManifestError(
            f"{where}: a column is not text, numbers or lists of them ({error}); leave it out"
        ) from None


def _to_pair(line: str, parts: dict[str, bytes], where: str) -> Pair:
    record = parse_line(PairRecord, line, where)
    for part in ("reference", "target"):
        if part not in parts:
            raise ManifestError(f"{where}: no {part} image; expected a PNG of that name beside the pair's line")
    extra = dict(record.model_extra or {})
    boxes = None if record.boxes is None else as_boxes(record.boxes)
    reference, target = decode_images(*((parts[part], f"{where}: {part}") for part in ("reference", "target")))
    if "mask" in parts:
        extra["mask"] = decode_mask(parts["mask"], f"{where}: mask", target.shape[1::-1])
        boxes = boxes_from_mask(extra["mask"]) if boxes is None else boxes
    return Pair(
        reference=reference,
        target=target,
        id=record.id,
        category=record.category,
        boxes=boxes,
        group=record.group,
        anomalous=record.anomalous,
        extra=extra,
    )


READERS: dict[str, Callable[[Path], Iterator[Pair]]] = {".tar": _read_webdataset, ".parquet": _read_parquet}
