"""The `differad` command: collects the subcommands and turns errors into one line and an exit code.

0 done; 2 the input or the options are wrong; 3 abnormal, from `inspect` and `locate --fail-on-anomaly`; 4 no answer; 1 any
other error; 128 plus the number of the signal that ended it, 130 for Ctrl-C.
"""

import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer

import differad
from differad.cli.audit import audit_command
from differad.cli.build import build_command, build_recipe_command
from differad.cli.evaluate import evaluate_command
from differad.cli.exchange import export_command, import_command
from differad.cli.inspect import inspect_command
from differad.cli.locate import locate_command
from differad.cli.models import models_command
from differad.cli.output import (
    SAME_COMMAND,
    Advice,
    log_lines,
    warnings_as_lines,
    with_output_options,
)
from differad.cli.recipes import recipes_command
from differad.cli.score import score_command
from differad.cli.signals import describe, exit_code, fail
from differad.cli.split import check_leaks_command, split_command
from differad.cli.synthesize import synthesize_command
from differad.cli.train import train_app
from differad.errors import DifferadError, InputError, WriteError
from differad.files import unwritable
from differad.memory import REMEDY
from differad.progress import LOGGER

app = typer.Typer(
    name="differad",
    help="One-shot visual inspection: show one good part and one to inspect, get what is abnormal and where.\n\n"
    "The environment may hold defaults: DIFFERAD_MODEL, DIFFERAD_FAMILY, DIFFERAD_OPTIONS, DIFFERAD_FAIL_ON_ANOMALY, "
    "DIFFERAD_QUIET.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
# Each command, with the advice how to continue after Ctrl-C or a full disk.
COMMANDS: dict[str, tuple[Callable[..., Any], str | Advice]] = {
    "locate": (locate_command, lambda arguments: SAME_COMMAND if arguments["pairs"] is not None else ""),
    "inspect": (inspect_command, SAME_COMMAND),
    "evaluate": (evaluate_command, SAME_COMMAND),
    "score": (score_command, ""),
    "build": (build_command, "what it had made was removed; run it again"),
    "build-recipe": (build_recipe_command, "what it had made was removed; run it again"),
    "split": (split_command, ""),
    "check-leaks": (check_leaks_command, ""),
    "audit-reward": (audit_command, ""),
    "synthesize": (synthesize_command, SAME_COMMAND),
    "export": (export_command, ""),
    "import": (import_command, ""),
    "models": (models_command, ""),
    "recipes": (recipes_command, ""),
}
for _name, (_command, _advice) in COMMANDS.items():
    app.command(_name)(with_output_options(_command, _advice))
app.add_typer(train_app, name="train")

# Releases of typer name the base class of their errors differently (click's own, a copy of it, TyperException). BadParameter
# derives from it in all of them: it is the last class before Exception, BaseException and object.
_USAGE_ERROR: type[Any] = typer.BadParameter.__mro__[-4]


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"differad {differad.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    _version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; errors become one line on stderr."""
    with log_lines(), warnings_as_lines():
        try:
            code = app(args=arguments, prog_name="differad", standalone_mode=False)
            sys.stdout.flush()
        except DifferadError as error:
            LOGGER.debug("origin:", exc_info=error)
            return fail(str(error), error.exit_code)
        except _USAGE_ERROR as error:
            return fail(f"{error.format_message()} (differad --help shows the options)", error.exit_code)
        except (typer.Abort, KeyboardInterrupt) as interrupt:
            return fail(describe(interrupt), exit_code(interrupt))
        except MemoryError as error:
            LOGGER.debug("origin:", exc_info=error)
            return fail(f"not enough memory; {REMEDY}", DifferadError.exit_code)
        except BrokenPipeError:
            # The reader has closed the pipe (`| head`).
            _close_stdout()
            return 1
        except OSError as error:
            LOGGER.debug("origin:", exc_info=error)
            if error.filename is None and error.errno in (errno.ENOSPC, errno.EIO):  # errors of files are WriteErrors
                _close_stdout()
                return fail(str(unwritable(Path("stdout"), error)), WriteError.exit_code)
            name = "" if error.filename is None else f"{error.filename}: "
            return fail(f"{name}{error.strerror or error}; see to that and run it again", InputError.exit_code)
    return code if isinstance(code, int) else 0


def _close_stdout() -> None:
    """Discard further output, so that Python raises no second error when it closes stdout."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
