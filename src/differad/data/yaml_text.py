"""Untrusted YAML as plain values in bounded time and memory. A few lines of YAML can expand to gigabytes or nest without end.

Size, depth and the number of values, with aliases expanded, are limited on the stream of events, before anything is built.
Knows nothing about recipes.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from differad.errors import InputError, MissingExtraError, shortened

# The largest recipe of this project has 7 kB, some hundred values and a depth of 4.
MAX_CHARACTERS, MAX_DEPTH, MAX_VALUES = 200_000, 50, 20_000
_LONG_NUMBER = re.compile(r"[-+]?\d[\dA-Fa-fxo_:]{100,}")


def load_yaml(text: str) -> Any:
    """The value of a YAML text. Raises InputError with the reason, MissingExtraError without a YAML reader."""
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("a recipe", "data", "pyyaml") from None
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"{len(text)} characters; expected at most {MAX_CHARACTERS}")
    try:
        _check_events(yaml.parse(text, Loader=yaml.SafeLoader))
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"not YAML ({error})") from None
    except (ValueError, OverflowError) as error:  # for example a date that does not exist
        raise InputError(f"holds a value that cannot be read ({error})") from None


@dataclass
class _Counter:
    """The number of values in an open list or mapping so far, itself included, and its anchor, if any."""

    anchor: str | None
    values: int = 1


@dataclass
class _Sizes:
    """Counts values in a stream of events. Raises InputError if there are too many, or nested too deeply."""

    open: list[_Counter] = field(default_factory=lambda: [_Counter(None, 0)])
    anchored: dict[str, int] = field(default_factory=dict)

    def begin(self, anchor: str | None) -> None:
        self.open.append(_Counter(anchor))
        if len(self.open) > MAX_DEPTH + 1:
            raise InputError(f"lists and mappings nested more than {MAX_DEPTH} deep")

    def end(self) -> None:
        closed = self.open.pop()
        self.add(closed.values, closed.anchor)

    def add(self, values: int, anchor: str | None = None) -> None:
        if anchor is not None:
            self.anchored[anchor] = values
        self.open[-1].values += values
        if sum(counter.values for counter in self.open) > MAX_VALUES:
            raise InputError(f"more than {MAX_VALUES} values, with aliases expanded")

    def repeat(self, anchor: str) -> None:
        if any(counter.anchor == anchor for counter in self.open):
            raise InputError(f"alias {shortened(anchor)} refers to a value that contains it")
        self.add(self.anchored.get(anchor, 1))


def _check_events(events: Any) -> None:
    from yaml import events as kinds

    sizes = _Sizes()
    for event in events:
        if isinstance(event, kinds.CollectionStartEvent):
            sizes.begin(event.anchor)
        elif isinstance(event, kinds.CollectionEndEvent):
            sizes.end()
        elif isinstance(event, kinds.AliasEvent):
            sizes.repeat(event.anchor)
        elif isinstance(event, kinds.ScalarEvent):
            if _LONG_NUMBER.fullmatch(event.value):
                raise InputError(f"a number of {len(event.value)} digits")
            sizes.add(1, event.anchor)
