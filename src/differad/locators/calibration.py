"""Numbers of the `difference` locator, all found by benchmarks/calibrate_difference.py on synthetic pairs.

That script prints each with the criterion that chose it; nothing here was fitted to a real picture.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Registering:
    """What decides between the motions that may lay a reference on a target; qualities are tile correlations."""

    accept: float = 0.55
    enough: float = 0.85
    excellent: float = 0.97
    worth: float = 0.01


@dataclass(frozen=True)
class Comparing:
    """What decides which differences count; lengths are shares of the longer side unless they say pixels."""

    tolerance: int = 2
    floor: float = 6.0
    low: float = 3.0
    high: float = 6.0
    gap: float = 0.01
    margin: float = 0.0078
    bias: float = -8.0
    peak: float = 1.0
    mass: float = 1.0
    thickness: float = 0.0
    threshold: float = 0.5


REGISTERING = Registering()
COMPARING = Comparing()
