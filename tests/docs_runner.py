"""Execute a page of the documentation as a new user would: its fences in order, in one empty folder.

Shell lines run one by one in bash, Python blocks as one module, in the order of the page. The outputs of a command
(`--out`, `--save`, `--copy`) must exist afterwards, `--json` must print one document, an exit code other than 0 must be named
in the comment after the command (`# exit code 3: …`), and no command may end in a traceback.
"""

import io
import json
import re
import shlex
from collections.abc import Callable, Mapping
from contextlib import chdir, redirect_stdout
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from docs_blocks import Block, blocks, without_comment
from docs_process import execute

WRITES = ("--out", "--save", "--copy")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


@dataclass(frozen=True)
class Page:
    """Requirements of a page for its run, and further promises to check.

    `setup` creates stand-ins for the user's files in the page's folder. `scaled` replaces text of the page, which must occur, by
    shorter work; SERVER in it is the address of a running model server. `elsewhere` are commands that the named page runs.
    `names` are variables that Python blocks assume. `leaves` are files that exist at the end, `prints` patterns by words of a
    command, `holds` Python expressions that are true at the end.
    """

    setup: tuple[Callable[[Path], object], ...] = ()
    scaled: Mapping[str, str] = field(default_factory=dict)
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    names: Callable[[Path], Mapping[str, Any]] = lambda folder: {}
    leaves: tuple[str, ...] = ()
    prints: Mapping[str, str] = field(default_factory=dict)
    holds: tuple[str, ...] = ()


class Run:
    """One execution of a page's text in a folder; `all_of` runs it, and raises AssertionError with the wrong line."""

    def __init__(self, name: str, page: Page, folder: Path, server: str) -> None:
        self.name, self.page, self.folder, self.server = name, page, folder, server
        self.outputs: list[tuple[str, str]] = []
        self.unused = set(page.scaled) | set(page.elsewhere) | set(page.prints)
        self.names: dict[str, Any] = {}

    def all_of(self, text: str) -> None:
        with chdir(self.folder):
            for build in self.page.setup:
                build(self.folder)
            self.names = {"__name__": "page", **self.page.names(self.folder)}
            for block in blocks(self.name, text):
                assert not (fault := block.fault()), fault
                if not block.attribute("not_run"):
                    self.block(block)
            assert not self.unused, (
                f"{self.name}: its entry in tests/test_docs.py has what the page does not: {self.unused}"
            )
            missing = [name for name in self.page.leaves if not (self.folder / name).exists()]
            assert not missing, f"{self.name}: promises {missing}, not there after its commands"
            for expression in self.page.holds:
                assert eval(expression, self.names), f"{self.name}: not true after its code: {expression}"

    def block(self, block: Block) -> None:
        if file := block.attribute("file"):
            Path(file).write_text(block.text + "\n")
        elif block.attribute("output"):
            self.output(block)
        elif block.language == "python":
            self.python(block)
        else:
            for number, command in block.commands():
                self.command(f"{self.name}:{number}", command)

    def shorter(self, text: str) -> str:
        for words, other in self.page.scaled.items():
            if words in text:
                self.unused.discard(words)
                text = text.replace(words, other.replace("SERVER", self.server))
        return text

    def python(self, block: Block) -> None:
        # Empty lines before it, so that a traceback names the page's own line.
        code = compile("\n" * (block.line - 1) + self.shorter(block.text), block.page, "exec")
        with redirect_stdout(io.StringIO()) as printed:
            exec(code, self.names)
        self.outputs.append((block.text, printed.getvalue()))

    def command(self, place: str, command: str) -> None:
        plain = without_comment(command)
        if plain in self.page.elsewhere:
            self.unused.discard(plain)
            return
        promised = re.search(r"# .*exit code (\d+)", command)
        done = execute(self.shorter(command), self.folder)
        both = done.out + done.err
        said = f"{place}: {plain}\n{both[-3000:]}"
        self.outputs.append((plain, both))
        assert "Traceback" not in both, said
        assert done.code == (int(promised[1]) if promised else 0), f"exit code {done.code}: {said}"
        if done.code == 0:
            self.written(plain, said)
        if "--json" in plain.split():
            json.loads(done.out)
        for words, pattern in self.page.prints.items():
            if words in plain:
                self.unused.discard(words)
                assert re.search(pattern, both), f"does not print {pattern!r}: {said}"

    def written(self, command: str, said: str) -> None:
        words = shlex.split(command)
        for option, name in pairwise(words):
            if option in WRITES:
                path = self.folder / Path(name)
                assert path.exists(), f"{option} {name} is not there: {said}"
                assert path.stat().st_size if path.is_file() else any(path.iterdir()), (
                    f"{option} {name} is empty: {said}"
                )

    def output(self, block: Block) -> None:
        """Each line of the block equals a printed line, apart from figures."""
        words = block.attribute("of") or ""
        command, printed = next(entry for entry in reversed(self.outputs) if words in entry[0])
        forms = {form(line) for line in printed.splitlines()}
        for line in block.text.splitlines():
            assert form(line) in forms, f"{block.place}: not printed by {command}: {line}\n{printed[-3000:]}"


def form(line: str) -> str:
    """A line without the parts that differ between runs: figures, and the width of columns."""
    return " ".join(_NUMBER.sub("0", line).split())
