"""`differad build` and `differad build-recipe`: manifests from data sets on disk."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from differad.cli.options import AsJson, print_json
from differad.cli.output import say
from differad.data.build import MANIFEST, BuildOptions, Built, build
from differad.data.card import files_of, make_card, write_card
from differad.data.pairing import METHODS, Pairing
from differad.data.recipe import build_recipe, read_recipe
from differad.data.sheet import write_sheet
from differad.data.sources.registry import SOURCES
from differad.errors import OptionError
from differad.text import printable

Out = Annotated[Path, typer.Option("--out", help="A new or empty folder.", show_default=False)]
Boxes = Annotated[
    bool, typer.Option("--boxes/--no-boxes", help="Take boxes from masks now, or when the pairs are read.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace what a killed run left unfinished in OUT.")]
Check = Annotated[bool, typer.Option("--check", help="Decode every image and mask first.")]
Copy = Annotated[bool, typer.Option("--copy", help="Copy the files under OUT.")]
Link = Annotated[bool, typer.Option("--link", help="Link the files under OUT (hard links, else symbolic ones).")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="List and skip what is wrong.")]
Unmasked = Annotated[
    str,
    typer.Option("--unmasked", help="A defect without a mask where others have one: error, or unknown (its place)."),
]
Checksums = Annotated[bool, typer.Option("--checksums", help="Write the SHA-256 of every file of the pairs.")]
SourceName = Annotated[str, typer.Argument(metavar="SOURCE", help=f"One of {', '.join(SOURCES)}.", show_default=False)]
Method = Annotated[
    str | None,
    typer.Option("--pairing", help=f"Reference: {', '.join(METHODS)}; left out: nearest, with --lazy random."),
]
Categories = Annotated[
    list[str] | None, typer.Option("--category", help="A category to take; may be given several times.")
]
# Lines of problems shown in a terminal; the summary of --json has them all.
_SHOWN_PROBLEMS = 20


def build_command(
    source: SourceName,
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="The folder of the data set.", show_default=False)],
    out: Out,
    pairing: Method = None,
    references: Annotated[int, typer.Option("--references", help="References for each target.")] = 1,
    normals: Annotated[float, typer.Option("--normals", help="Share of normal pairs, 0 to below 1.")] = 0.5,
    all_normals: Annotated[bool, typer.Option("--all-normals", help="A pair for every normal image.")] = False,
    count: Annotated[int | None, typer.Option("--count", help="Pairs of each category at most.")] = None,
    category: Categories = None,
    group: Annotated[str | None, typer.Option("--group", help="Structure group of all pairs.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of random choices.")] = 0,
    boxes: Boxes = True,
    lazy: Annotated[
        bool, typer.Option("--lazy", help="Open no image: random references, --no-boxes, boxes not checked.")
    ] = False,
    check: Check = False,
    copy: Copy = False,
    link: Link = False,
    skip_bad: SkipBad = False,
    unmasked: Unmasked = "error",
    sheet: Annotated[bool, typer.Option("--sheet", help="Write sheet.html, a few pairs of each category.")] = False,
    checksums: Checksums = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Turn a data set into pairs.jsonl without re-encoding images, and write its data card.

    Example: differad build mvtec /data/mvtec --out pairs/mvtec --skip-bad
    """
    _refuse_lazy_with(lazy, check=check, sheet=sheet, checksums=checksums)
    share = None if all_normals else normals
    pairing_options = Pairing(_method(pairing, lazy), references, share, count, seed)
    files, names = _files(copy, link), tuple(category or ())
    options = BuildOptions(
        pairing_options,
        boxes and not lazy,
        check,
        sizes=not lazy,
        files=files,
        skip_bad=skip_bad,
        unmasked=unmasked,
        categories=names,
        group=group,
    )

    def describe(built: Built) -> None:
        _describe(built, SOURCES[source].title, out, lazy=lazy, checksums=checksums, sheet=sheet)

    built = build(source, root, out, options, force=force, finish=describe)
    _report({"source": source, "manifest": str(out / MANIFEST), **built.summary()}, as_json)


def build_recipe_command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe in YAML.", show_default=False)],
    root: Annotated[
        Path, typer.Option("--root", help="Folder that holds a folder SOURCE for each data set.", show_default=False)
    ],
    out: Out,
    source_root: Annotated[
        list[str] | None,
        typer.Option(
            "--source-root", metavar="SOURCE=PATH", help="The folder of one data set, if elsewhere; several times."
        ),
    ] = None,
    boxes: Boxes = True,
    check: Check = False,
    copy: Copy = False,
    link: Link = False,
    skip_bad: SkipBad = False,
    checksums: Checksums = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Build the present parts of a benchmark; list the absent ones and how to get them; write card and contact sheet.

    Example: differad build-recipe recipes/ad_dualdiff.yaml --root /data --out ad_dualdiff
    """
    options = BuildOptions(boxes=boxes, check=check, files=_files(copy, link), skip_bad=skip_bad)
    built = build_recipe(
        read_recipe(recipe), root, out, options, roots=_roots(source_root), checksums=checksums, force=force
    )
    summary = {"manifest": str(out / MANIFEST), **built.summary()}
    if not as_json:
        _print_outcomes(summary["categories"])
    _report(summary, as_json)


def _describe(built: Built, title: str, out: Path, *, lazy: bool, checksums: bool, sheet: bool) -> None:
    """Write the data card, and the contact sheet if requested."""
    card = make_card(built.pairs, title, open_images=not lazy, progress=True)
    write_card(out, card, out / MANIFEST, files=files_of(built.pairs) if checksums else None, progress=True)
    if sheet:
        write_sheet(out / "sheet.html", built.pairs, title, progress=True)


def _method(pairing: str | None, lazy: bool) -> str:
    if lazy and pairing == "nearest":
        raise OptionError("--pairing nearest: opens every image, which --lazy excludes; expected random or given")
    return pairing or ("random" if lazy else "nearest")


def _refuse_lazy_with(lazy: bool, **others: bool) -> None:
    for name, value in others.items():
        if lazy and value:
            raise OptionError(f"--lazy with --{name}: one opens no file, the other every file; leave one out")


def _files(copy: bool, link: bool) -> str:
    if copy and link:
        raise OptionError("--copy with --link: expected one of them, or neither to refer to the files where they are")
    return "copy" if copy else "link" if link else "point"


def _roots(arguments: list[str] | None) -> dict[str, Path]:
    roots = {}
    for text in arguments or []:
        name, separator, path = text.partition("=")
        if not (name and separator and path):
            raise OptionError(f"--source-root {text!r}: expected SOURCE=PATH, as in --source-root mvtec=/data/mvtec_ad")
        roots[name] = Path(path)
    return roots


def _report(summary: dict[str, Any], as_json: bool) -> None:
    """Print the summary as JSON or as a line; skipped samples go to stderr."""
    problems = summary["problems"]
    for problem in problems[:_SHOWN_PROBLEMS]:
        say(f"skipped: {problem}", err=True)
    if len(problems) > _SHOWN_PROBLEMS:
        say(f"… and {len(problems) - _SHOWN_PROBLEMS} more; --json lists them all", err=True)
    if as_json:
        print_json(summary)
        return
    counts = ""
    if "anomalous" in summary:
        unknown = f" ({summary['place_unknown']} of unknown place)" if summary["place_unknown"] else ""
        counts = f" ({summary['anomalous']} anomalous{unknown}, {summary['normal']} normal)"
    wanted = f" of {summary['wanted']}" if "wanted" in summary else ""
    say(f"{summary['pairs']}{wanted} pairs{counts}, {summary['skipped']} left out: {summary['manifest']}")


def _print_outcomes(outcomes: list[dict[str, Any]]) -> None:
    table = Table("category", "group", "pairs", "wanted", "", box=None, padding=(0, 1, 0, 0), header_style="bold")
    for outcome in outcomes:
        names = (printable(outcome["category"]), printable(outcome["group"]))
        table.add_row(*names, str(outcome["pairs"]), str(outcome["wanted"]), outcome["state"])
    Console(markup=False, emoji=False, highlight=False).print(table)  # names are text, not markup
    for outcome in outcomes:
        if outcome["state"] != "built":
            get = f" Get it: {outcome['get']}" if outcome["get"] else ""
            say(f"{outcome['category']}: {outcome['why']}.{get}", err=True)
