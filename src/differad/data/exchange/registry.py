"""The table of annotation formats, and the two functions that use it: `export_pairs` and `import_pairs`."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from differad.core import Pair
from differad.data.exchange.coco import read_coco, write_coco
from differad.data.exchange.cvat import read_cvat, write_cvat
from differad.data.exchange.label_studio import read_label_studio, write_label_studio
from differad.data.exchange.shared import (
    URL_PREFIX,
    Corrections,
    ExportOptions,
    Item,
    Items,
    Predictions,
    file_name,
    merge,
)
from differad.data.exchange.yolo import read_yolo, write_yolo
from differad.data.manifest import read_pairs, write_pairs
from differad.data.output_folder import OutputFolder, check_empty, create_output_folder
from differad.errors import InputError, OptionError
from differad.files import leftovers, write_errors
from differad.images import write_image


class Exchange(NamedTuple):
    """An annotation format: its writer into an empty folder, its reader, and a one-line description."""

    write: Callable[[OutputFolder, Iterable[Item], ExportOptions], None]
    read: Callable[[Path, Corrections], None]
    help: str


ANNOTATION_FORMATS: dict[str, Exchange] = {
    "coco": Exchange(write_coco, read_coco, "COCO detection: instances.json, predictions.json in the results format"),
    "yolo": Exchange(write_yolo, read_yolo, "Ultralytics YOLO: data.yaml, images/ (links), labels/, pairs.jsonl"),
    "label-studio": Exchange(
        write_label_studio, read_label_studio, "Label Studio: tasks.json, and config.xml with the reference beside"
    ),
    "cvat": Exchange(write_cvat, read_cvat, "CVAT for images 1.1: annotations.xml, and labels.json to make the task"),
}


def find_format(name: str) -> Exchange:
    """The annotation format `name`. Raises OptionError."""
    if name not in ANNOTATION_FORMATS:
        raise OptionError(f"format {name!r}: expected one of {', '.join(ANNOTATION_FORMATS)}")
    return ANNOTATION_FORMATS[name]


def export_pairs(
    name: str,
    manifest: Path,
    out: Path,
    *,
    predictions: Predictions | None = None,
    root: Path | None = None,
    copy: bool = False,
    url_prefix: str = URL_PREFIX,
) -> dict[str, Any]:
    """Write the pairs of a manifest, and predictions by id, into the new folder `out`; return counts and file names.

    Images are named relative to `root` (default: the manifest's folder). Files of a killed export in `out` are removed. Raises
    OptionError, ManifestError, ImageError, InputError if `out` holds anything else, and WriteError.
    """
    exchange = find_format(name)
    predictions = predictions or {}
    options = ExportOptions(root or manifest.parent, copy, url_prefix)
    items = Items(manifest, predictions)
    is_new = not out.exists()
    try:
        with create_output_folder(out, force=True, work="export") as folder:
            exchange.write(folder, items, options)
    except BaseException:
        if is_new:
            with suppress(OSError):  # not empty: another process has written to it
                out.rmdir()
        raise
    counts = ("pairs", "unlabelled", "place_unknown", "boxes", "predictions")
    return {
        "format": name,
        **{count: items.counts[count] for count in counts},
        "unknown_predictions": len(predictions) - items.counts["predictions"],
        "cut_boxes": items.counts["cut_boxes"],
        "files": sorted(path.name for path in out.iterdir()),
    }


def import_pairs(
    name: str,
    file: Path,
    manifest: Path,
    out: Path,
    *,
    root: Path | None = None,
    skip_bad: bool = False,
    empty_is_normal: bool = False,
    masks: Path | None = None,
) -> dict[str, Any]:
    """Write the pairs of a manifest, with the boxes from a tool's `file`, to the new manifest `out`; return counts.

    Pairs that the file does not mention keep their labels. With the new folder `masks`, a pair with other shapes than
    axis-aligned rectangles gets its mask there. Raises OptionError; ImageError and ManifestError for an invalid entry, unless
    `skip_bad` lists it; InputError if `out` exists; WriteError, after which there are no masks either.
    """
    exchange = find_format(name)
    if masks is not None:
        check_empty(masks)
    if out.exists():
        raise InputError(f"{out}: exists; expected the name of a new manifest, so that no labels are lost")
    with write_errors(out):
        for leftover in leftovers((out,)):
            leftover.unlink(missing_ok=True)
    pairs = list(read_pairs(manifest))
    corrections = Corrections(pairs, root or manifest.parent, skip_bad=skip_bad)
    exchange.read(file, corrections)
    merged = merge(pairs, corrections, empty_is_normal=empty_is_normal)
    final_pairs = merged.pairs
    if masks is None:
        write_pairs(out, final_pairs)
    else:
        with create_output_folder(masks, force=True, work="import") as folder:
            final_pairs = _with_masks(merged.pairs, corrections, folder)
            folder.sync()  # before the manifest that names them
            write_pairs(out, final_pairs)
    return {
        "format": name,
        "pairs": len(pairs),
        "corrected": merged.corrected,
        "confirmed": merged.confirmed,
        "kept": merged.kept,
        "place_unknown": sum(pair.anomalous is True and pair.boxes is None for pair in merged.pairs),
        "masks": sum(new is not old for new, old in zip(final_pairs, merged.pairs, strict=True)),
        "cut_boxes": corrections.clipped,
        "crowd_regions": corrections.crowds,
        "skipped": len(corrections.problems),
        "problems": corrections.problems,
    }


def _with_masks(pairs: Sequence[Pair], corrections: Corrections, folder: OutputFolder) -> list[Pair]:
    """The pairs, with the annotated shapes written as masks into `folder`. Raises WriteError."""
    with_masks = []
    for pair in pairs:
        mask = corrections.mask(pair.id)
        if mask is not None:
            path = folder.new_file(f"{file_name(pair.id)}.png")
            write_image(path, cv2.cvtColor(mask.astype(np.uint8) * 255, cv2.COLOR_GRAY2RGB))
            pair = replace(pair, mask=path)
        with_masks.append(pair)
    return with_masks
