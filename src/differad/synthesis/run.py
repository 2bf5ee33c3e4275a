"""Sets of synthetic pairs of any size: streamed, on several workers, gone on with after a kill, the same bytes every time.

A pair depends on the options, its index, and the versions of OpenCV and NumPy. Files appear whole or not at all, and a line
of the manifest (`pairs.jsonl`, or `shards.jsonl` for shards) is written in order, after its files are on the disk. So the
manifest says what is done, also after a power cut, and what it does not say is drawn again. `synthesis.json` says what the set
is made of.
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
from differad.data.locks import LOCK, sole_run, wait_for_workers
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
from differad.synthesis.draw import Drawer, DrawOptions
from differad.synthesis.engines import ENGINES, require_ray
from differad.synthesis.normals import list_pictures
from differad.synthesis.store import FORMATS, NOTE, Done, Entry, Work

SHARD_SIZE = 1000
# Lines of an earlier run's manifest whose files are read before it is gone on with; of shards the last alone.
_READ_AGAIN = 32
# Pairs in one task where each has files of its own: a tenth of a second of work, far more than it costs to hand out.
CHUNK = 8
_NUMBERED = re.compile(r"(?:shard-)?(\d{8,})\.(?:png|tar|parquet)")
_UNFINISHED = re.compile(r".+\.(?:png|tar|parquet|json)\.\d+" + re.escape(TEMPORARY_ENDING))


@dataclass(frozen=True)
class Summary:
    """What a run left in `out`: `pairs` in all, of which `kept` were there before and `drawn` are new."""

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
    options: DrawOptions,
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
    """Draw pairs 0 to `count` - 1 of `options` into the folder `out`, on `workers` cores.

    A second call goes on where the first stopped, or adds pairs where `count` is larger; `minutes` stop a call earlier.
    `format` is folder (PNG files and pairs.jsonl), webdataset or parquet (shards of `shard_size` pairs and shards.jsonl);
    `engine` is process or ray. Raises OptionError, MissingExtraError, and InputError where `out` holds another set or a pair,
    which it names, cannot be drawn.
    """
    began = time.perf_counter()
    _check(count, workers, engine, format, shard_size)
    check_option("minutes", minutes, minutes is None or minutes > 0, "more than 0")
    until = None if minutes is None else began + 60 * minutes
    work = _plan(options, count, Path(out), format, shard_size)
    make_folder(work.out)
    with sole_run(work.out):
        earlier = _check_note(work)
        tally = _resume(work)
        if tally.pairs > count:
            raise InputError(
                f"{out}: holds {tally.pairs} pairs, --count {count} is fewer; give as many, or another --out"
            )
        _write_note(work, earlier)
        _sweep(work, tally.lines)
        kept = tally.pairs
        _run(work, tally, workers, engine, until, progress)
    return _summary(str(out), format, tally, kept, time.perf_counter() - began)


@dataclass
class _Tally:
    """What the manifest says is done."""

    lines: int = 0
    pairs: int = 0
    anomalous: int = 0

    def add(self, entry: Entry) -> None:
        self.lines += 1
        self.pairs += entry.pairs
        self.anomalous += entry.anomalous


def _summary(out: str, format: str, tally: _Tally, kept: int, seconds: float) -> Summary:
    drawn = tally.pairs - kept
    return Summary(
        out=out,
        manifest=str(Path(out) / FORMATS[format].manifest),
        format=format,
        pairs=tally.pairs,
        anomalous=tally.anomalous,
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


def _plan(options: DrawOptions, count: int, out: Path, format: str, shard_size: int) -> Work:
    """The work with absolute paths. Raises InputError on a folder or manifest that nothing can be drawn from."""
    # A pipe resolves to what is no path; `Drawer` refuses it by its name.
    paths: dict[str, Any] = {name: path if path.is_fifo() else path.resolve() for name, path in _paths(options)}
    resolved = replace(options, **paths)
    Drawer(resolved)  # says now, not in every worker, what is wrong with its folders
    step = shard_size if FORMATS[format].sharded else CHUNK
    return Work(resolved, json.dumps(_sources(resolved)), out.resolve(), format, step, count)


def _paths(options: DrawOptions) -> Iterator[tuple[str, Path]]:
    for option in fields(options):
        value = getattr(options, option.name)
        if isinstance(value, Path):
            yield option.name, value


def _sources(options: DrawOptions) -> dict[str, str]:
    """A digest for each folder, of its pictures' names and sizes, and for each file, of its content."""
    digests = {}
    for name, path in _paths(options):
        digest = hashlib.sha256()
        if path.is_dir():
            for picture in list_pictures(path):
                digest.update(f"{picture.relative_to(path).as_posix()} {picture.stat().st_size}\n".encode())
        else:
            digest.update(path.read_bytes())
        digests[name] = digest.hexdigest()[:16]
    return digests


def _note(work: Work) -> dict[str, Any]:
    note = {
        "version": differad.__version__,
        "format": work.format,
        "shard_size": work.step if FORMATS[work.format].sharded else None,
        "options": _plain(work.options),
        "sources": json.loads(work.sources),
        "count": work.count,
    }
    return dict(json.loads(json.dumps(note)))  # as it reads back: tuples are lists


def _plain(options: DrawOptions) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}


def _check_note(work: Work) -> dict[str, Any] | None:
    """What `out` says of its set, None for a new folder. Raises InputError where it holds anything else."""
    path = work.out / NOTE
    if not path.exists():
        names = sorted(file.name for file in work.out.iterdir() if file.name != LOCK)
        strangers = [name for name in names if not _UNFINISHED.fullmatch(name)]
        if strangers:
            raise InputError(
                f"{work.out}: holds {strangers[0]} and no {NOTE}; expected a new folder, or a set begun here"
            )
        return None
    wait_for_workers(path)
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        before, now = _flat(earlier), _flat(_note(work))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: does not say what set this is; remove the folder or choose another --out") from None
    for name, value in now.items():
        if before.get(name) != value:
            raise InputError(
                f"{work.out}: holds a set with {name}={before.get(name)!r}, asked for {name}={value!r}; "
                "choose another --out or remove it"
            )
    return dict(earlier)


def _flat(note: dict[str, Any]) -> dict[str, Any]:
    """What must be equal for a run to go on: everything but the count.

    An option that a set's note does not know came later; its default draws what was drawn before.
    """
    sources = {f"content of {name}": digest for name, digest in note["sources"].items()}
    usual = json.loads(json.dumps(_plain(DrawOptions())))
    return {**{name: note[name] for name in ("version", "format", "shard_size")}, **usual, **note["options"], **sources}


def _write_note(work: Work, earlier: dict[str, Any] | None) -> None:
    note = _note(work)
    if note != earlier:
        write_text(work.out / NOTE, json.dumps(note, indent=2) + "\n")


def _resume(work: Work) -> _Tally:
    """Count what the manifest holds, and cut it off where that ends.

    It ends at what a kill or a power cut left of a line, at a shard that now has to hold more, and at a file that is gone, empty
    or cut off; the last files are read as a whole too.
    """
    path, tally = work.out / FORMATS[work.format].manifest, _Tally()
    if not path.exists():
        return tally
    with write_errors(path), path.open("r+b") as file:
        again = 1 if FORMATS[work.format].sharded else _READ_AGAIN
        end, last = 0, deque[tuple[_Tally, int, Entry]](maxlen=again)
        for raw, entry in _whole_lines(work, file, tally):
            last.append((replace(tally), end, entry))
            tally.add(entry)
            end += len(raw)
        for before, place, entry in last:
            if not _is_readable(work, entry):
                tally, end = before, place
                break
        file.truncate(end)
    return tally


def _whole_lines(work: Work, file: Iterable[bytes], tally: _Tally) -> Iterator[tuple[bytes, Entry]]:
    """Lines of the manifest, while each is whole and its files are there. `tally` is what stands before the line."""
    for raw in file:
        if not raw.endswith(b"\n") or b"\0" in raw:
            return
        entry = _read_line(work, raw, tally)
        if FORMATS[work.format].sharded and entry.pairs < work.step and entry.first + entry.pairs < work.count:
            return
        damage = next(filter(None, (_damage(work, work.out / name) for name in entry.files)), None)
        if damage is not None:
            _warn_of(*damage, entry)
            return
        yield raw, entry


def _damage(work: Work, path: Path) -> tuple[Path, str] | None:
    """What is wrong with a file of the set, as its size and its last bytes tell."""
    if not path.is_file():
        return path, "gone"
    if not path.stat().st_size:
        return path, "empty"
    try:
        FORMATS[work.format].check_end(path)
    except InputError:
        return path, "not whole"
    return None


def _is_readable(work: Work, entry: Entry) -> bool:
    for path in (work.out / name for name in entry.files):
        try:
            FORMATS[work.format].check(path)
        except InputError:
            _warn_of(path, "not whole", entry)
            return False
    return True


def _warn_of(path: Path, what: str, entry: Entry) -> None:
    warnings.warn(f"{path}: {what}; pairs are drawn again from number {entry.first} on", InputWarning, stacklevel=2)


def _read_line(work: Work, raw: bytes, tally: _Tally) -> Entry:
    """The next line of the manifest. Raises ManifestError where it is not the one that follows on the lines before it."""
    form = FORMATS[work.format]
    try:
        entry = form.read_line(json.loads(raw))
    except (ValueError, KeyError, TypeError, AttributeError):
        entry = None
    if entry is None or entry.first != tally.pairs:
        raise ManifestError(
            f"{work.out / form.manifest}:{tally.lines + 1}: expected pair {tally.pairs}; "
            "cut the file off before this line, and what follows is drawn again"
        )
    return entry


def _sweep(work: Work, lines: int) -> None:
    """Make the folders; remove what a kill left in them, files half written or not yet in the manifest."""
    for folder in (work.out / name for name in FORMATS[work.format].folders):
        make_folder(folder)
        with write_errors(folder), os.scandir(folder) as entries:
            for entry in entries:
                number = _NUMBERED.fullmatch(entry.name)
                if _UNFINISHED.fullmatch(entry.name) or (number and int(number[1]) >= lines):
                    Path(entry.path).unlink(missing_ok=True)
    for half_note in leftovers([work.out / NOTE]):
        half_note.unlink(missing_ok=True)


def _run(work: Work, tally: _Tally, workers: int, engine: str, until: float | None, progress: bool) -> None:
    """Perform what is left, noting each task in the manifest, but none after a time.

    Raises InputError with what stopped one.
    """
    starts = range(tally.pairs, work.count, work.step)
    manifest = work.out / FORMATS[work.format].manifest
    with AppendFile(manifest) as file, progress_bar(progress) as bar:
        task = bar.add_task("pairs", total=work.count, completed=tally.pairs)
        if not starts:
            return
        due = time.monotonic() + SECONDS_BETWEEN_SYNCS
        # Closed at once, whatever goes wrong here: no worker outlives the call.
        with closing(ENGINES[engine](work, starts, workers)) as results:
            for done in results:
                _add(work, tally, done)
                file.append("".join(f"{line}\n" for line in done.lines))
                if time.monotonic() >= due:
                    file.sync()
                    due = time.monotonic() + SECONDS_BETWEEN_SYNCS
                bar.update(task, completed=tally.pairs)
                if done.error is not None:
                    raise InputError(done.error)
                if until is not None and time.perf_counter() >= until:
                    return


def _add(work: Work, tally: _Tally, done: Done) -> None:
    for line in done.lines:
        tally.add(_read_line(work, line.encode(), tally))
