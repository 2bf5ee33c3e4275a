"""Whether two ways through a network give the same numbers but for rounding.

How much a network amplifies its roundings is not known beforehand, and two right ways differ in their roundings alone. So both
are held against float64. The error of the one may be 4 times that of the other, for sums are added in another order, and one
sum's rounding more: its terms times the unit in the last place (Higham, Accuracy and Stability of Numerical Algorithms, section
3.1). Errors are root mean squares.
"""

from typing import Any

import torch
from torch import Tensor

FACTOR = 4.0


def sum_rounding(model: Any) -> float:
    """What the longest sum of a language model may be off by in float32, for results of size 1."""
    text = model.config.get_text_config()
    return float(max(text.hidden_size, text.intermediate_size) * torch.finfo(torch.float32).eps)


def disagreement(what: str, found: Tensor, other: Tensor, exact: Tensor, rounding: float) -> str | None:
    """How far `found` is from `exact` where it is further than `other` and `rounding` allow, in words; None where it is not."""
    error, allowed = size(found - exact), FACTOR * size(other - exact) + rounding
    # Written so that what is not a number disagrees.
    return None if error <= allowed else f"{what} {error:.2g} off, {allowed:.2g} would be rounding"


def size(values: Tensor) -> float:
    """Root mean square."""
    return float(values.double().pow(2).mean().sqrt())
