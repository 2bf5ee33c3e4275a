"""Which pairs of files have their evidence in a cache already: an index beside it, so that such images need not be opened.

A line of `known.jsonl` names two files, their sizes and times, how they were resized, and the key of their evidence. A pair
counts as known while all of that holds and the evidence is there. What stands for its images then is the key, written as two
tiny images that no policy would take for others: they pass through processors like any. Knows neither torch nor transformers.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import astuple
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from differad.answers.resize import ResizeRule
from differad.files import AppendFile, make_folder
from differad.images import RGB, ImageSource
from differad.locators.tiny.cache import has_evidence

INDEX = "known.jsonl"
# An image of two rows is under the least side of every policy; these bytes come before the key.
_SHAPE = (2, 6, 3)
_MARK = b"evidence of a pair: "


class KnownEvidence:
    """The index in a cache's folder; a missing one knows nothing."""

    def __init__(self, folder: Path, rule: ResizeRule) -> None:
        self._folder, self._rule = folder, list(astuple(rule))
        self._keys = dict(_read(folder / INDEX))

    def key(self, reference: ImageSource, target: ImageSource, grid: tuple[int, int]) -> bytes | None:
        """The key of a pair's evidence (*grid, WIDTH) that is there; None where it is not, or not known to be."""
        described = describe(reference, target, self._rule)
        key = None if described is None else self._keys.get(described)
        return key if key is not None and has_evidence(self._folder, key, grid) else None


def describe(reference: ImageSource, target: ImageSource, rule: list[Any]) -> str | None:
    """Two files, their sizes and times, and how they are resized, as a line; None for images that are no whole files."""
    parts: list[Any] = [rule]
    for image in (reference, target):
        try:
            status = Path(image).stat() if isinstance(image, str | Path) else None
        except OSError:  # also a page of a file, "image.tif[2]"
            status = None
        if status is None:
            return None
        parts.append([str(Path(str(image)).absolute()), status.st_size, status.st_mtime_ns])
    return json.dumps(parts)


def write_known(folder: Path, known: Iterable[tuple[str, bytes]]) -> None:
    """Append descriptions with their keys to the index of a cache. Raises WriteError."""
    make_folder(folder)
    with AppendFile(folder / INDEX) as file:
        file.append("".join(json.dumps([described, key.hex()]) + "\n" for described, key in known))


def _read(path: Path) -> Iterator[tuple[str, bytes]]:
    """Descriptions with their keys; what a kill left of a line is passed over."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            described, key = json.loads(line)
            yield described, bytes.fromhex(key)
        except (ValueError, TypeError):
            continue


@cache
def key_image(key: bytes) -> RGB:
    """An image (2, 6, 3) that stands for each of the two images of a pair whose evidence has this key."""
    image = np.frombuffer(_MARK + key, np.uint8).reshape(_SHAPE)
    return image.copy()


def read_key(image: RGB) -> bytes | None:
    """The key that an image stands for; None for a real one."""
    if image.shape != _SHAPE:
        return None
    mark, key = image.tobytes()[: len(_MARK)], image.tobytes()[len(_MARK) :]
    return key if mark == _MARK else None
