"""Shared by several commands: the options that choose a model, and JSON on stdout."""

import json
from typing import Annotated, Any

import typer

from differad.cli.output import can_show
from differad.errors import OptionError
from differad.locators import Locator, load_locator
from differad.locators.registry import DEFAULT_MODEL

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        envvar="DIFFERAD_MODEL",
        help=f"{DEFAULT_MODEL} (the default), features, tiny, difference, a checkpoint folder (tiny@FOLDER: an embedded "
        "policy of your own) or hub id, or openai:NAME@http://HOST:PORT/v1; `differad models` lists them with their options.",
    ),
]
Family = Annotated[
    str | None,
    typer.Option(
        "--family",
        envvar="DIFFERAD_FAMILY",
        help="Answer format of the model, if its config does not imply it: qwen2.5-vl, internvl …",
    ),
]
LocatorOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        "-o",
        metavar="KEY=VALUE",
        envvar="DIFFERAD_OPTIONS",
        help="An option of the model, or PART.NAME=VALUE for a part of it (difference.tolerance=3 for auto); may be given "
        "several times (in the environment: separated by spaces).",
    ),
]
FailOnAnomaly = Annotated[
    bool,
    typer.Option(
        "--fail-on-anomaly/--no-fail-on-anomaly",
        envvar="DIFFERAD_FAIL_ON_ANOMALY",
        help="Exit with 3 if a target is abnormal, with 4 if one has no answer.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print exactly one JSON document on stdout.")]


def open_locator(model: str | None, family: str | None, options: list[str] | None) -> Locator:
    """The locator that the command's options name. Raises OptionError."""
    values: dict[str, Any] = {}
    for option in options or []:
        key, separator, value = option.partition("=")
        if not separator or not key:
            raise OptionError(f"--option {option!r}: expected KEY=VALUE, as in --option batch_size=4")
        values[key.replace("-", "_")] = value
    return load_locator(model, family=family, **values)


def print_json(document: Any, *, indent: int | None = 2) -> None:
    """Print one JSON document on stdout, on one line without `indent`; NaN raises, since it would be a bug."""
    text = json.dumps(document, ensure_ascii=False, indent=indent, allow_nan=False)
    # The stream's own escapes (\x) would not be JSON.
    typer.echo(text if can_show(text) else json.dumps(document, indent=indent, allow_nan=False))
