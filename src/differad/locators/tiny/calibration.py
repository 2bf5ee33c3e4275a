"""Numbers of the `tiny` locator's decision, found by benchmarks/calibrate_tiny.py on synthetic pairs.

That script prints each with the criterion that chose it; nothing here was fitted to a real picture.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Deciding:
    """The logistic curve over the odds of a box in the policy's answer and the highest logit of its map."""

    bias: float = -0.476
    answer: float = 0.678
    peak: float = 0.095
    threshold: float = 0.378


DECIDING = Deciding()
