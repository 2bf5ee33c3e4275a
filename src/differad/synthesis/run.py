"""Sets of synthetic pairs of any size: streamed, on several workers, resumed after a kill, the same bytes every time.

A pair depends on the options, its index, and the versions of OpenCV and NumPy. Files appear whole or not at all, and a line
of the manifest (`pairs.jsonl`, or `shards.jsonl` for shards) is written in order, after its files are on the disk. So the
manifest lists the finished pairs, even after a power cut; all others are generated again. `synthesis.json` holds the set's
options and digests of its sources.
"""

import hashlib
import json
import os
import re
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import differad
from differad.data.locks import LOCK, exclusive_run, wait_for_workers
from differad.data.parquet_rows import require_pyarrow
from differad.errors import InputError, InputWarning, ManifestError
from differad.files import (
    SECONDS_BETWEEN_SYNCS,
    TEMPORARY_ENDING,
    AppendFile,
    leftovers,
    make_folder,
    write_errors,
    write_text,
)
from differad.options import check_option
from differad.progress import progress_bar
from differad.synthesis.draw import PairGenerator, SynthesisOptions
from differad.synthesis.engines import ENGINES, require_ray
from differad.synthesis.normals import list_images
from differad.synthesis.store import FORMATS, METADATA, ManifestEntry, TaskResult, Work

SHARD_SIZE = 1000
# Last lines of an earlier run's manifest whose files are read before it is continued; for shards only the last one.
_READ_AGAIN = 32
# Pairs in one task if each has its own files: a tenth of a second of work, far more than the cost of scheduling it.
CHUNK = 8
_NUMBERED = re.compile(r"(?:shard-)?(\d{8,})\.(?:png|tar|parquet)")
_UNFINISHED = re.compile(r".+\.(?:png|tar|parquet|json)\.\d+" + re.escape(TEMPORARY_ENDING))


@dataclass(frozen=True)
class Summary:
    """Result of a run in `out`: `pairs` in all, of which `kept` existed before and `drawn` are new."""

    out: str
    manifest: str
    format: str
    pairs: int
    anomalous: int
    kept: int
    drawn: int
    seconds: float
    pairs_per_second: float

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `differad synthesize --json`."""
        return asdict(self)


def synthesize(
    options: SynthesisOptions,
    count: int,
    out: str | Path,
    *,
    workers: int = 1,
    engine: str = "process",
    format: str = "folder",
    shard_size: int = SHARD_SIZE,
    minutes: float | None = None,
    progress: bool = True,
) -> Summary:
    """Generate pairs 0 to `count` - 1 of `options` into the folder `out`, on `workers` cores.

    A second call continues where the first stopped, or adds pairs if `count` is larger; `minutes` limits a call's time.
    `format` is folder (PNG files and pairs.jsonl), webdataset or parquet (shards of `shard_size` pairs and shards.jsonl);
    `engine` is process or ray. Raises OptionError, MissingExtraError, and InputError if `out` holds another set or a pair,
    which the message names, cannot be generated.
    """
    start_time = time.perf_counter()
    _check(count, workers, engine, format, shard_size)
    check_option("minutes", minutes, minutes is None or minutes > 0, "more than 0")
    deadline = None if minutes is None else start_time + 60 * minutes
    work = _plan(options, count, Path(out), format, shard_size)
    make_folder(work.out)
    with exclusive_run(work.out):
        earlier = _check_metadata(work)
        counts = _resume(work)
        if counts.pairs > count:
            raise InputError(
                f"{out}: holds {counts.pairs} pairs, --count {count} is fewer; give as many, or another --out"
            )
        _write_metadata(work, earlier)
        _sweep(work, counts.lines)
        kept = counts.pairs
        _run(work, counts, workers, engine, deadline, progress)
    return _summary(str(out), format, counts, kept, time.perf_counter() - start_time)


@dataclass
class _Counts:
    """Numbers of what the manifest lists."""

    lines: int = 0
    pairs: int = 0
    anomalous: int = 0

    def add(self, entry: ManifestEntry) -> None:
        self.lines += 1
        self.pairs += entry.pairs
        self.anomalous += entry.anomalous


def _summary(out: str, format: str, counts: _Counts, kept: int, seconds: float) -> Summary:
    drawn = counts.pairs - kept
    return Summary(
        out=out,
        manifest=str(Path(out) / FORMATS[format].manifest),
        format=format,
        pairs=counts.pairs,
        anomalous=counts.anomalous,
        kept=kept,
        drawn=drawn,
        seconds=round(seconds, 3),
        pairs_per_second=round(drawn / seconds, 2),
    )


def _check(count: int, workers: int, engine: str, format: str, shard_size: int) -> None:
    for name, value in (("count", count), ("workers", workers), ("shard_size", shard_size)):
        check_option(name, value, value >= 1, "1 or more")
    check_option("engine", engine, engine in ENGINES, f"any of {', '.join(ENGINES)}")
    check_option("format", format, format in FORMATS, f"any of {', '.join(FORMATS)}")
    if engine == "ray":
        require_ray()
    if format == "parquet":
        require_pyarrow()


def _plan(options: SynthesisOptions, count: int, out: Path, format: str, shard_size: int) -> Work:
    """The work with absolute paths. Raises InputError if a folder or manifest of the options cannot be used."""
    # A resolved pipe is no usable path; `PairGenerator` names the pipe as given and refuses it.
    paths: dict[str, Any] = {name: path if path.is_fifo() else path.resolve() for name, path in _paths(options)}
    resolved = replace(options, **paths)
    PairGenerator(resolved)  # raises here, not in every worker, if a folder cannot be used
    step = shard_size if FORMATS[format].sharded else CHUNK
    return Work(resolved, json.dumps(_sources(resolved)), out.resolve(), format, step, count)


def _paths(options: SynthesisOptions) -> Iterator[tuple[str, Path]]:
    for option in fields(options):
        value = getattr(options, option.name)
        if isinstance(value, Path):
            yield option.name, value


def _sources(options: SynthesisOptions) -> dict[str, str]:
    """A digest of each folder's names and sizes of images, and of each file's content."""
    digests = {}
    for name, path in _paths(options):
        digest = hashlib.sha256()
        if path.is_dir():
            for image in list_images(path):
                digest.update(f"{image.relative_to(path).as_posix()} {image.stat().st_size}\n".encode())
        else:
            digest.update(path.read_bytes())
        digests[name] = digest.hexdigest()[:16]
    return digests


def _metadata(work: Work) -> dict[str, Any]:
    metadata = {
        "version": differad.__version__,
        "format": work.format,
        "shard_size": work.step if FORMATS[work.format].sharded else None,
        "options": _plain(work.options),
        "sources": json.loads(work.sources),
        "count": work.count,
    }
    return dict(json.loads(json.dumps(metadata)))  # as read from the file: tuples are lists


def _plain(options: SynthesisOptions) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}


def _check_metadata(work: Work) -> dict[str, Any] | None:
    """The metadata of the set in `out`, None for a new folder. Raises InputError if it holds anything else."""
    path = work.out / METADATA
    if not path.exists():
        names = sorted(file.name for file in work.out.iterdir() if file.name != LOCK)
        other_files = [name for name in names if not _UNFINISHED.fullmatch(name)]
        if other_files:
            raise InputError(
                f"{work.out}: holds {other_files[0]} and no {METADATA}; expected a new folder or an unfinished set"
            )
        return None
    wait_for_workers(path)
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        stored, requested = _flat(earlier), _flat(_metadata(work))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: not the metadata of a set; remove the folder or choose another --out") from None
    for name, value in requested.items():
        if stored.get(name) != value:
            raise InputError(
                f"{work.out}: holds a set with {name}={stored.get(name)!r}, asked for {name}={value!r}; "
                "choose another --out or remove it"
            )
    return dict(earlier)


def _flat(metadata: dict[str, Any]) -> dict[str, Any]:
    """The values that must be equal for a run to continue a set: all except the count.

    An option missing from a set's metadata was added later; its default generates the same pairs as before.
    """
    sources = {f"content of {name}": digest for name, digest in metadata["sources"].items()}
    defaults = json.loads(json.dumps(_plain(SynthesisOptions())))
    return {
        **{name: metadata[name] for name in ("version", "format", "shard_size")},
        **defaults,
        **metadata["options"],
        **sources,
    }


def _write_metadata(work: Work, earlier: dict[str, Any] | None) -> None:
    metadata = _metadata(work)
    if metadata != earlier:
        write_text(work.out / METADATA, json.dumps(metadata, indent=2) + "\n")


def _resume(work: Work) -> _Counts:
    """Count the manifest's valid lines and truncate it after them.

    They end before a line cut off by a kill or a power cut, a shard that must now hold more pairs, and a file that is missing,
    empty or cut off; the last files are read completely too.
    """
    path, counts = work.out / FORMATS[work.format].manifest, _Counts()
    if not path.exists():
        return counts
    with write_errors(path), path.open("r+b") as file:
        to_read = 1 if FORMATS[work.format].sharded else _READ_AGAIN
        end, last = 0, deque[tuple[_Counts, int, ManifestEntry]](maxlen=to_read)
        for raw, entry in _whole_lines(work, file, counts):
            last.append((replace(counts), end, entry))
            counts.add(entry)
            end += len(raw)
        for counts_before, offset, entry in last:
            if not _is_readable(work, entry):
                counts, end = counts_before, offset
                break
        file.truncate(end)
    return counts


def _whole_lines(work: Work, file: Iterable[bytes], counts: _Counts) -> Iterator[tuple[bytes, ManifestEntry]]:
    """Lines of the manifest, until one is cut off or its files are damaged. `counts` holds the lines before the current one."""
    for raw in file:
        if not raw.endswith(b"\n") or b"\0" in raw:
            return
        entry = _read_line(work, raw, counts)
        if FORMATS[work.format].sharded and entry.pairs < work.step and entry.first + entry.pairs < work.count:
            return
        damage = next(filter(None, (_damage(work, work.out / name) for name in entry.files)), None)
        if damage is not None:
            _warn_of_damage(*damage, entry)
            return
        yield raw, entry


def _damage(work: Work, path: Path) -> tuple[Path, str] | None:
    """What is wrong with a file of the set, judged by its size and last bytes."""
    if not path.is_file():
        return path, "missing"
    if not path.stat().st_size:
        return path, "empty"
    try:
        FORMATS[work.format].check_end(path)
    except InputError:
        return path, "incomplete"
    return None


def _is_readable(work: Work, entry: ManifestEntry) -> bool:
    for path in (work.out / name for name in entry.files):
        try:
            FORMATS[work.format].check(path)
        except InputError:
            _warn_of_damage(path, "incomplete", entry)
            return False
    return True


def _warn_of_damage(path: Path, damage: str, entry: ManifestEntry) -> None:
    warnings.warn(
        f"{path}: {damage}; pairs are generated again from number {entry.first} on", InputWarning, stacklevel=2
    )


def _read_line(work: Work, raw: bytes, counts: _Counts) -> ManifestEntry:
    """The next line of the manifest. Raises ManifestError if it does not follow the lines before it."""
    form = FORMATS[work.format]
    try:
        entry = form.read_line(json.loads(raw))
    except (ValueError, KeyError, TypeError, AttributeError):
        entry = None
    if entry is None or entry.first != counts.pairs:
        raise ManifestError(
            f"{work.out / form.manifest}:{counts.lines + 1}: expected pair {counts.pairs}; "
            "delete this line and those after it, and their pairs are generated again"
        )
    return entry


def _sweep(work: Work, lines: int) -> None:
    """Create the folders; remove files left by a kill, half written or not yet in the manifest."""
    for folder in (work.out / name for name in FORMATS[work.format].folders):
        make_folder(folder)
        with write_errors(folder), os.scandir(folder) as entries:
            for entry in entries:
                number = _NUMBERED.fullmatch(entry.name)
                if _UNFINISHED.fullmatch(entry.name) or (number and int(number[1]) >= lines):
                    Path(entry.path).unlink(missing_ok=True)
    for unfinished in leftovers([work.out / METADATA]):
        unfinished.unlink(missing_ok=True)


def _run(work: Work, counts: _Counts, workers: int, engine: str, deadline: float | None, progress: bool) -> None:
    """Perform the remaining tasks until a deadline and append each one's lines to the manifest.

    Raises InputError with the error that stopped a task.
    """
    starts = range(counts.pairs, work.count, work.step)
    manifest = work.out / FORMATS[work.format].manifest
    with AppendFile(manifest) as file, progress_bar(progress) as bar:
        task = bar.add_task("pairs", total=work.count, completed=counts.pairs)
        if not starts:
            return
        next_sync = time.monotonic() + SECONDS_BETWEEN_SYNCS
        # Closed at once on any error: no worker outlives the call.
        with closing(ENGINES[engine](work, starts, workers)) as results:
            for result in results:
                _add(work, counts, result)
                file.append("".join(f"{line}\n" for line in result.lines))
                if time.monotonic() >= next_sync:
                    file.sync()
                    next_sync = time.monotonic() + SECONDS_BETWEEN_SYNCS
                bar.update(task, completed=counts.pairs)
                if result.error is not None:
                    raise InputError(result.error)
                if deadline is not None and time.perf_counter() >= deadline:
                    return


def _add(work: Work, counts: _Counts, result: TaskResult) -> None:
    for line in result.lines:
        counts.add(_read_line(work, line.encode(), counts))
