"""Entry point of the `differad` command: signals become one line and an exit code, from the first imports on."""

import io
import sys
from collections.abc import Sequence

from differad.cli.signals import describe, exit_code, fail, signals_as_interrupts
from differad.memory import REMEDY, is_out_of_memory


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line on `arguments` (default: the process's own) and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Characters that the terminal's encoding lacks are written as \x and \u escapes instead of failing after the work.
            stream.reconfigure(errors="backslashreplace")
    try:
        with signals_as_interrupts():
            code = run(arguments)
    except KeyboardInterrupt as interrupt:  # between two blocks that handle it
        code = fail(describe(interrupt), exit_code(interrupt))
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; errors become one line on stderr."""
    try:
        from differad.cli.app import run as run_app

        return run_app(arguments)
    except KeyboardInterrupt as interrupt:  # while modules load
        return fail(describe(interrupt), exit_code(interrupt))
    except (MemoryError, ImportError, OSError, RuntimeError, SystemError) as error:
        # While modules load, at the start or in a command.
        if not is_out_of_memory(error):
            raise
        return fail(f"not enough memory to load all it needs; {REMEDY}", 1)
