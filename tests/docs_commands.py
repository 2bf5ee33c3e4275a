"""Check that names on a page exist: commands and options of differad, options of other programs here, files, modules, extras.

Runs nothing. It reads all fenced blocks, and code within sentences and tables.
"""

import importlib
import re
import shlex
import tomllib
from functools import cache
from typing import Any, get_args

import typer
from pydantic import BaseModel

from differad.cli.app import app
from differad.locators.registry import KINDS
from differad.options import list_options
from differad.training.recipe import RlRecipe
from docs_blocks import ROOT, blocks, read_page, spans, without_comment

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
# Options and scripts of other programs that pages mention.
FOREIGN = {"--max-model-len", "prepare_data.py"}
PLACEHOLDERS = {"key", "part.key"}
_CALL = re.compile(r"(?:^|\s)differad\s+(?=\S)(.*)", re.DOTALL)
_PROGRAM = re.compile(r"(?:^|\s)python3? (benchmarks/\w+\.py)(.*)", re.DOTALL)
_FILE = re.compile(r"(?<![\w./-])(?:recipes|benchmarks|examples|scripts|docs|src|tests)/[\w./-]*\w(?![\w./*{-])")
_MODULE = re.compile(r"(?<![\w/.])differad(?:\.\w+)+")
_SET = re.compile(r"(?:^|\s)-o ([a-z][\w.]*)=")
_SOURCE = re.compile(r"(?:\w+/)*[\w-]+\.(?:py|sh)")
# A recipe's key, or several of a section in braces; not a file.
_KEY = re.compile(
    r"(model|data|held_out|train|grpo)\.(\{[^}]*\}|(?!yaml|jsonl|safetensors|tar|sh)[a-z_.]+)(?=[=:\s]|$)"
)
_HEAD = re.compile(r"(?:#   | {4}|)(?:differad|python benchmarks/|bash recipes/|accelerate launch)\S* \S")
_EXAMPLE = re.compile(r"Example: (.*)")
_VARIABLE = re.compile(r"\bDIFFERAD_[A-Z_]+\b")
_EXTRA = re.compile(r"(?:differad|\.)\[([\w,]+)\]")


def texts(page: str) -> list[tuple[str, str]]:
    """Positions and code of a page: each span within its sentences, each command of its shell blocks."""
    text = read_page(page)
    fenced = [block for block in blocks(page, text) if block.language == "sh"]
    return [
        *((f"{page}:{number}", span) for number, span in spans(text)),
        *((f"{page}:{number}", without_comment(line)) for block in fenced for number, line in block.commands()),
    ]


def examples() -> list[tuple[str, str]]:
    """Positions and commands of help texts, and of the headers of recipes and programs."""
    heads = [path for ending in ("yaml", "sh") for path in (ROOT / "recipes").rglob(f"*.{ending}")]
    programs = [path for folder in ("benchmarks", "scripts", "examples") for path in (ROOT / folder).glob("*.py")]
    lines = [(path, line) for path in (*heads, *programs) for line in path.read_text(encoding="utf-8").splitlines()]
    found = [(path.relative_to(ROOT).as_posix(), line) for path, line in lines if _HEAD.match(line)]
    found += [
        (name, example) for name, text in _help(typer.main.get_command(app)) for example in _EXAMPLE.findall(text)
    ]
    return [(place, without_comment(line.removeprefix("#"))) for place, line in found]


def _help(command: Any, name: str = "differad") -> list[tuple[str, str]]:
    inner = getattr(command, "commands", {}).items()
    return [(name, command.help or ""), *(text for one, other in inner for text in _help(other, f"{name} {one}"))]


def faults(code: str) -> list[str]:
    """Names in a piece of code that do not exist."""
    found = [fault for part in re.split(r"\s(?:\||&&|;)\s", code) for fault in _calls(part)]
    read = re.sub(r"--out [^\s\]]+", "", code)
    found += [f"no file {name}" for name in _FILE.findall(read) if not (ROOT / name).exists()]
    found += [f"no module or name {name}" for name in _MODULE.findall(code) if not _importable(name)]
    named = [extra for group in _EXTRA.findall(code) for extra in group.split(",")]
    found += [f"no extra {extra}" for extra in named if extra not in EXTRAS]
    found += [
        f"no model has the option {name}" for name in _SET.findall(code) if name not in _model_options() | PLACEHOLDERS
    ]
    found += [f"nothing reads the variable {name}" for name in _VARIABLE.findall(code) if name not in _code()]
    found += [f"no recipe has the key {key}" for key in _keys(code) if not _is_key(RlRecipe, key.split("."))]
    if _SOURCE.fullmatch(code) and code not in FOREIGN and not any(path.endswith(f"/{code}") for path in _sources()):
        found.append(f"no file ends in {code}")
    if re.fullmatch(r"--[a-z][\w-]*(?: \S+)?", code) and code.split()[0] not in _all_options() | FOREIGN:
        found.append(f"no command has the option {code}")
    return found


def _calls(code: str) -> list[str]:
    if match := _CALL.search(code):
        return _call(_words(match[1]), typer.main.get_command(app), "differad")
    if match := _PROGRAM.search(code):
        if not (ROOT / match[1]).exists():
            return []  # said as a file
        source = (ROOT / match[1]).read_text(encoding="utf-8")
        options = [word.partition("=")[0] for word in _words(match[2]) if word.startswith("--")]
        return [f"{match[1]} has no option {option}" for option in options if f'"{option}"' not in source]
    return []


def _call(words: list[str], command: Any, name: str) -> list[str]:
    """Faults of the words behind a command's name: its subcommands, then every option among them."""
    commands = getattr(command, "commands", None)
    if commands and words and not words[0].startswith("-"):
        if re.fullmatch(r"[A-Z…]+", words[0]):
            return []
        unknown = [word for word in words[0].split("|") if word not in commands]
        if unknown:
            return [f"{name} has no command {', '.join(unknown)}"]
        return [fault for word in words[0].split("|") for fault in _call(words[1:], commands[word], f"{name} {word}")]
    known = _options(command) | {"--help", "-h"}
    options = [word.partition("=")[0] for word in words if re.match(r"--?[A-Za-z]", word)]
    return [f"{name} has no option {option}" for option in options if option not in known]


def _options(command: Any) -> set[str]:
    """Names of a command's options, those that turn one off among them."""
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


def _words(text: str) -> list[str]:
    """Words of a command; the brackets of a synopsis are no part of them."""
    plain = re.sub(r"(?<=\s)\[|\](?=\s|\.\.\.|$)|\.\.\.", " ", text)
    try:
        return shlex.split(plain)
    except ValueError:
        return plain.split()


@cache
def _all_options() -> set[str]:
    """Every option of every command, and quoted strings in other programs that look like one."""

    def of(command: Any) -> set[str]:
        return _options(command).union(*(of(other) for other in getattr(command, "commands", {}).values()))

    programs = [
        path.read_text(encoding="utf-8")
        for folder in ("benchmarks", "recipes/tiny")
        for path in (ROOT / folder).glob("*.py")
    ]
    return of(typer.main.get_command(app)) | {
        option for text in programs for option in re.findall(r'"(--[\w-]+)"', text)
    }


@cache
def _model_options() -> set[str]:
    """All options of `-o`, of every kind of model; those of a model's parts as PART.NAME."""
    return {option.name for kind, _ in KINDS.values() for option in list_options(kind)}


def _keys(code: str) -> list[str]:
    """Recipes' keys that a piece of code begins with."""
    if not (match := _KEY.match(code)):
        return []
    return [f"{match[1]}.{name.strip()}" for name in re.split(r"[,|]", match[2].strip("{}"))]


def _is_key(section: type[BaseModel], parts: list[str]) -> bool:
    """Whether nested sections have these keys; values that are no sections accept any further key."""
    if not parts:
        return True
    if parts[0] not in section.model_fields:
        return False
    kind = section.model_fields[parts[0]].annotation
    inner = [one for one in (kind, *get_args(kind)) if isinstance(one, type) and issubclass(one, BaseModel)]
    return not inner or _is_key(inner[0], parts[1:])


@cache
def _sources() -> list[str]:
    folders = ("src", "recipes", "benchmarks", "examples", "scripts", "tests")
    return [path.as_posix() for name in folders for path in (ROOT / name).rglob("*") if path.suffix in (".py", ".sh")]


@cache
def _code() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))


@cache
def _importable(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False
