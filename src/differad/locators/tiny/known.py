"""An index of the file pairs whose features are cached, so that their images need not be opened.

A line of `known.jsonl` holds two files, their sizes and times, how they were resized, and the key of their features. A pair
counts as cached while all of that holds and the features exist. Its images are then replaced by the key, written as two tiny
images that no real image can equal: they pass through processors like others. Knows neither torch nor transformers.
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
from differad.locators.tiny.cache import has_pair_features

INDEX = "known.jsonl"
# An image of two rows is below the minimum side of every policy; these bytes come before the key.
_SHAPE = (2, 6, 3)
_MARK = b"evidence of a pair: "


class PairFeatureIndex:
    """The index in a cache's folder; a missing file is an empty index."""

    def __init__(self, folder: Path, rule: ResizeRule) -> None:
        self._folder, self._rule = folder, list(astuple(rule))
        self._keys = dict(_read(folder / INDEX))

    def key(self, reference: ImageSource, target: ImageSource, grid: tuple[int, int]) -> bytes | None:
        """The key of a pair's cached features (*grid, WIDTH); None if they are not cached, or not in the index."""
        signature = file_signature(reference, target, self._rule)
        key = None if signature is None else self._keys.get(signature)
        return key if key is not None and has_pair_features(self._folder, key, grid) else None


def file_signature(reference: ImageSource, target: ImageSource, rule: list[Any]) -> str | None:
    """Two files, their sizes and times, and how they are resized, as a line of JSON; None for images that are no whole files."""
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


def append_to_index(folder: Path, known: Iterable[tuple[str, bytes]]) -> None:
    """Append file signatures with their keys to the index of a cache. Raises WriteError."""
    make_folder(folder)
    with AppendFile(folder / INDEX) as file:
        file.append("".join(json.dumps([signature, key.hex()]) + "\n" for signature, key in known))


def _read(path: Path) -> Iterator[tuple[str, bytes]]:
    """File signatures with their keys; lines cut off by a kill are skipped."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            signature, key = json.loads(line)
            yield signature, bytes.fromhex(key)
        except (ValueError, TypeError):
            continue


@cache
def key_image(key: bytes) -> RGB:
    """An image (2, 6, 3) that stands for each of the two images of a pair whose features have this key."""
    image = np.frombuffer(_MARK + key, np.uint8).reshape(_SHAPE)
    return image.copy()


def read_key(image: RGB) -> bytes | None:
    """The key that an image stands for; None for a real one."""
    if image.shape != _SHAPE:
        return None
    mark, key = image.tobytes()[: len(_MARK)], image.tobytes()[len(_MARK) :]
    return key if mark == _MARK else None
