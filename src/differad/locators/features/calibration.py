"""Numbers of the `features` locator, all found by benchmarks/calibrate_features.py on synthetic pairs.

That script prints each with the criterion that chose it; no real image was used.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ScoringConstants:
    """Constants that turn distances into a map; lengths are shares of the sides, `smooth` is in patches of 8 pixels.

    `window` is the weight of the search around the same position, `own` that of the search in the target itself. Distances are
    assumed to be larger by a share `edge` at the border; this decays inwards over `fade`.
    """

    side: int = 448
    reach: float = 0.1
    window: float = 0.25
    own: float = 0.2
    edge: float = 0.26
    fade: float = 0.09
    smooth: float = 0.8


@dataclass(frozen=True)
class DecisionConstants:
    """Constants that turn a map into boxes and probabilities, alone and with `difference`; `gap` is in patches of 8 pixels."""

    cut: float = 0.65
    gap: float = 2.0
    bias: float = 0.317
    peak: float = 4.182
    contrast: float = 2.922
    fused_bias: float = 1.137
    fused_difference: float = 1.005
    fused_peak: float = 1.706
    threshold: float = 0.5


SCORING_CONSTANTS = ScoringConstants()
DECISION_CONSTANTS = DecisionConstants()
