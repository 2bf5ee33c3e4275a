"""What every command does about output: how much is said, warnings as lines, an interruption that says how to go on."""

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

_QUIET = Annotated[
    bool, typer.Option("--quiet", "-q", envvar="DIFFERAD_QUIET", help="Say nothing on stderr but errors.")
]
_VERBOSE = Annotated[bool, typer.Option("--verbose", "-v", help="Say more on stderr; errors come with their origin.")]
AGAIN = "the same command goes on from there"
# From a command's arguments to how its work is continued.
GoOn = Callable[[dict[str, Any]], str]


class InterruptedRunError(DifferadError):
    """Ctrl-C or another signal; says how far the work had come and how to go on."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def with_output_options(command: Callable[..., Any], go_on: str | GoOn = "") -> Callable[..., Any]:
    """The command with --quiet and --verbose; `go_on` says after Ctrl-C, or a full disk, how its work is continued."""
    signature = inspect.signature(command)

    def advice(values: dict[str, Any]) -> str:
        text = go_on if isinstance(go_on, str) else go_on(values)
        return f"; {text}" if text else ""

    def run(*, quiet: bool, verbose: bool, **values: Any) -> Any:
        LOGGER.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.WARNING)
        try:
            return command(**values)
        except KeyboardInterrupt as interrupt:
            position = latest_position()
            at = f" at {position}" if position else ""
            message = f"{describe(interrupt)}{at}{advice(values)}"
            raise InterruptedRunError(message, exit_code(interrupt)) from None
        except WriteError as error:
            raise WriteError(f"{error}{advice(values)}") from error

    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in (("quiet", _QUIET), ("verbose", _VERBOSE))
    ]
    parameters = [*signature.parameters.values(), *more]
    run.__doc__ = command.__doc__
    # Typer reads both, as it would those of a function written out.
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Each warning about the input as one line on stderr, unless --quiet; other warnings as Python shows them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # what matters about a file is said by its error
        warnings.simplefilter("default", InputWarning)
        otherwise = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if not issubclass(category, InputWarning):
                otherwise(message, category, filename, lineno, file, line)
            elif not is_quiet():
                print(f"differad: warning: {printable(' '.join(str(message).split()))}", file=sys.stderr)

        warnings.showwarning = show
        yield


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@contextmanager
def log_lines() -> Iterator[None]:
    """What the package logs, as lines on stderr; how much follows from --quiet and --verbose."""
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
    """A text for a person, on stdout or stderr; nothing in it, wherever it comes from, steers the terminal."""
    typer.echo(printable(text), err=err)


def can_show(text: str) -> bool:
    """Whether stdout's encoding has all letters of `text`, and a terminal shows each of them."""
    if printable(text) != text:
        return False
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
