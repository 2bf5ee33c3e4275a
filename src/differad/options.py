"""Options as dataclass fields: each with its default, one line of help, and a check that names what was expected.

A field may hold the options of a part, another dataclass of options: users name them PART.NAME.
"""

import math
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

from differad.errors import OptionValueError

_SHARED = "shared"


def option(default: Any, help: str, *, shared: tuple[str, ...] | None = None) -> Any:
    """A dataclass field with its default and one line of help.

    With `shared` it holds the options of a part; `default` is then a frozen dataclass of options. The options named in
    `shared` take the value of the owner's option of the same name and cannot be set for the part.
    """
    return field(default=default, metadata={"help": help} if shared is None else {"help": help, _SHARED: shared})


@dataclass(frozen=True)
class NamedOption:
    """An option by its name in `-o NAME=VALUE`; of a part: PART.NAME."""

    name: str
    default: Any
    help: str


def parts_of(kind: type) -> dict[str, Any]:
    """The parts of a dataclass of options: the default options of each by name."""
    return {item.name: item.default for item in fields(kind) if _SHARED in item.metadata}


def list_options(kind: type) -> Iterator[NamedOption]:
    """All options that can be set in a dataclass of options, its own first, then those of its parts."""
    for item in fields(kind):
        if _SHARED not in item.metadata:
            default = None if item.default is MISSING else item.default
            yield NamedOption(item.name, default, str(item.metadata.get("help", "")))
    for part in fields(kind):
        for inner in list_options(type(part.default)) if _SHARED in part.metadata else ():
            if inner.name.partition(".")[0] not in part.metadata[_SHARED]:
                default = getattr(part.default, inner.name)
                yield NamedOption(f"{part.name}.{inner.name}", default, inner.help)


def check_parts(options: Any) -> None:
    """Raise OptionValueError if a shared option of a part differs from its default."""
    for part in fields(options):
        for name in part.metadata.get(_SHARED, ()):
            value = getattr(getattr(options, part.name), name)
            expected = f"none of its own; {name} is set for the whole"
            check_option(f"{part.name}.{name}", value, value == getattr(part.default, name), expected)


def replace_shared(options: Any, name: str) -> Any:
    """The options of the part `name`, with the owner's values for shared options."""
    shared = next(part for part in fields(options) if part.name == name).metadata[_SHARED]
    return replace(getattr(options, name), **{inner: getattr(options, inner) for inner in shared})


def check_option(name: str, value: object, fits: bool, expected: str) -> None:
    """Raise OptionValueError unless `fits`."""
    if not fits:
        raise OptionValueError(name, value, expected)


def check_at_least(name: str, value: float | None, least: float) -> None:
    """Raise OptionValueError for a number below `least` or a non-finite one; None means not set."""
    check_option(name, value, value is None or (math.isfinite(value) and value >= least), f"{least} or more")
