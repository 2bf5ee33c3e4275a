"""From a data set on disk to `pairs.jsonl`: read samples, leave out what is wrong, pair, take boxes from masks, write.

Images stay where they lie and are never re-encoded; `placing` makes files only where a pair cannot point at one.
Knows nothing of recipes, cards or sheets, which are made from the pairs.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from differad.boxes import Boxes
from differad.core import Pair
from differad.data.copies import FileComparer
from differad.data.manifest import write_pairs
from differad.data.output_folder import OutputFolder, claim_folder
from differad.data.pairing import Embed, Match, Pairing, choose_targets, match_samples
from differad.data.placing import FILES, FileStore, check_boxes, check_sample, read_union, relative, sample_boxes
from differad.data.sources.registry import find_source
from differad.data.sources.sample import ProblemList, Problems, Sample, is_storable, refuse, try_or_report
from differad.errors import InputError, ManifestError, OptionError
from differad.images import image_size
from differad.options import check_option, option
from differad.progress import track

MANIFEST = "pairs.jsonl"
# What a build writes beside images and masks.
RESULTS = (MANIFEST, "card.json", "card.md", "checksums.sha256", "sheet.html")
UNMASKED = ("error", "unknown")
# Decoding lets go of the interpreter, so that a check uses the cores that there are.
_CHECKERS = min(8, os.cpu_count() or 1)
_Truth = tuple[Boxes | None, Path | None]


@dataclass(frozen=True)
class BuildOptions:
    """What `build` does beyond pairing."""

    pairing: Pairing = field(default_factory=Pairing)
    boxes: bool = option(True, "take boxes from masks now; else a mask is left to whoever reads the manifest")
    check: bool = option(False, "decode every image and mask first")
    sizes: bool = option(True, "read the header of each target with boxes of its own and see that they lie inside")
    files: str = option("point", "point at the files, copy them, or link them (hard, else symbolic) under the output")
    skip_bad: bool = option(False, "list what is wrong and go on without it")
    unmasked: str = option("error", "defect without a mask where others have one: error, or unknown (place unknown)")
    categories: tuple[str, ...] = option((), "categories to take; none takes all")
    group: str | None = option(None, "structure group, written into every pair")

    def __post_init__(self) -> None:
        check_option("files", self.files, self.files in FILES, f"one of {', '.join(FILES)}")
        check_option("unmasked", self.unmasked, self.unmasked in UNMASKED, f"one of {', '.join(UNMASKED)}")


@dataclass(frozen=True, eq=False)
class Built:
    """What a build gave: the pairs as they were written, and what was left out with the reason."""

    pairs: list[Pair]
    samples: int
    problems: list[str]

    def summary(self) -> dict[str, Any]:
        """Counts as JSON has them."""
        normal = sum(pair.anomalous is False for pair in self.pairs)
        return {
            "samples": self.samples,
            "pairs": len(self.pairs),
            "anomalous": len(self.pairs) - normal,
            "place_unknown": sum(is_place_unknown(pair) for pair in self.pairs),
            "normal": normal,
            "skipped": len(self.problems),
            "problems": self.problems,
        }


def build(
    source: str,
    root: str | Path,
    out: str | Path,
    options: BuildOptions | None = None,
    *,
    embed: Embed | None = None,
    progress: bool = True,
    force: bool = False,
    finish: Callable[[Built], None] | None = None,
) -> Built:
    """Read the data set `source` below `root`, pair it and write `pairs.jsonl` into the new or empty folder `out`.

    `embed` replaces the look of an image where references are chosen by nearness. `force` starts over what a killed build
    left in `out`. `finish` is called before the folder counts as finished. Raises OptionError, InputError where
    `out` is in use, and ManifestError or ImageError on the first thing that is wrong unless `skip_bad` lists it.
    """
    with claim_folder(out, force=force) as folder:
        folder.record(*(folder.path / name for name in RESULTS))
        built = _build_into(folder, source, Path(root), options or BuildOptions(), embed, progress)
        if finish is not None:
            finish(built)
    return built


def _build_into(
    folder: OutputFolder, source: str, root: Path, options: BuildOptions, embed: Embed | None, progress: bool
) -> Built:
    problems = ProblemList()
    tell = problems if options.skip_bad else refuse
    samples = read_samples(source, root, options, tell, progress=progress)
    placer = FileStore(root, folder.path, options.files, record=folder.record)
    pairs = list(make_pairs(source, samples, placer, options, tell, embed=embed, progress=progress))
    write_manifest(folder.path / MANIFEST, pairs)
    return Built(pairs, len(samples), problems.messages)


def is_place_unknown(pair: Pair) -> bool:
    """Whether a pair is abnormal and neither boxes nor a mask say where."""
    return pair.anomalous is True and pair.boxes is None and pair.mask is None


def write_manifest(path: Path, pairs: Sequence[Pair]) -> None:
    """Write pairs as a manifest. Raises ManifestError, also where there is none, and WriteError."""
    if not pairs:
        raise ManifestError(f"{path}: no pair to write; every sample was left out or has no reference (--pairing)")
    write_pairs(path, pairs)


def read_samples(
    source: str, root: Path, options: BuildOptions, problems: Problems = refuse, *, progress: bool = True
) -> list[Sample]:
    """The samples of a data set that can be used, each image once. Raises OptionError, ManifestError, ImageError."""
    entry = find_source(source)
    read = entry.read
    if options.unmasked == "unknown":
        if entry.read_unmasked is None:
            raise OptionError(
                f"--unmasked unknown: {source} needs a mask or boxes for each defect; leave the option out"
            )
        read = entry.read_unmasked
    if not is_storable(str(root)):
        raise InputError(f"{str(root)!r}: not UTF-8; a manifest could not name it, so rename the folder")
    found = list(track(read(root, problems), f"reading {source}", shown=progress))
    known = {sample.category for sample in found}
    for name in options.categories:
        if name not in known:
            raise OptionError(f"category {name!r}: not in {root}; expected some of {', '.join(sorted(known))}")
    wanted = [sample for sample in found if not options.categories or sample.category in options.categories]
    samples = list(_agreeing(list(_distinct(wanted, root, problems)), problems))
    return list(_sound(samples, problems, progress)) if options.check else samples


def make_pairs(
    source: str,
    samples: Sequence[Sample],
    placer: FileStore,
    options: BuildOptions,
    problems: Problems = refuse,
    *,
    embed: Embed | None = None,
    progress: bool = True,
) -> Iterator[Pair]:
    """Pair samples of one data set; files that pairs need are placed as they are made.

    Raises OptionError, and ManifestError or ImageError through `problems`.
    """
    total = len(choose_targets(samples, options.pairing)) * options.pairing.references
    matches = match_samples(samples, options.pairing, problems, embed=embed)
    truth: tuple[Sample, _Truth | None] | None = None
    for match in track(matches, f"pairing {source}", total, shown=progress):
        # The references of one target follow each other: its mask is read, or reported, once.
        if truth is None or truth[0] is not match.target:
            truth = match.target, try_or_report(problems, _truth, match.target, placer, options)
        if truth[1] is not None:
            pair = try_or_report(problems, _pair, source, match, placer, *truth[1], options.group)
            if pair is not None:
                yield pair


def _truth(target: Sample, placer: FileStore, options: BuildOptions) -> _Truth:
    """Boxes and mask of a target; boxes are left to its mask where that is allowed and possible, or unknown."""
    if target.place_unknown:
        return None, None
    one_file = len(target.masks) == 1 and target.region is None
    if one_file and target.boxes is None and not options.boxes:
        return None, placer.mask(target, None)
    union = read_union(target) if target.masks and not (one_file and target.boxes is not None) else None
    boxes = sample_boxes(target, union)
    if target.boxes is not None and target.region is None and options.sizes and not target.is_normal:
        boxes = check_boxes(target, boxes, *image_size(target.image))
    return boxes, placer.mask(target, union)


def _pair(
    source: str, match: Match, placer: FileStore, boxes: Boxes | None, mask: Path | None, group: str | None
) -> Pair:
    target, reference = match.target, match.reference
    facts = {
        "source": source,
        "kind": target.defect_type,
        "split": target.split,
        "view": target.view,
        # The source's name makes the part known beyond this manifest.
        "product": f"{source}/{target.instance_id}" if target.instance_id else "",
        "reference_product": f"{source}/{reference.instance_id}" if reference.instance_id else "",
    }
    rank = f"#{match.rank}" if match.rank else ""
    return Pair(
        reference=placer.image(reference),
        target=placer.image(target),
        id=f"{source}/{placer.name(target)}{rank}",
        category=target.category,
        boxes=boxes,
        mask=mask,
        group=group,
        anomalous=not target.is_normal,
        extra={name: value for name, value in facts.items() if value},
    )


def _distinct(samples: Sequence[Sample], root: Path, problems: Problems) -> Iterator[Sample]:
    """Samples that lie below the root, each once; none of those that stand as good and as defective."""
    found: dict[tuple[str, object], list[Sample]] = {}
    for sample in samples:
        place = try_or_report(problems, _place, sample, root)
        if place is not None:
            found.setdefault(place, []).append(sample)
    for members in found.values():
        if len({sample.is_normal for sample in members}) > 1:
            problems(f"{members[0].image}: listed as good and as defective; correct the labels that name it")
            continue
        for sample in members[1:]:
            problems(f"{sample.image}: listed twice; expected each image once, so correct the labels that name it")
        yield members[0]


def _agreeing(samples: Sequence[Sample], problems: Problems) -> Iterator[Sample]:
    """Samples of which no copy, byte by byte, is labelled otherwise."""
    # Tiles of one strip may differ.
    normal = {sample.image: sample.is_normal for sample in samples if sample.region is None}
    groups = try_or_report(
        problems, FileComparer().copies, normal, lambda group: len({normal[path] for path in group}) > 1
    )
    bad: set[Path] = set()
    for group in groups or []:
        good, defective = ([path for path in group if normal[path] is wanted] for wanted in (True, False))
        problems(
            f"{good[0]}: the same file as {defective[0]}, but one is good and one defective; remove the one that is wrong"
        )
        bad.update(group)
    return (sample for sample in samples if sample.image not in bad)


def _place(sample: Sample, root: Path) -> tuple[str, object]:
    """What the sample's id is made of. Raises ManifestError where any of its files lies outside the root."""
    for path in (*sample.masks, *((sample.template,) if sample.template else ())):
        relative(path, root)
    name = relative(sample.image, root).as_posix()
    if not is_storable(name):
        raise ManifestError(f"{name!r}: not UTF-8; a manifest could not name it, so rename the file")
    return name, sample.region


def _sound(samples: Sequence[Sample], problems: Problems, progress: bool) -> Iterator[Sample]:
    """Samples whose files can be decoded and fit together."""
    with ThreadPoolExecutor(_CHECKERS) as pool:
        found = pool.map(_problem, samples)
        for sample, problem in zip(samples, track(found, "checking", len(samples), shown=progress), strict=True):
            if problem is None:
                yield sample
            else:
                problems(problem)


def _problem(sample: Sample) -> str | None:
    try:
        check_sample(sample)
    except InputError as error:
        return str(error)
    return None
