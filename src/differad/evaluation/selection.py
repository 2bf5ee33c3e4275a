"""Which pairs of manifests are evaluated: the labelled ones, or a spread of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from differad.core import Pair
from differad.data.manifest import read_pairs


def labelled_pairs(manifests: Sequence[str | Path], limit: int | None = None) -> Iterator[Pair]:
    """The labelled pairs of manifests, in their order; with `limit` the spread of so many of them. Raises ManifestError.

    A limit reads the manifests twice: the labels come first.
    """
    every = (pair for path in manifests for pair in read_pairs(path) if pair.anomalous is not None)
    if limit is None:
        yield from every
        return
    chosen = spread([bool(pair.anomalous) for pair in every], limit)
    again = (pair for path in manifests for pair in read_pairs(path) if pair.anomalous is not None)
    yield from (pair for position, pair in enumerate(again) if position in chosen)


def spread(anomalous: Sequence[bool], limit: int) -> frozenset[int]:
    """Positions of `limit` of the pairs, whose labels are `anomalous`: evenly over their order, both labels in their shares.

    From a limit of 2 on, each label that occurs is there. A larger limit adds to a smaller one.
    """
    sides = [[place for place, is_so in enumerate(anomalous) if is_so is side] for side in (True, False)]
    limit = min(limit, len(anomalous))
    wanted = round(limit * len(sides[0]) / max(1, len(anomalous)))
    if all(sides) and limit >= 2:
        wanted = min(max(wanted, 1), limit - 1)
    counts = (wanted, limit - wanted)
    return frozenset(
        side[place] for side, count in zip(sides, counts, strict=True) for place in _halving(len(side))[:count]
    )


def _halving(count: int) -> list[int]:
    """The numbers below `count`, each beginning of the list evenly spread: ends, middle, quarters, … (bits reversed)."""
    width = max(1, (count - 1).bit_length())
    return sorted(range(count), key=lambda number: int(f"{number:0{width}b}"[::-1], 2))
