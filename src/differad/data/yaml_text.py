"""YAML from outside: plain values in bounded time and memory. A few lines of YAML can stand for gigabytes, or nest without end.

Size, depth and the number of values, each alias counted as what it stands for, are bounded on the stream of events, before
anything is built. Knows nothing of recipes.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from differad.errors import InputError, MissingExtraError, shortened

# The largest recipe here has 7 kB, some hundred values and a depth of 4.
LONGEST, DEEPEST, MOST_VALUES = 200_000, 50, 20_000
_LONG_NUMBER = re.compile(r"[-+]?\d[\dA-Fa-fxo_:]{100,}")


def load_yaml(text: str) -> Any:
    """The value that a text of YAML stands for. Raises InputError with the reason, MissingExtraError without a YAML reader."""
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("a recipe", "data", "pyyaml") from None
    if len(text) > LONGEST:
        raise InputError(f"{len(text)} letters; expected at most {LONGEST}")
    try:
        _check_events(yaml.parse(text, Loader=yaml.SafeLoader))
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"not YAML ({error})") from None
    except (ValueError, OverflowError) as error:  # a date that no calendar has, for one
        raise InputError(f"holds a value that cannot be read ({error})") from None


@dataclass
class _Counter:
    """How many values an open list or mapping holds so far, itself included, and the name that it can be repeated by."""

    anchor: str | None
    values: int = 1


@dataclass
class _Sizes:
    """Counts values while events stream by. Raises InputError where there are too many, or too deep."""

    open: list[_Counter] = field(default_factory=lambda: [_Counter(None, 0)])
    anchored: dict[str, int] = field(default_factory=dict)

    def begin(self, anchor: str | None) -> None:
        self.open.append(_Counter(anchor))
        if len(self.open) > DEEPEST + 1:
            raise InputError(f"lists and mappings nested more than {DEEPEST} deep")

    def end(self) -> None:
        done = self.open.pop()
        self.add(done.values, done.anchor)

    def add(self, values: int, anchor: str | None = None) -> None:
        if anchor is not None:
            self.anchored[anchor] = values
        self.open[-1].values += values
        if sum(one.values for one in self.open) > MOST_VALUES:
            raise InputError(f"more than {MOST_VALUES} values, each alias counted as what it stands for")

    def repeat(self, anchor: str) -> None:
        if any(one.anchor == anchor for one in self.open):
            raise InputError(f"alias {shortened(anchor)} stands for what it is part of")
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
