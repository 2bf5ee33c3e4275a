"""Numbers of the `features` locator, all found by benchmarks/calibrate_features.py on synthetic pairs.

That script prints each with the criterion that chose it; nothing here was fitted to a real picture.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scoring:
    """What makes a map out of distances; lengths are shares of the sides, `smooth` is in patches of 8 pixels.

    `window` and `own` weigh the search around the same place and the one in the target alone; distances are taken to be `edge`
    larger at the border, which fades inwards.
    """

    side: int = 448
    reach: float = 0.1
    window: float = 0.25
    own: float = 0.2
    edge: float = 0.26
    fade: float = 0.09
    smooth: float = 0.8


@dataclass(frozen=True)
class Deciding:
    """What makes boxes and probabilities out of a map, alone and beside `difference`; `gap` is in patches of 8 pixels."""

    cut: float = 0.65
    gap: float = 2.0
    bias: float = 0.317
    peak: float = 4.182
    contrast: float = 2.922
    fused_bias: float = 1.137
    fused_difference: float = 1.005
    fused_peak: float = 1.706
    threshold: float = 0.5


SCORING = Scoring()
DECIDING = Deciding()
