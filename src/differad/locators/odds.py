"""From odds to chances and back, for every locator's curve. Knows nothing of what a chance speaks of."""

import math

# Chances nearer to 0 or 1 than this, and logits beyond the other, say no more.
SURE, FAR = 1e-6, 30.0


def logistic(value: float) -> float:
    """The chance whose logarithm of odds is `value`."""
    return 1 / (1 + math.exp(-min(max(value, -FAR), FAR)))


def logit(chance: float) -> float:
    """The logarithm of the odds of a chance, for chances short of certainty."""
    chance = min(max(float(chance), SURE), 1 - SURE)
    return math.log(chance / (1 - chance))
