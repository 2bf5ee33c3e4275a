"""Shared by readers of label files: loading JSON, and checking sizes and boxes against the image's actual size."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from differad.boxes import Boxes, clip, is_degenerate, to_list
from differad.data.manifest import Record, parse_line
from differad.errors import ManifestError

# Width and height in pixels, each None if a file does not state it.
Size = tuple[float | None, float | None]
# Decimals of a coordinate in a manifest: `write_pairs` rounds to hundredths of a pixel.
DIGITS = 2
# Boxes that differ by at most this (pixels), the rounding of two formats, are the same box.
SAME_BOX_TOLERANCE = 0.02


def load_json(path: Path, kind: type[dict[str, Any]] | type[list[Any]], expected: str) -> Any:
    """The JSON document of a file, a `kind`. Raises ManifestError saying what was `expected`."""
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such file; expected {expected}") from None
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); expected {expected}") from None
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: not UTF-8 text ({error.reason}); expected {expected}") from None
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path}: not JSON, or truncated ({error}); expected {expected}") from None
    if not isinstance(document, kind):
        raise ManifestError(f"{path}: holds a {type(document).__name__}; expected {expected}")
    return document


def parse_entry(kind: type[Record], value: Any, where: str) -> Record:
    """One entry of a document as a `kind`. Raises ManifestError with `where`, the field and its value."""
    return parse_line(kind, json.dumps(value), where)


def check_size(where: str, stated: Size, actual: tuple[int, int]) -> None:
    """Raise ManifestError if a file states another size than the image's actual one: it was rotated or resized."""
    if all(side in (None, true) for side, true in zip(stated, actual, strict=True)):
        return
    size = "x".join("?" if side is None else f"{side:g}" for side in stated)
    message = f"{where}: labelled as {size} pixels, but the image is {actual[0]}x{actual[1]}"
    if stated == actual[::-1]:
        raise ManifestError(
            f"{message}: width and height are swapped, as without its EXIF orientation; label the upright image, or "
            "rotate the labels with their width and height"
        )
    raise ManifestError(f"{message}; expected labels of the image as it is, upright and not resized")


def clip_to_image(boxes: Boxes, width: int, height: int, where: str) -> tuple[Boxes, int]:
    """Boxes (N, 4) clipped to an image of `width` x `height` pixels, and how many of them extended past its edges.

    Raises ManifestError if nothing remains of a box.
    """
    clipped = clip(boxes, width, height)
    for box, is_empty in zip(to_list(boxes, 4), is_degenerate(np.round(clipped, DIGITS)).tolist(), strict=True):
        if is_empty:
            raise ManifestError(
                f"{where}: box {box} (x1, y1, x2, y2) has no area inside the {width}x{height} image; "
                "expected x1 < x2 and y1 < y2 in pixels of the image"
            )
    return clipped, count_clipped(clipped, boxes)


def count_clipped(clipped: Boxes, boxes: Boxes) -> int:
    """How many boxes (N, 4) clipping changed by more than the rounding of formats."""
    return int(np.count_nonzero(np.abs(clipped - boxes).max(axis=-1, initial=0.0) > SAME_BOX_TOLERANCE))
