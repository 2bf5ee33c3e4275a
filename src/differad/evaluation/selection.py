"""Select the pairs of manifests to evaluate: all labelled ones, or an even subset."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from differad.core import Pair
from differad.data.manifest import read_pairs


def labelled_pairs(manifests: Sequence[str | Path], limit: int | None = None) -> Iterator[Pair]:
    """The labelled pairs of manifests, in their order; with `limit` an even subset of that many. Raises ManifestError.

    With a limit the manifests are read twice, the first time for their labels.
    """
    pairs = (pair for path in manifests for pair in read_pairs(path) if pair.anomalous is not None)
    if limit is None:
        yield from pairs
        return
    chosen = spread([bool(pair.anomalous) for pair in pairs], limit)
    second_pass = (pair for path in manifests for pair in read_pairs(path) if pair.anomalous is not None)
    yield from (pair for position, pair in enumerate(second_pass) if position in chosen)


def spread(anomalous: Sequence[bool], limit: int) -> frozenset[int]:
    """Positions of `limit` of the pairs with labels `anomalous`: evenly over their order, both labels in proportion.

    From a limit of 2 on, each label that occurs is selected. A larger limit adds to a smaller one.
    """
    classes = [[position for position, value in enumerate(anomalous) if value is label] for label in (True, False)]
    limit = min(limit, len(anomalous))
    anomalous_count = round(limit * len(classes[0]) / max(1, len(anomalous)))
    if all(classes) and limit >= 2:
        anomalous_count = min(max(anomalous_count, 1), limit - 1)
    counts = (anomalous_count, limit - anomalous_count)
    return frozenset(
        positions[index]
        for positions, count in zip(classes, counts, strict=True)
        for index in _halving(len(positions))[:count]
    )


def _halving(count: int) -> list[int]:
    """The numbers below `count`, ordered so that every prefix is evenly spread: ends, middle, quarters, … (bits reversed)."""
    width = max(1, (count - 1).bit_length())
    return sorted(range(count), key=lambda number: int(f"{number:0{width}b}"[::-1], 2))
