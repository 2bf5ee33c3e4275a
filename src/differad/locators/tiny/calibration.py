"""Numbers of the `tiny` locator's decision, found by benchmarks/calibrate_tiny.py on synthetic pairs.

That script prints each with the criterion that chose it; nothing here was fitted to a real image. Another policy may
have other numbers in `decision.json` of its folder.
"""

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from differad.errors import OptionError, shortened
from differad.files import write_text

DECISION = "decision.json"


@dataclass(frozen=True)
class DecisionConstants:
    """The logistic curve over the logit of a box in the policy's answer and the highest logit of its map."""

    bias: float = -0.476
    answer: float = 0.678
    peak: float = 0.095
    threshold: float = 0.378


DECISION_CONSTANTS = DecisionConstants()


def read_decision_constants(folder: Path) -> DecisionConstants:
    """The numbers in `decision.json` of a policy's folder; missing ones are the shipped ones.

    Raises OptionError naming the file and the number.
    """
    path = folder / DECISION
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return DECISION_CONSTANTS
    except (OSError, ValueError) as error:
        raise OptionError(f"{path}: cannot be read as JSON ({error}); fix it, or remove it") from None
    if not isinstance(values, dict):
        raise OptionError(f"{path}: holds {shortened(values)}; expected an object of {_names()}")
    return replace(DECISION_CONSTANTS, **{name: _number(path, name, value) for name, value in values.items()})


def write_decision_constants(folder: Path, deciding: DecisionConstants) -> Path:
    """Write the numbers to `decision.json` of a policy's folder and return its path. Raises WriteError."""
    path = folder / DECISION
    write_text(path, json.dumps(asdict(deciding), indent=1) + "\n")
    return path


def _number(path: Path, name: str, value: Any) -> float:
    if name not in (field.name for field in fields(DecisionConstants)):
        raise OptionError(f"{path}: {name!r} is none of its numbers; expected {_names()}")
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or (name == "threshold" and not 0 <= value <= 1):
        expected = "a probability in [0, 1]" if name == "threshold" else "a number"
        raise OptionError(f"{path}: {name}={shortened(value)}; expected {expected}")
    return float(value)


def _names() -> str:
    return ", ".join(field.name for field in fields(DecisionConstants))
