"""`pairs.jsonl`: one pair per line, paths relative to the file, read as a stream and checked line by line.

Each error names the file, the line and the field. Images are not opened; a mask is read if its pair has no boxes.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from differad.boxes import as_boxes, to_list
from differad.core import Pair
from differad.data.keys import KeyTypoWarner, closest_key
from differad.data.masks import boxes_from_mask, read_mask
from differad.errors import ImageError, ManifestError, shortened
from differad.files import is_pipe_or_device, make_folder, write_lines
from differad.images import image_size


def _positive_area(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"box {list(box)} holds no area; expected x1 < x2 and y1 < y2 in pixels of the target")
    return box


_Coordinate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Box = Annotated[tuple[_Coordinate, _Coordinate, _Coordinate, _Coordinate], AfterValidator(_positive_area)]
_Text = Annotated[str, Field(min_length=1)]
Record = TypeVar("Record", bound=BaseModel)
# Longer than any image's side (pixels): a larger coordinate is an error and would overflow later computations.
_MAX_SIDE = 10_000_000


class PairRecord(BaseModel):
    """One line of `pairs.jsonl`; unknown keys are kept."""

    model_config = ConfigDict(extra="allow", strict=True)

    id: _Text
    category: str = ""
    reference: _Text
    target: _Text
    boxes: list[_Box] | None = None
    mask: str | None = None
    group: str | None = None
    anomalous: bool | None = None

    @model_validator(mode="after")
    def _check_boxes(self) -> Self:
        """Check that boxes fit into some image and that `anomalous` agrees with them; without boxes it is the label."""
        for box in self.boxes or ():
            if max(box) > _MAX_SIDE:
                raise ValueError(
                    f"pair {shortened(self.id)}: box {list(box)} extends beyond {_MAX_SIDE} pixels, as no image does; "
                    "expected pixels of the target as x1, y1, x2, y2"
                )
        if self.boxes is not None and self.anomalous not in (None, bool(self.boxes)):
            raise ValueError(
                f"anomalous {self.anomalous} beside {len(self.boxes)} boxes; expected boxes for an abnormal target (null: "
                "place unknown), [] for a normal one"
            )
        return self


def read_pairs(path: str | Path) -> Iterator[Pair]:
    """Stream the pairs of a manifest; paths are joined to its folder.

    Boxes come from the line, else from the mask. Without either the pair is unlabelled, or with `"anomalous": true` abnormal
    at an unknown place; `boxes` is None in both cases. Raises ManifestError on the first invalid line, ImageError on an
    unreadable mask. Warns of a key that resembles a known one.
    """
    path = Path(path)
    ids: set[str] = set()
    typos = KeyTypoWarner(PairRecord)
    for number, line in numbered_lines(path):
        record = parse_line(PairRecord, line, f"{path}:{number}")
        typos.check(record, f"{path}:{number}")
        if record.id in ids:
            raise ManifestError(f"{path}:{number}: id: {record.id!r} occurs twice; expected one line per id")
        ids.add(record.id)
        yield _to_pair(record, path.parent)


def write_pairs(path: str | Path, pairs: Iterable[Pair]) -> int:
    """Write pairs, whose images must be paths, as a manifest with paths relative to it; return their number.

    The file is written atomically. Raises ManifestError, WriteError.
    """
    path = Path(path)
    count = 0

    def lines() -> Iterator[str]:
        nonlocal count
        for pair in pairs:
            count += 1
            yield json.dumps(_to_record(pair, path.parent), ensure_ascii=False) + "\n"

    make_folder(path.parent)
    write_lines(path, lines())
    return count


def check_readable(paths: Iterable[Path]) -> None:
    """Raise ManifestError for a text file that cannot be opened, or that can be read only once (a pipe)."""
    for path in paths:
        if path.is_dir():
            raise ManifestError(
                f"{path}: a folder; expected a file of JSON lines. For a folder of images: differad inspect GOOD {path} --out DIR"
            )
        if is_pipe_or_device(path):
            raise ManifestError(f"{path}: can be read only once; save it to a file and name that")
        for _ in numbered_lines(path):
            break


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Non-blank lines of a UTF-8 text file with their numbers from 1. Raises ManifestError."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such file; expected one JSON object per line") from None
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); expected a file of JSON lines") from None


def parse_line(kind: type[Record], line: str, where: str) -> Record:
    """One JSON line as a `kind`. Raises ManifestError with `where`, the field, its value and what was expected."""
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "line"
        value = "" if first["type"] == "missing" else f" {shortened(first['input'])}:"
        if first["type"] == "missing" and isinstance(first["input"], dict):
            meant = [key for key in first["input"] if closest_key(key, [str(first["loc"][-1])])]
            value = f" {shortened(meant[0])} is given instead:" if meant else ""
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ManifestError(f"{where}: {field}:{value} {first['msg']}{more}") from None


def _to_pair(record: PairRecord, folder: Path) -> Pair:
    mask = _joined(folder, record.mask) if record.mask else None
    boxes = None
    if record.boxes is not None:
        boxes = as_boxes(record.boxes)
    elif mask is not None:
        boxes = boxes_from_mask(read_mask(mask, _size(_joined(folder, record.target))))
        if record.anomalous not in (None, len(boxes) > 0):
            raise ManifestError(
                f"pair {record.id!r}: anomalous {record.anomalous}, but its mask {mask} marks {len(boxes)} defects; correct "
                "the mask or the label"
            )
    return Pair(
        reference=_joined(folder, record.reference),
        target=_joined(folder, record.target),
        id=record.id,
        category=record.category,
        boxes=boxes,
        mask=mask,
        group=record.group,
        anomalous=record.anomalous,
        extra=dict(record.model_extra or {}),
    )


def _joined(folder: Path, name: str) -> Path:
    """The path `name` of a manifest, which has backslashes if it was written on Windows."""
    path = folder / name
    if "\\" not in name or path.exists():
        return path
    return folder / name.replace("\\", "/")


def _size(target: Path) -> tuple[int, int] | None:
    """(width, height) of the target; None if it cannot be read, which is reported when it is opened."""
    try:
        return image_size(target)
    except ImageError:
        return None


def _to_record(pair: Pair, folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = {
        "id": pair.id,
        "category": pair.category,
        "reference": _relative(pair, "reference", folder),
        "target": _relative(pair, "target", folder),
    }
    if pair.boxes is not None:
        record["boxes"] = to_list(pair.boxes)
    elif pair.anomalous:
        record |= {"boxes": None, "anomalous": True}
    record["mask"] = _relative(pair, "mask", folder) if pair.mask is not None else None
    record["group"] = pair.group
    return {**pair.extra, **record}


def _relative(pair: Pair, field: str, folder: Path) -> str:
    value = getattr(pair, field)
    if not isinstance(value, str | Path):
        raise ManifestError(f"pair {pair.id!r}: {field} is an image in memory; save it and give its path")
    return Path(os.path.relpath(value, folder)).as_posix()
