"""`differad split` and `differad check-leaks`: training and test pairs without leaks."""

from pathlib import Path
from typing import Annotated

import typer

from differad.cli.build import Force
from differad.cli.options import AsJson, print_json
from differad.cli.output import say
from differad.core import Pair
from differad.data.build import write_manifest
from differad.data.hashing import MAX_HASH_RADIUS
from differad.data.manifest import read_pairs
from differad.data.output_folder import create_output_folder
from differad.data.splits import Leak, find_leaks, split_by_category, split_by_instance
from differad.errors import ManifestError, OptionError

Radius = Annotated[
    int,
    typer.Option(
        "--radius", min=0, max=MAX_HASH_RADIUS, help="Bits of 64 in which hashes of near-duplicates may differ."
    ),
]
SharedReferences = Annotated[
    bool, typer.Option("--shared-references", help="Check targets only: a reference may be on both sides.")
]
# Leaks shown in a terminal; --json has them all.
_SHOWN_LEAKS = 20


def split_command(
    pairs: Annotated[Path, typer.Argument(metavar="PAIRS", help="The pairs.jsonl to split.", show_default=False)],
    by: Annotated[str, typer.Option("--by", help="category or instance.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="A new or empty folder for SIDE.jsonl.", show_default=False)],
    held_out: Annotated[
        list[str] | None, typer.Option("--held-out", help="by category: a test category; several times.")
    ] = None,
    share: Annotated[
        list[str] | None,
        typer.Option("--share", metavar="SIDE=SHARE", help="by instance: a side; left out: train=0.8 test=0.2."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="by instance: seed of the assignment.")] = 0,
    radius: Radius = MAX_HASH_RADIUS,
    shared_references: SharedReferences = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Split pairs so that no image, near-duplicate or part is on two sides.

    Example: differad split pairs.jsonl --by category --held-out zipper --held-out pcb --out splits

    Instances: differad split pairs.jsonl --by instance --share train=0.8 --share test=0.2 --out splits
    """
    all_pairs = list(read_pairs(pairs))
    sides = _sides(all_pairs, by, held_out, share, seed, radius, references=not shared_references)
    with create_output_folder(out, force=force) as folder:
        folder.record(*(out / f"{name}.jsonl" for name in sides))
        summary = {name: _write(out / f"{name}.jsonl", side) for name, side in sides.items()}
    if as_json:
        print_json({"by": by, "pairs": len(all_pairs), "sides": summary})
        return
    for name, side in summary.items():
        say(f"{name}: {side['pairs']} pairs, {side['anomalous']} anomalous: {side['manifest']}")


def _sides(
    pairs: list[Pair],
    by: str,
    held_out: list[str] | None,
    share: list[str] | None,
    seed: int,
    radius: int,
    *,
    references: bool,
) -> dict[str, list[Pair]]:
    """The pairs of each side. Raises OptionError, ImageError, and ManifestError if the sides would leak."""
    if by == "category":
        _refuse("share", bool(share), by)
        sides = split_by_category(pairs, held_out or [])
        _refuse_leaks(find_leaks(*sides.values(), radius=radius, references=references, progress=True))
        return sides
    if by == "instance":
        _refuse("held-out", bool(held_out), by)
        shares = _shares(share or ["train=0.8", "test=0.2"])
        return split_by_instance(pairs, shares, seed, radius=radius, references=references, progress=True)
    raise OptionError(f"--by {by!r}: expected category or instance")


def check_leaks_command(
    train: Annotated[Path, typer.Argument(metavar="TRAIN", help="A pairs.jsonl.", show_default=False)],
    test: Annotated[Path, typer.Argument(metavar="TEST", help="The other pairs.jsonl.", show_default=False)],
    radius: Radius = MAX_HASH_RADIUS,
    shared_references: SharedReferences = False,
    as_json: AsJson = False,
) -> None:
    """Find images, near-duplicates and parts that are in both manifests; exit with 2 if there are any.

    Example: differad check-leaks splits/train.jsonl splits/test.jsonl
    """
    left, right = list(read_pairs(train)), list(read_pairs(test))
    leaks = find_leaks(left, right, radius=radius, references=not shared_references, progress=True)
    if as_json:
        kinds = {kind: sum(leak.kind == kind for leak in leaks) for kind in ("image", "product", "near-duplicate")}
        print_json({"leaks": [leak.to_dict() for leak in leaks], "count": len(leaks), "kinds": kinds})
    _refuse_leaks(leaks)
    if not as_json:
        say(f"no leaks between {len(left)} and {len(right)} pairs")


def _refuse(name: str, is_set: bool, by: str) -> None:
    if is_set:
        raise OptionError(f"--{name} with --by {by}: does not apply; leave it out, or choose the other --by")


def _refuse_leaks(leaks: list[Leak]) -> None:
    """List leaks on stderr. Raises ManifestError if there are any."""
    for leak in leaks[:_SHOWN_LEAKS]:
        say(f"leak: {leak}", err=True)
    if leaks:
        raise ManifestError(
            f"{len(leaks)} leaks between the sides, the first {leaks[0].kind} {leaks[0].train}; expected none, so remove "
            "those pairs or split by instance (--shared-references checks targets only)"
        )


def _shares(arguments: list[str]) -> dict[str, float]:
    shares: dict[str, float] = {}
    for text in arguments:
        name, separator, value = text.partition("=")
        number = _number(value)
        if not (separator and name and Path(name).name == name) or number is None or name in shares:
            raise OptionError(f"--share {text!r}: expected SIDE=SHARE, each side once, as in --share train=0.8")
        shares[name] = number
    return shares


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _write(path: Path, pairs: list[Pair]) -> dict[str, object]:
    write_manifest(path, pairs)
    anomalous = sum(pair.anomalous is True for pair in pairs)
    return {"manifest": str(path), "pairs": len(pairs), "anomalous": anomalous}
