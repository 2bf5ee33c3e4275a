"""`differad synthesize`: training pairs made from a seed, as many as are wanted.

What can be drawn is said once, in `SynthesisOptions`: each of its fields is an option here, with its help.
"""

import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from differad.cli.options import AsJson, print_json
from differad.cli.output import say
from differad.synthesis.draw import SynthesisOptions
from differad.synthesis.engines import ENGINES
from differad.synthesis.run import SHARD_SIZE, Summary, synthesize
from differad.synthesis.store import FORMATS


def _run(
    count: Annotated[int, typer.Option("--count", "-n", help="Pairs in all; a larger one later adds to the set.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the set; a second run goes on with it.")],
    workers: Annotated[int, typer.Option("--workers", help="Cores that draw; they do not change what is drawn.")] = 1,
    engine: Annotated[
        str, typer.Option("--engine", help=f"Where they are: {' or '.join(ENGINES)} (a cluster).")
    ] = "process",
    format: Annotated[
        str, typer.Option("--format", help=f"{', '.join(FORMATS)}: PNG files with pairs.jsonl, or shards.")
    ] = "folder",
    shard_size: Annotated[int, typer.Option("--shard-size", help="Pairs in one shard.")] = SHARD_SIZE,
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="Stop after so long, with what is drawn by then.")
    ] = None,
    as_json: AsJson = False,
    **drawn: Any,
) -> None:
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in drawn.items()}
    summary = synthesize(
        SynthesisOptions(**given),
        count,
        out,
        workers=workers,
        engine=engine,
        format=format,
        shard_size=shard_size,
        minutes=minutes,
    )
    if as_json:
        print_json(summary.to_dict())
    else:
        say(describe(summary))


def describe(summary: Summary) -> str:
    """A summary as a line for a person."""
    new = f"{summary.drawn} drawn in {summary.seconds:.1f} s, {summary.pairs_per_second:.0f} a second"
    return f"{summary.pairs} pairs ({summary.anomalous} anomalous; {summary.kept} kept, {new}): {summary.manifest}"


def _with_draw_options(run: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of `SynthesisOptions`, which is what `**drawn` stands for."""
    signature = inspect.signature(run)
    own = [parameter for parameter in signature.parameters.values() if parameter.name != "drawn"]
    more = [
        _parameter(field.name, field.type, field.default, field.metadata["help"]) for field in fields(SynthesisOptions)
    ]
    as_json = own.pop()

    def synthesize_command(**given: Any) -> None:
        run(**given)

    synthesize_command.__doc__ = """Draw pairs with exact masks; the same seed gives the same pairs, whatever the workers.

    A part is procedural, or a picture from --normals; half of the pairs have a defect.

    Example: differad synthesize --count 10000 --seed 1 --workers 2 --out synthetic --normals good_parts
    """
    parameters = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in (*own, *more, as_json)]
    # Typer reads both, as it would those of a function written out.
    synthesize_command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    synthesize_command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return synthesize_command


def _parameter(name: str, kind: Any, default: Any, help: str) -> inspect.Parameter:
    flag = f"--{name.replace('_', '-')}"
    if kind == tuple[str, ...]:
        kind, default, help = list[str], list(default), f"{help} (may be given several times)"
    first = help.split(maxsplit=1)[0]
    text = help if "." in first else help[0].upper() + help[1:]  # a file's name keeps its case
    annotation = Annotated[kind, typer.Option(flag, help=f"{text}.")]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


synthesize_command = _with_draw_options(_run)
