"""Options as dataclass fields: each with its default, its reason in a line, and a check that names what was expected."""

import math
from dataclasses import field
from typing import Any

from differad.errors import OptionError


def option(default: Any, help: str) -> Any:
    """A dataclass field: its default and, in a line, what it is for."""
    return field(default=default, metadata={"help": help})


def check_option(name: str, value: object, fits: bool, expected: str) -> None:
    """Raise OptionError unless `fits`."""
    if not fits:
        raise OptionError(f"option {name}={value!r}: expected {expected}")


def check_at_least(name: str, value: float | None, least: float) -> None:
    """Raise OptionError for a number below `least`, or no finite number; None is an option left out."""
    check_option(name, value, value is None or (math.isfinite(value) and value >= least), f"{least} or more")
