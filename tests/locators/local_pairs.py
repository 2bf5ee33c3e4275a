"""Pairs and options for tests of local checkpoints."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from differad.core import Location, Pair
from differad.errors import DifferadError
from differad.images import RGB
from differad.locators.local import LocalOptions

Checkpoint = Callable[..., Path]
MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
SHORT = {"max_new_tokens": 12, "dtype": "float32", "device": "cpu"}


def make_image(width: int, height: int, seed: int = 0) -> RGB:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pairs() -> list[Pair]:
    """Of sizes that differ, so that a batch has to be padded."""
    sizes = [(200, 100), (96, 200), (150, 150), (64, 64), (300, 90)]
    return [
        Pair(make_image(*size, seed=i), make_image(*sizes[-1 - i], seed=10 + i), id=str(i))
        for i, size in enumerate(sizes)
    ]


def located(outcome: Location | DifferadError) -> Location:
    assert isinstance(outcome, Location), outcome
    return outcome


def cpu(**values: object) -> LocalOptions:
    return LocalOptions(**{"device": "cpu", **values})  # type: ignore[arg-type]


def line(targets: int, *, sizes: bool = False) -> list[Pair]:
    """One reference, targets of one size or of several, and in their midst two pairs of their own."""
    reference = make_image(200, 100, seed=99)
    shapes = [(150, 150), (96, 200), (150, 150), (300, 90)] if sizes else [(150, 150)]
    stream = [Pair(reference, make_image(*shapes[i % len(shapes)], seed=i), id=str(i)) for i in range(targets)]
    return [*stream[:3], *pairs()[:2], *stream[3:]]
