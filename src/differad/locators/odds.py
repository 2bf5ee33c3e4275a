"""Probabilities and logits, for the logistic curve of every locator. Knows nothing of what is probable."""

import math

# Probabilities are clipped to [1e-6, 1 - 1e-6], logits to [-30, 30].
MIN_PROBABILITY, MAX_LOGIT = 1e-6, 30.0


def sigmoid(value: float) -> float:
    """The probability with the logit `value`."""
    return 1 / (1 + math.exp(-min(max(value, -MAX_LOGIT), MAX_LOGIT)))


def logit(probability: float) -> float:
    """The logit of a probability, clipped short of certainty."""
    probability = min(max(float(probability), MIN_PROBABILITY), 1 - MIN_PROBABILITY)
    return math.log(probability / (1 - probability))
