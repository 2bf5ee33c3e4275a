"""Warns of unknown keys in JSON lines that resemble a known key, which are probably typing errors.

Unknown keys are allowed and kept, so `boxs` makes a pair unlabelled without an error. Knows nothing about the meaning of keys.
"""

import warnings
from collections.abc import Iterable
from difflib import get_close_matches
from functools import lru_cache

from pydantic import BaseModel

from differad.errors import InputWarning, shortened

# Minimum similarity of two names, 0 to 1: `boxs` and `boxes` 0.89, `mask` and `task` 0.75.
_MIN_SIMILARITY = 0.8
# Size of the cache of compared keys: all lines of a file have the same few, and comparing is slower than reading a line.
_CACHE_SIZE = 1024
# Names that other tools use.
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


def closest_key(name: str, known_keys: Iterable[str]) -> str | None:
    """The known key that `name` most probably means; None if it resembles none."""
    normalised = name.strip().lower().replace("-", "_").replace(" ", "_")
    names = list(known_keys)
    synonym = _OTHER_NAMES.get(normalised)
    return (
        synonym
        if synonym in names
        else next(iter(get_close_matches(normalised, names, n=1, cutoff=_MIN_SIMILARITY)), None)
    )


class KeyTypoWarner:
    """Warns, once per key of a file, of unknown keys that resemble a field of `kind`."""

    def __init__(self, kind: type[BaseModel]) -> None:
        known_keys = tuple(kind.model_fields)
        self._closest = lru_cache(_CACHE_SIZE)(lambda key: closest_key(key, known_keys))
        self._warned: set[str] = set()

    def check(self, record: BaseModel, where: str) -> None:
        """Warn of the unknown keys of one line, except where the resembling field is given as well."""
        for key in record.model_extra or {}:
            if key in self._warned:
                continue
            closest = self._closest(key)
            if closest is None or (closest in record.model_fields_set and getattr(record, closest) is not None):
                continue
            self._warned.add(key)
            # Always from this line, so that Python's filter shows a repeated warning once.
            warnings.warn(
                f"{where}: key {shortened(key)} is not read; is {closest!r} meant?", InputWarning, stacklevel=1
            )
