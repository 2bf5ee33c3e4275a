"""`shards.jsonl`: the shards of a set with their numbers of pairs and checksums, and checks of the files against them.

A line is `{"shard": name, "pairs": number, "sha256": digits, …}`; sets of older versions have no checksum. Knows nothing about
the contents of a shard.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from differad.data.manifest import parse_line
from differad.data.stamps import sha256
from differad.errors import ManifestError

INDEX = "shards.jsonl"
_REMEDY = "fetch or write the shard again"


class ShardEntry(BaseModel):
    """A line of the index."""

    model_config = ConfigDict(extra="allow", strict=True)

    shard: Annotated[str, Field(min_length=1)]
    pairs: Annotated[int, Field(ge=0)]
    sha256: str | None = None


def read_index(folder: Path) -> dict[str, ShardEntry]:
    """The entries of a folder's index by shard; empty without an index. Raises ManifestError.

    A last line that a kill truncated belongs to an unfinished shard and is ignored.
    """
    path = folder / INDEX
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); expected an index of shards") from None
    entries = {}
    for number, raw in enumerate(lines, start=1):
        if not raw.endswith(b"\n") or b"\0" in raw:
            break
        entry = parse_line(ShardEntry, raw.decode("utf-8", "replace"), f"{path}:{number}")
        entries[entry.shard] = entry
    return entries


def check_present(folder: Path, entries: dict[str, ShardEntry], shards: Sequence[Path]) -> None:
    """Raise ManifestError if the index of `folder` lists a shard that is not in `shards`, or lacks one that is."""
    names = {path.name for path in shards}
    unlisted = next((path for path in shards if path.name not in entries), None)
    if entries and unlisted is not None:
        raise ManifestError(
            f"{unlisted}: {INDEX} beside it does not name it, so it may be incomplete; move it to another folder, or run the "
            "command that wrote it again if it was not finished"
        )
    missing = next((name for name in entries if name not in names), None)
    if missing is not None:
        raise ManifestError(
            f"{folder / missing}: no such file, though {INDEX} names it with {entries[missing].pairs} pairs; {_REMEDY}"
        )


def check_content(path: Path, entry: ShardEntry) -> None:
    """Raise ManifestError if a shard's checksum differs from its entry's, InputError if it cannot be read."""
    if entry.sha256 is not None and sha256(path) != entry.sha256:
        raise ManifestError(f"{path}: has another checksum than {path.with_name(INDEX)} says; {_REMEDY}")


def check_count(path: Path, entry: ShardEntry, count: int) -> None:
    """Raise ManifestError if a shard's number of pairs differs from its entry's."""
    if count != entry.pairs:
        raise ManifestError(f"{path}: holds {count} pairs, and {path.with_name(INDEX)} says {entry.pairs}; {_REMEDY}")
