"""Output of all commands: verbosity, warnings as lines, and interruptions with the advice how to continue."""

import inspect
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TextIO

import typer

from differad.cli.signals import describe, exit_code
from differad.errors import DifferadError, InputWarning, WriteError
from differad.progress import LOGGER, is_quiet, latest_position
from differad.text import printable

_QUIET = Annotated[bool, typer.Option("--quiet", "-q", envvar="DIFFERAD_QUIET", help="Print only errors on stderr.")]
_VERBOSE = Annotated[bool, typer.Option("--verbose", "-v", help="Print more on stderr; errors with their traceback.")]
SAME_COMMAND = "the same command goes on from there"
# Maps a command's arguments to the advice how to continue its work.
Advice = Callable[[dict[str, Any]], str]


class InterruptedRunError(DifferadError):
    """Ctrl-C or another signal; the message holds the progress and how to continue."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def with_output_options(command: Callable[..., Any], advice: str | Advice = "") -> Callable[..., Any]:
    """The command with --quiet and --verbose; `advice` says how to continue after Ctrl-C or a full disk."""
    signature = inspect.signature(command)

    def how_to_continue(values: dict[str, Any]) -> str:
        text = advice if isinstance(advice, str) else advice(values)
        return f"; {text}" if text else ""

    def run(*, quiet: bool, verbose: bool, **values: Any) -> Any:
        LOGGER.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.WARNING)
        try:
            return command(**values)
        except KeyboardInterrupt as interrupt:
            position = latest_position()
            at = f" at {position}" if position else ""
            message = f"{describe(interrupt)}{at}{how_to_continue(values)}"
            raise InterruptedRunError(message, exit_code(interrupt)) from None
        except WriteError as error:
            raise WriteError(f"{error}{how_to_continue(values)}") from error

    output_options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in (("quiet", _QUIET), ("verbose", _VERBOSE))
    ]
    parameters = [*signature.parameters.values(), *output_options]
    run.__doc__ = command.__doc__
    # Typer reads the signature and the annotations.
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Each warning about the input as one line on stderr, unless --quiet; other warnings as Python shows them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # errors report what matters about a file
        warnings.simplefilter("default", InputWarning)
        show_other = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if not issubclass(category, InputWarning):
                show_other(message, category, filename, lineno, file, line)
            elif not is_quiet():
                print(f"differad: warning: {printable(' '.join(str(message).split()))}", file=sys.stderr)

        warnings.showwarning = show
        yield


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@contextmanager
def log_lines() -> Iterator[None]:
    """Log records of the package as lines on stderr; --quiet and --verbose set the level."""
    handler = logging.StreamHandler()
    handler.setFormatter(_PrintableFormatter("differad: %(message)s"))
    level = LOGGER.level
    LOGGER.addHandler(handler)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)


def say(text: str, *, err: bool = False) -> None:
    """Print text on stdout or stderr; control characters in it, from whatever source, do not reach the terminal."""
    typer.echo(printable(text), err=err)


def can_show(text: str) -> bool:
    """Whether stdout's encoding has all characters of `text`, and a terminal shows each of them."""
    if printable(text) != text:
        return False
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
