"""95 % intervals: percentiles of bootstrap draws, and what stands in where the bootstrap has nothing to vary.

A bootstrap of 3 hits in 3 draws 3 of 3 every time, as one of 30 in 30 does: its interval is the single point [1, 1]. There the
interval follows from Wilson's for a share of n of n instead (`unvaried`). Knows nothing of pairs or of metrics.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Draws = NDArray[np.float64]
Interval = tuple[float, float]

# The 97.5 % quantile of the standard normal distribution.
Z = 1.959963984540054
# Draws that differ by less differ by rounding only.
_ALIKE = 1e-9


def wilson(hits: int, count: int) -> Interval:
    """Wilson's score interval of a share, `hits` of `count` >= 1 (Wilson 1927): 3 of 3 gives [0.44, 1]."""
    share, spread = hits / count, Z * Z / count
    middle = (share + spread / 2) / (1 + spread)
    half = Z * float(np.sqrt(share * (1 - share) / count + spread / (4 * count))) / (1 + spread)
    # At the ends the two terms are equal but for rounding.
    return (0.0 if hits == 0 else middle - half), (1.0 if hits == count else middle + half)


def unvaried(value: float, count: int) -> Interval:
    """Interval of a mean of values in [0, 1] of which all `count` seen equal `value`.

    At least a share L of all values equals `value`, where L is the lower end of Wilson's interval for `count` of `count`; the
    rest may be anything from 0 to 1. For a share of 0 or 1 this is Wilson's interval itself.
    """
    alike = wilson(count, count)[0]
    return value * alike, value * alike + 1 - alike


def varies(draws: Draws) -> bool:
    """Whether defined draws (R,) differ from each other by more than rounding."""
    return len(draws) > 0 and float(np.ptp(draws)) > _ALIKE


def percentiles(draws: Draws) -> Interval:
    """The central 95 % of draws (R,), R >= 1."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def mean_interval(values: Sequence[float], draws: Sequence[Draws], intervals: Sequence[Interval]) -> Interval:
    """Interval of the mean of K independent estimates `values`, each with its bootstrap draws (R,) and its own interval.

    Draws of different estimates must be independent of each other. An estimate whose draws do not vary adds the two sides of
    its own interval in quadrature (MOVER: Zou and Donner, Statistics in Medicine 2008).
    """
    if len(values) == 1:
        return intervals[0]
    resamples = max(map(len, draws))
    mean = float(np.mean(values))
    means = np.mean(
        [
            np.resize(own, resamples) if varies(own) else np.full(resamples, value)
            for own, value in zip(draws, values, strict=True)
        ],
        axis=0,
    )
    low, high = percentiles(means)
    fixed = [
        (value - own_low, own_high - value)
        for value, own, (own_low, own_high) in zip(values, draws, intervals, strict=True)
        if not varies(own)
    ]
    if not fixed:
        return low, high
    below, above = (np.array(sides) / len(values) for sides in zip(*fixed, strict=True))
    return mean - float(np.hypot(mean - low, np.linalg.norm(below))), mean + float(
        np.hypot(high - mean, np.linalg.norm(above))
    )
