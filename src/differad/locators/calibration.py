"""Numbers of the `difference` locator, all found by benchmarks/calibrate_difference.py on synthetic pairs.

That script prints each with the criterion that chose it; nothing here was fitted to a real picture.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Registering:
    """What decides between the motions that may lay a reference on a target; qualities are tile correlations."""

    accept: float = 0.55
    enough: float = 0.88
    excellent: float = 0.96
    worth: float = 0.005


@dataclass(frozen=True)
class Comparing:
    """What decides which differences count; lengths are shares of the longer side unless they say pixels."""

    tolerance: int = 1
    floor: float = 4.0
    contrast: float = 0.15
    low: float = 6.0
    high: float = 6.0
    gap: float = 0.008
    margin: float = 0.0078125
    bias: float = -12.108
    peak: float = 0.0
    mass: float = 1.454
    thickness: float = 2.643
    threshold: float = 0.536


REGISTERING = Registering()
COMPARING = Comparing()
