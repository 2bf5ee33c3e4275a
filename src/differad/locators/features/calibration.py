"""Numbers of the `features` locator, all found by benchmarks/calibrate_features.py on synthetic pairs.

That script prints each with the criterion that chose it; nothing here was fitted to a real picture.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scoring:
    """What makes a map out of distances: noise by augmented copies of the reference; lengths are shares of the sides."""

    side: int = 448
    reach: float = 0.1
    copies: int = 2
    quantile: float = 0.995
    smooth: float = 0.8


@dataclass(frozen=True)
class Deciding:
    """What makes boxes and probabilities out of a map, alone and beside `difference`."""

    cut: float = 0.7
    bias: float = -1.324
    peak: float = 4.302
    contrast: float = 1.665
    fused_bias: float = 0.462
    fused_difference: float = 1.093
    fused_peak: float = 1.683
    threshold: float = 0.5


SCORING = Scoring()
DECIDING = Deciding()
