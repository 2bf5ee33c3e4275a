"""External text made safe for messages, files and terminals: no control characters, no secrets."""

import base64
import json
import re
import unicodedata
from collections.abc import Iterable
from urllib.parse import quote

# Shorter strings are not treated as secrets, since they may occur in any word.
_SHORTEST_SECRET = 4
_USER_INFO = re.compile(r"(?<=://).*@", re.DOTALL)
_QUERY = re.compile(r"(?<=://)([^?]*\?).+", re.DOTALL)
HIDDEN = "***"


def printable(text: str) -> str:
    r"""The text with control and invisible characters as escapes such as `\x1b`; line ends and tabs are unchanged."""
    if text.isprintable():
        return text
    return "".join(letter if _is_shown(letter) else letter.encode("unicode_escape").decode("ascii") for letter in text)


def _is_shown(character: str) -> bool:
    return character.isprintable() or character in "\n\t" or unicodedata.category(character) == "Zs"


def without_user_info(text: str) -> str:
    """A name without the user, password and query of an address in it, even a malformed one."""
    return _QUERY.sub(rf"\1{HIDDEN}", _USER_INFO.sub("", text))


class Secrets:
    """Keys and passwords, to be removed from text that may repeat them."""

    def __init__(self, values: Iterable[str]) -> None:
        secrets = {value.strip() for value in values if len(value.strip()) >= _SHORTEST_SECRET}
        forms = {form for value in secrets for form in _forms_of(value)}
        # The longest first, since one may be part of another.
        self._pattern = re.compile("|".join(map(re.escape, sorted(forms, key=len, reverse=True)))) if forms else None

    def hide(self, text: str) -> str:
        """The text with `***` for every secret in it."""
        return self._pattern.sub(HIDDEN, text) if self._pattern else text


def _forms_of(secret: str) -> set[str]:
    """The forms of a secret in an error or a document: plain, quoted, in JSON, in an address, in base64."""
    encoded = base64.b64encode(secret.encode()).decode("ascii")
    return {secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], quote(secret, safe=""), encoded}
