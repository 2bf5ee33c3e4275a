"""The `differad` command: gathers the subcommands and turns errors into one line and an exit code.

0 done; 2 the input or the options are wrong; 1 anything else; 130 interrupted.
"""

import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

import typer

import differad
from differad.cli.audit import audit_command
from differad.cli.build import build_command, build_recipe_command
from differad.cli.evaluate import evaluate_command
from differad.cli.exchange import export_command, import_command
from differad.cli.locate import locate_command
from differad.cli.models import models_command
from differad.cli.score import score_command
from differad.cli.split import check_leaks_command, split_command
from differad.cli.synthesize import synthesize_command
from differad.cli.train import train_app
from differad.errors import DifferadError, InputWarning

app = typer.Typer(
    name="differad",
    help="One-shot visual inspection: show one good part and one to inspect, get what is abnormal and where.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.command("locate")(locate_command)
app.command("evaluate")(evaluate_command)
app.command("score")(score_command)
app.command("build")(build_command)
app.command("build-recipe")(build_recipe_command)
app.command("split")(split_command)
app.command("check-leaks")(check_leaks_command)
app.add_typer(train_app, name="train")
app.command("audit-reward")(audit_command)
app.command("synthesize")(synthesize_command)
app.command("export")(export_command)
app.command("import")(import_command)
app.command("models")(models_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"differad {differad.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line on `arguments` (default: the process's own) and exit with its code."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; errors become one line on stderr."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # what matters about a file is said by its error
            warnings.simplefilter("default", InputWarning)
            warnings.showwarning = _show_warning
            code = app(args=arguments, prog_name="differad", standalone_mode=False)
    except DifferadError as error:
        return _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        return _fail(f"{error.format_message()} (differad --help shows the options)", error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    return code if isinstance(code, int) else 0


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """What looks wrong in the input as a line; other warnings as Python writes them."""
    if issubclass(category, InputWarning):
        print(f"differad: warning: {' '.join(str(message).split())}", file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, filename, lineno, line), end="", file=file or sys.stderr)


def _fail(message: str, code: int) -> int:
    print(f"differad: {' '.join(message.split())}", file=sys.stderr)
    return code
