"""Options as dataclass fields: each with its default, its reason in a line, and a check that names what was expected.

A field may hold the options of a part, another dataclass of options: they are named PART.NAME from outside.
"""

import math
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

from differad.errors import OptionValueError

_SHARED = "shared"


def option(default: Any, help: str, *, shared: tuple[str, ...] | None = None) -> Any:
    """A dataclass field: its default and, in a line, what it is for.

    With `shared` it holds the options of a part, `default` being a frozen dataclass of options. The whole sets those of
    them named in `shared` itself, so that they cannot be set for the part.
    """
    return field(default=default, metadata={"help": help} if shared is None else {"help": help, _SHARED: shared})


@dataclass(frozen=True)
class NamedOption:
    """An option as `-o NAME=VALUE` names it; of a part: PART.NAME."""

    name: str
    default: Any
    help: str


def parts_of(kind: type) -> dict[str, Any]:
    """The parts of a dataclass of options: the default options of each by name."""
    return {one.name: one.default for one in fields(kind) if _SHARED in one.metadata}


def list_options(kind: type) -> Iterator[NamedOption]:
    """All options that can be set in a dataclass of options, its own first, then those of its parts."""
    for one in fields(kind):
        if _SHARED not in one.metadata:
            default = None if one.default is MISSING else one.default
            yield NamedOption(one.name, default, str(one.metadata.get("help", "")))
    for one in fields(kind):
        for inner in list_options(type(one.default)) if _SHARED in one.metadata else ():
            if inner.name.partition(".")[0] not in one.metadata[_SHARED]:
                default = getattr(one.default, inner.name)
                yield NamedOption(f"{one.name}.{inner.name}", default, inner.help)


def check_parts(options: Any) -> None:
    """Raise OptionValueError for a part with another value than the default in what the whole sets itself."""
    for one in fields(options):
        for name in one.metadata.get(_SHARED, ()):
            value = getattr(getattr(options, one.name), name)
            expected = f"none of its own; {name} is set for the whole"
            check_option(f"{one.name}.{name}", value, value == getattr(one.default, name), expected)


def replace_shared(options: Any, name: str) -> Any:
    """The options of the part `name`, with the whole's own values in what the whole sets itself."""
    shared = next(one for one in fields(options) if one.name == name).metadata[_SHARED]
    return replace(getattr(options, name), **{inner: getattr(options, inner) for inner in shared})


def check_option(name: str, value: object, fits: bool, expected: str) -> None:
    """Raise OptionValueError unless `fits`."""
    if not fits:
        raise OptionValueError(name, value, expected)


def check_at_least(name: str, value: float | None, least: float) -> None:
    """Raise OptionValueError for a number below `least`, or no finite number; None is an option left out."""
    check_option(name, value, value is None or (math.isfinite(value) and value >= least), f"{least} or more")
