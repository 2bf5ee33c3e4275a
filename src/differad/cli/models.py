"""`differad models`: what `--model` accepts and the options of each kind."""

from dataclasses import asdict
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from differad.cli.options import AsJson, print_json
from differad.locators.registry import DEFAULT_MODEL, KINDS
from differad.options import list_options


def models_command(as_json: AsJson = False) -> None:
    """List the kinds of model and the options that -o KEY=VALUE sets; those of a model's parts are named PART.NAME.

    Example: differad models
    """
    if as_json:
        print_json(
            [
                {"model": name, "what": what, "default": name == DEFAULT_MODEL, "options": _options_of(kind)}
                for name, (kind, what) in KINDS.items()
            ]
        )
        return
    for name, (kind, what) in KINDS.items():
        typer.echo(f"--model {name}{' (default)' if name == DEFAULT_MODEL else ''}: {what}")
        table = Table("option", "default", "meaning", box=None, padding=(0, 2))
        for option in _options_of(kind):
            table.add_row(option["name"], str(option["default"]), option["help"])
        Console().print(table)
        typer.echo()


def _options_of(kind: type) -> list[dict[str, Any]]:
    return [asdict(option) for option in list_options(kind) if option.name != "family"]
