"""Text from outside, made fit for messages, files and terminals: no control characters, no secrets."""

import base64
import json
import re
import unicodedata
from collections.abc import Iterable
from urllib.parse import quote

# Shorter ones are no secrets, and may be a part of any word.
_SHORTEST_SECRET = 4
_USER_INFO = re.compile(r"(?<=://).*@", re.DOTALL)
_QUERY = re.compile(r"(?<=://)([^?]*\?).+", re.DOTALL)
HIDDEN = "***"


def printable(text: str) -> str:
    r"""The text with all that a terminal would obey, or not show, as escapes such as `\x1b`; line ends and tabs stay."""
    if text.isprintable():
        return text
    return "".join(one if _is_shown(one) else one.encode("unicode_escape").decode("ascii") for one in text)


def _is_shown(character: str) -> bool:
    return character.isprintable() or character in "\n\t" or unicodedata.category(character) == "Zs"


def without_user_info(text: str) -> str:
    """A name without the user, password and query of the address in it, also where that is malformed."""
    return _QUERY.sub(rf"\1{HIDDEN}", _USER_INFO.sub("", text))


class Secrets:
    """Keys and passwords, to be taken out of text that may repeat them."""

    def __init__(self, values: Iterable[str]) -> None:
        known = {value.strip() for value in values if len(value.strip()) >= _SHORTEST_SECRET}
        forms = {form for value in known for form in _forms_of(value)}
        # The longest first: one may be a part of another.
        self._pattern = re.compile("|".join(map(re.escape, sorted(forms, key=len, reverse=True)))) if forms else None

    def hide(self, text: str) -> str:
        """The text with `***` for every secret in it."""
        return self._pattern.sub(HIDDEN, text) if self._pattern else text


def _forms_of(secret: str) -> set[str]:
    """A secret as it may stand in an error or a document: as it is, quoted, in JSON, in an address, in base64."""
    encoded = base64.b64encode(secret.encode()).decode("ascii")
    return {secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], quote(secret, safe=""), encoded}
