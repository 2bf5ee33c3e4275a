"""Numbers of the `tiny` locator's decision, found by benchmarks/calibrate_tiny.py on synthetic pairs.

That script prints each with the criterion that chose it; nothing here was fitted to a real image. A policy of one's own may
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
class Deciding:
    """The logistic curve over the odds of a box in the policy's answer and the highest logit of its map."""

    bias: float = -0.476
    answer: float = 0.678
    peak: float = 0.095
    threshold: float = 0.378


DECIDING = Deciding()


def read_deciding(folder: Path) -> Deciding:
    """The numbers in `decision.json` of a policy's folder; those that it does not name are the shipped ones.

    Raises OptionError naming the file and the number.
    """
    path = folder / DECISION
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return DECIDING
    except (OSError, ValueError) as error:
        raise OptionError(f"{path}: cannot be read as JSON ({error}); mend it, or remove it") from None
    if not isinstance(values, dict):
        raise OptionError(f"{path}: holds {shortened(values)}; expected an object of {_names()}")
    return replace(DECIDING, **{name: _number(path, name, value) for name, value in values.items()})


def write_deciding(folder: Path, deciding: Deciding) -> Path:
    """Write the numbers to `decision.json` of a policy's folder; gives back the file. Raises WriteError."""
    path = folder / DECISION
    write_text(path, json.dumps(asdict(deciding), indent=1) + "\n")
    return path


def _number(path: Path, name: str, value: Any) -> float:
    if name not in (field.name for field in fields(Deciding)):
        raise OptionError(f"{path}: {name!r} is none of its numbers; expected {_names()}")
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or (name == "threshold" and not 0 <= value <= 1):
        expected = "a probability in [0, 1]" if name == "threshold" else "a number"
        raise OptionError(f"{path}: {name}={shortened(value)}; expected {expected}")
    return float(value)


def _names() -> str:
    return ", ".join(field.name for field in fields(Deciding))
