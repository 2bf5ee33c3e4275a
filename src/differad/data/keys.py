"""Keys of JSON lines that nobody reads but that look like one that is read: a slip that would otherwise go by unnoticed.

Further keys are allowed and kept, so that `boxs` makes a pair unlabelled without an error. Knows nothing of what keys mean.
"""

import warnings
from collections.abc import Iterable
from difflib import get_close_matches
from functools import lru_cache

from pydantic import BaseModel

from differad.errors import InputWarning, shortened

# How alike two names are, from 0 to 1: `boxs` and `boxes` 0.89, `mask` and `task` 0.75.
_ALIKE = 0.8
# Keys whose comparison stays in memory: a file has the same few on every line, and comparing takes longer than reading the line.
_CACHED = 1024
# What other tools call it.
_OTHER_NAMES = {
    "box": "boxes",
    "bbox": "boxes",
    "bboxes": "boxes",
    "bounding_boxes": "boxes",
    "anomaly": "anomalous",
    "abnormal": "anomalous",
    "mask_path": "mask",
    "conf": "confidence",
}


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `name` is most likely meant for; None where it resembles none."""
    plain = name.strip().lower().replace("-", "_").replace(" ", "_")
    names = list(known)
    other = _OTHER_NAMES.get(plain)
    return other if other in names else next(iter(get_close_matches(plain, names, n=1, cutoff=_ALIKE)), None)


class SlipFinder:
    """Warns, once for each key of a file, of keys that stand where one of `kind` was probably meant."""

    def __init__(self, kind: type[BaseModel]) -> None:
        known = tuple(kind.model_fields)
        self._meant = lru_cache(_CACHED)(lambda key: nearest(key, known))
        self._said: set[str] = set()

    def check(self, record: BaseModel, where: str) -> None:
        """Warn of the further keys of one line; one beside the key that it resembles is meant as it is."""
        for key in record.model_extra or {}:
            if key in self._said:
                continue
            meant = self._meant(key)
            if meant is None or (meant in record.model_fields_set and getattr(record, meant) is not None):
                continue
            self._said.add(key)
            # One place for all, so that a file that is read several times is complained about once.
            warnings.warn(f"{where}: key {shortened(key)} is not read; is {meant!r} meant?", InputWarning, stacklevel=1)
