"""Numbers of the `difference` locator, all found by benchmarks/calibrate_difference.py on synthetic pairs.

That script prints each with the criterion that chose it; no real image was used.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class RegistrationConstants:
    """Thresholds of the registration, as tile correlations: a motion is accepted, or good enough to stop the search."""

    accept: float = 0.62
    enough: float = 0.93


@dataclass(frozen=True)
class ComparisonConstants:
    """Constants of the comparison and its logistic curve; `tolerance` and `gap` are pixels, `margin` a share of the longer side.

    `core` was chosen by judgement: from 0 to 0.5 the boxes of synthetic pairs are as good, and with 0.35 half as many move when
    the images are resized (benchmarks/invariance.py).
    """

    tolerance: int = 1
    floor: float = 4.0
    edge: float = 0.5
    contrast: float = 0.2
    low: float = 3.0
    high: float = 3.0
    gap: int = 9
    core: float = 0.35
    margin: float = 0.0078125
    bias: float = -9.933
    mean: float = 3.956
    thickness: float = 3.49
    ragged: float = -2.354
    threshold: float = 0.5


REGISTRATION_CONSTANTS = RegistrationConstants()
COMPARISON_CONSTANTS = ComparisonConstants()
