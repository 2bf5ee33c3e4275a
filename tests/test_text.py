import pytest

from differad.errors import LocatorError
from differad.text import Secrets, printable, without_user_info


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ä, 漢字, 🙂", "plain, ä, 漢字, 🙂"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("no\u00a0break,\u3000wide", "no\u00a0break,\u3000wide"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\x9b31m", r"\x9b31m"),
        ("bell\a, back\b, return\r, delete\x7f", r"bell\x07, back\x08, return\r, delete\x7f"),
        ("a\u202eb\u2066c", r"a\u202eb\u2066c"),
        ("a\u2028b", r"a\u2028b"),
        ("broken \udc80 name", r"broken \udc80 name"),
    ],
)
def test_only_what_a_terminal_shows_stays(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_errors_are_printable() -> None:
    assert str(LocatorError("a\x1b[2J\n b")) == r"a\x1b[2J b"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("openai:m@http://host/v1", "openai:m@http://host/v1"),
        ("openai:m@http://ann:word@host/v1", "openai:m@http://host/v1"),
        ("openai:m@http://ann:w@rd@host/v1", "openai:m@http://host/v1"),
        ("openai:m@http://ann:a b@host/v1", "openai:m@http://host/v1"),
        ("openai:m@http://host/v1?key=word", "openai:m@http://host/v1?***"),
        ("tiny@folder?x", "tiny@folder?x"),
    ],
)
def test_addresses_lose_their_user(name: str, shown: str) -> None:
    assert without_user_info(name) == shown


def test_secrets_are_taken_out_in_all_their_spellings() -> None:
    secrets = Secrets(['k"y/1 ', "k", ""])
    assert secrets.hide('k"y/1, k\\"y/1, k%22y%2F1, ayJ5LzE=, k') == "***, ***, ***, ***, k"
    assert Secrets([]).hide("all") == "all"
