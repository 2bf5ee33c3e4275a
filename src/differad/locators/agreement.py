"""Whether two ways to compute a network agree up to rounding.

How much a network amplifies rounding errors is not known beforehand, so both ways are compared with float64. The error of one may
be 4 times that of the other, since sums are added in another order, plus the rounding of one sum: its number of terms times the
unit in the last place (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). Errors are root mean squares.
"""

from typing import Any

import torch
from torch import Tensor

FACTOR = 4.0


def max_sum_rounding(model: Any) -> float:
    """The largest rounding error of a language model's longest sum in float32, for results of size 1."""
    text = model.config.get_text_config()
    return float(max(text.hidden_size, text.intermediate_size) * torch.finfo(torch.float32).eps)


def disagreement(what: str, tested: Tensor, other: Tensor, exact: Tensor, rounding: float) -> str | None:
    """The error of `tested` against `exact`, in words, if it exceeds what `other` and `rounding` allow; else None."""
    error, allowed = size(tested - exact), FACTOR * size(other - exact) + rounding
    # Written so that NaN disagrees.
    return None if error <= allowed else f"{what} {error:.2g} off, {allowed:.2g} would be rounding"


def size(values: Tensor) -> float:
    """Root mean square."""
    return float(values.double().pow(2).mean().sqrt())
