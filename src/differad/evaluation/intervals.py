"""95 % intervals: percentiles of bootstrap draws, and a substitute if all values are equal.

A bootstrap of 3 hits in 3 draws 3 of 3 every time, as one of 30 in 30 does: its interval is the single point [1, 1]. In this
case Wilson's interval for a share of n of n is used instead (`constant_interval`). Knows nothing of pairs or of metrics.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Draws = NDArray[np.float64]
Interval = tuple[float, float]

# The 97.5 % quantile of the standard normal distribution.
Z = 1.959963984540054
# The ends of a bootstrap interval are within the observed values. Fewer values than this are all on one side of the median with
# a probability above 5 % (2 / 2^n), so that no such interval can have a coverage of 95 %.
MIN_COUNT = 6
# Smaller differences between draws are rounding errors.
_ROUNDING = 1e-9


def constant_interval(value: float, count: int) -> Interval:
    """Interval of a mean of values in [0, 1] if all `count` >= 1 observed ones equal `value`.

    Wilson's score interval for a share of `count` of `count` (Wilson 1927) says that at least n / (n + z^2) of all values equal
    `value`; the rest may be anything from 0 to 1. For a share of 0 or 1 this is Wilson's interval: 3 of 3 gives [0.44, 1].
    """
    share = count / (count + Z * Z)
    return value * share, value * share + 1 - share


def constant_f1_interval(value: float, count: int) -> Interval:
    """As `constant_interval` for an F1 score on `count` pairs: it is 2J / (1 + J), J the share of true positives among these."""
    low, high = constant_interval(value / (2 - value), count)
    return 2 * low / (1 + low), 2 * high / (1 + high)


@dataclass(frozen=True, eq=False)
class Estimate:
    """A value with its interval, and its bootstrap draws (R,) if the interval comes from them alone, else None."""

    value: float
    interval: Interval
    draws: Draws | None


def estimate(
    value: float, draws: Draws, count: int, fallback: Callable[[float, int], Interval] = constant_interval
) -> Estimate:
    """Estimate of a metric of `count` pairs with bootstrap draws (R,); NaN draws are ignored.

    The interval holds the central 95 % of the draws. If they do not vary, or come from fewer than `MIN_COUNT` pairs, it also
    holds `fallback(value, count)`.
    """
    defined = draws[~np.isnan(draws)]
    varies = len(defined) > 0 and float(np.ptp(defined)) > _ROUNDING
    low, high = percentiles(defined) if varies else (value, value)
    if varies and count >= MIN_COUNT:
        return Estimate(value, (low, high), defined)
    wide_low, wide_high = fallback(value, count)
    return Estimate(value, (min(low, wide_low), max(high, wide_high)), None)


def mean_interval(parts: Sequence[Estimate]) -> Interval:
    """Interval of the mean of K >= 1 estimates whose draws are independent of each other.

    An estimate without draws adds the two sides of its interval in quadrature (MOVER: Zou and Donner, Statistics in
    Medicine 2008).
    """
    mean = float(np.mean([part.value for part in parts]))
    below = np.array([part.value - part.interval[0] for part in parts if part.draws is None]) / len(parts)
    above = np.array([part.interval[1] - part.value for part in parts if part.draws is None]) / len(parts)
    resamples = max((len(part.draws) for part in parts if part.draws is not None), default=1)
    # Resamples without a pair to measure have no draw: the other draws are repeated in their place.
    means = np.mean(
        [np.full(resamples, p.value) if p.draws is None else np.resize(p.draws, resamples) for p in parts], axis=0
    )
    low, high = percentiles(means)
    if not len(below):
        return low, high
    return mean - float(np.hypot(mean - low, np.linalg.norm(below))), mean + float(
        np.hypot(high - mean, np.linalg.norm(above))
    )


def percentiles(draws: Draws) -> Interval:
    """The central 95 % of draws (R,), R >= 1."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)
