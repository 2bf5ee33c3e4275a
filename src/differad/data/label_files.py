"""What readers of label files share: JSON documents, and the checks of sizes and boxes against the image's own."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from differad.boxes import Boxes, clip, is_degenerate, to_list
from differad.data.manifest import Record, parse_line
from differad.errors import ManifestError

# Width and height in pixels, as far as a file tells them.
Size = tuple[float | None, float | None]
# What a manifest holds of a coordinate: `write_pairs` rounds to hundredths of a pixel.
DIGITS = 2
# Two formats' roundings apart: such boxes are the same box.
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
        raise ManifestError(f"{path}: no JSON, or cut off ({error}); expected {expected}") from None
    if not isinstance(document, kind):
        raise ManifestError(f"{path}: holds a {type(document).__name__}; expected {expected}")
    return document


def parse_entry(kind: type[Record], value: Any, where: str) -> Record:
    """One entry of a document as a `kind`. Raises ManifestError naming `place`, the field and its value."""
    return parse_line(kind, json.dumps(value), where)


def check_size(where: str, said: Size, actual: tuple[int, int]) -> None:
    """Raise ManifestError where a file tells another size for an image than its own: it was turned or resized."""
    if all(side in (None, true) for side, true in zip(said, actual, strict=True)):
        return
    told = "x".join("?" if side is None else f"{side:g}" for side in said)
    message = f"{where}: labelled as {told} pixels, but the image is {actual[0]}x{actual[1]}"
    if said == actual[::-1]:
        raise ManifestError(
            f"{message}: the sides stand the other way round, as without its EXIF orientation; label the upright image, or "
            "turn the labels with their width and height"
        )
    raise ManifestError(f"{message}; expected labels of the image as it is, upright and not resized")


def clip_to_image(boxes: Boxes, width: int, height: int, where: str) -> tuple[Boxes, int]:
    """Boxes cut off at an image of `width` x `height` pixels, and how many of them reached over its edges.

    Raises ManifestError where nothing of one remains.
    """
    kept = clip(boxes, width, height)
    for box, bad in zip(to_list(boxes, 4), is_degenerate(np.round(kept, DIGITS)).tolist(), strict=True):
        if bad:
            raise ManifestError(
                f"{where}: box {box} (x1, y1, x2, y2) has no area inside the {width}x{height} image; "
                "expected x1 < x2 and y1 < y2 in pixels of the image"
            )
    return kept, count_clipped(kept, boxes)


def count_clipped(kept: Boxes, given: Boxes) -> int:
    """How many boxes (N, 4) reached over the edge by more than a format's rounding."""
    return int(np.count_nonzero(np.abs(kept - given).max(axis=-1, initial=0.0) > SAME_BOX_TOLERANCE))
