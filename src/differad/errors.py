"""All errors, as one tree: every message names the value, what was expected and the remedy, in one line.

The command line prints a `DifferadError` as that line and exits with its `exit_code`; anything else is a bug and
keeps its traceback in the library.
"""

from typing import Self

from differad.text import printable


class DifferadError(Exception):
    """Base of every error that differad raises on purpose."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.split())))


class InputError(DifferadError):
    """The input or an option is wrong; the caller can correct it."""

    exit_code = 2


class ImageError(InputError):
    """An image that cannot be read, or is not as expected."""


class WriteError(InputError):
    """A file or folder that cannot be written: a full disk, a read-only folder; finished work is kept."""


class ManifestError(InputError):
    """An invalid line of a `pairs.jsonl` or `predictions.jsonl`."""


class OptionError(InputError):
    """A model name, an answer family or another option that does not exist or does not fit."""


class OptionValueError(OptionError):
    """An option with a value that does not fit."""

    def __init__(self, name: str, value: object, expected: str) -> None:
        super().__init__(f"option {name}={value!r}: expected {expected}")
        self.name, self.value, self.expected = name, value, expected

    def __reduce__(self) -> tuple[type[Self], tuple[str, object, str]]:
        # Pickled with all three: an error may come from another process.
        return type(self), (self.name, self.value, self.expected)

    def of_part(self, part: str) -> Self:
        """The same error about an option of a locator's part."""
        return type(self)(f"{part}.{self.name}", self.value, self.expected)


class MissingExtraError(InputError):
    """A feature whose optional packages are not installed."""

    def __init__(self, feature: str, extra: str, package: str) -> None:
        super().__init__(
            f"{feature} needs the package {package!r}: pip install 'differad[{extra}]' (in a checkout: pip install '.[{extra}]')"
        )


class LocatorError(DifferadError):
    """A locator could not give any answer for a pair (a server that is down, an image that a model refuses)."""


class NoAnswerError(DifferadError):
    """A target has no answer: it cannot be compared with its reference, or a model's answer cannot be read."""

    exit_code = 4


class PeerError(DifferadError):
    """Another process of the same run failed, for the given reason; that process reports it itself."""


class InputWarning(UserWarning):
    """Something in the input looks wrong but may be intended; issued by `warnings.warn`, a line on stderr in the commands."""


def shortened(value: object, limit: int = 60) -> str:
    """A value for a message: its `repr`, cut off after `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
