"""Numbers of the `difference` locator, all found by benchmarks/calibrate_difference.py on synthetic pairs.

That script prints each with the criterion that chose it; nothing here was fitted to a real picture.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Registering:
    """What decides between the motions that may lay a reference on a target; qualities are tile correlations."""

    accept: float = 0.59
    enough: float = 0.91


@dataclass(frozen=True)
class Comparing:
    """What decides which differences count; lengths are shares of the longer side unless they say pixels."""

    tolerance: int = 1
    floor: float = 4.0
    edge: float = 0.5
    contrast: float = 0.2
    low: float = 3.0
    high: float = 4.5
    gap: float = 0.008
    margin: float = 0.0078125
    bias: float = -13.274
    peak: float = 2.369
    mass: float = 0.797
    thickness: float = 3.089
    threshold: float = 0.5


REGISTERING = Registering()
COMPARING = Comparing()
