"""Parse a page of the documentation: fenced blocks, commands in them, code within sentences. Runs nothing.

The info string of a fence is its language, then at most one of these:

    ```sh not run: needs a GPU          why it is not executed
    ```json file: pairs.jsonl           its text becomes that file
    ```text output                      what the command before it prints, figures aside; `output of: WORDS` names another one
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))]
LANGUAGES = ("sh", "python", "json", "yaml", "text")
_FENCE = re.compile(r"(?P<mark>[ >]*)(?P<fence>`{3,}(?!.*`)|~{3,})(?P<info>.*)")
_ATTRIBUTES = re.compile(r"(?P<not_run>not run: \S.*)|file: (?P<file>\S+)|(?P<output>output)(?: of: (?P<of>\S.*))?")
# Code within a sentence: between equally long rows of backticks, perhaps across lines, never across paragraphs.
_SPAN = re.compile(r"(?<!`)(`+)(?!`)((?:(?!\n\s*\n).)+?)(?<!`)\1(?!`)", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its page and first line, its language, the rest of its info string, and its text."""

    page: str
    line: int
    language: str
    attributes: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    def attribute(self, name: str) -> str | None:
        """`not_run`, `file`, `output` or `of` of the info string, None if it lacks that."""
        match = _ATTRIBUTES.fullmatch(self.attributes)
        return match[name] if match else None

    def commands(self) -> list[tuple[int, str]]:
        """Line numbers and commands; a line that ends in a backslash is continued by the next."""
        commands, command = [], ""
        for number, line in enumerate(self.text.splitlines(), start=self.line):
            command = command.removesuffix("\\") + line
            if not command.endswith("\\"):
                commands += [(number, command)] if without_comment(command) else []
                command = ""
        return commands

    def fault(self) -> str | None:
        """The error in the fence itself, or None."""
        if self.language not in LANGUAGES:
            return f"{self.place}: ```{self.language}: unknown language; expected one of {', '.join(LANGUAGES)}"
        if self.attributes and not _ATTRIBUTES.fullmatch(self.attributes):
            return f"{self.place}: ```{self.language} {self.attributes}: expected nothing, not run: WHY, file: NAME or output"
        if self.language in ("json", "yaml", "text") and not self.attributes:
            return f"{self.place}: ```{self.language}: neither run nor says why; expected not run: WHY, file: NAME or output"
        return None


def without_comment(command: str) -> str:
    """A command in the form for comparisons: no comment after it, single spaces."""
    return " ".join(re.split(r"(?:^|\s)#\s", command, maxsplit=1)[0].split())


def read_page(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, text: str) -> list[Block]:
    """The fenced blocks of a page's text, in order, also in a list or a quotation, where lines start with its mark."""
    found: list[Block] = []
    for first, mark, info, body in _fences(page, text):
        language, _, attributes = info.strip().partition(" ")
        plain = [line.removeprefix(mark) if line.startswith(mark) else line.lstrip() for line in body]
        found.append(Block(page, first + 1, language, attributes.strip(), "\n".join(plain)))
    return found


def prose(text: str) -> str:
    """A page's text with empty lines in place of its fenced blocks."""
    lines = text.splitlines()
    for first, _, _, body in _fences("", text):
        lines[first - 1 : first + len(body) + 1] = [""] * (len(body) + 2)
    return "\n".join(lines)


def _fences(page: str, text: str) -> list[tuple[int, str, str, list[str]]]:
    """For each fence the number of its first line, the mark before it, its info string and its body."""
    found: list[tuple[int, str, str, list[str]]] = []
    body: list[str] = []
    begun: tuple[int, re.Match[str]] | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        match = _FENCE.fullmatch(line)
        if begun is None and match:
            begun, body = (number, match), []
        elif begun and match and not match["info"].strip() and match["fence"].startswith(begun[1]["fence"]):
            found.append((begun[0], begun[1]["mark"], begun[1]["info"], body))
            begun = None
        elif begun:
            body.append(line)
    assert begun is None, f"{page}:{begun and begun[0]}: a fence that is not closed"
    return found


def indented_code(text: str) -> list[int]:
    """Lines of indented code, which has no info string."""
    lines = prose(text).splitlines()
    return [
        number
        for number, line in enumerate(lines[1:], start=2)
        if line.startswith("    ") and line.strip() and not lines[number - 2].strip()
    ]


def links(text: str) -> list[tuple[str, str]]:
    """Relative links of a page: file (empty: the page itself) and heading (empty: none)."""
    found = re.findall(r"\]\((?!\w+:)([^)\s#]*)(?:#([^)\s]+))?\)", prose(text))
    return [(file, heading) for file, heading in found]


def anchors(text: str) -> set[str]:
    """GitHub's anchors of the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def spans(text: str) -> list[tuple[int, str]]:
    """Line numbers and text of the code within a page's sentences and tables."""
    rest = prose(text)
    return [
        (rest.count("\n", 0, match.start()) + 1, " ".join(match[2].replace("\\|", "|").split()))
        for match in _SPAN.finditer(rest)
    ]
