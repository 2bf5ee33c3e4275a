"""From a data set on disk to `pairs.jsonl`: read samples, leave out invalid ones, pair, take boxes from masks, write.

Images stay in place and are never re-encoded; `placing` makes files only if a pair cannot point at an existing one.
Knows nothing about recipes, data cards or contact sheets, which are made from the pairs.
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
from differad.data.output_folder import OutputFolder, create_output_folder
from differad.data.pairing import Embed, Match, Pairing, choose_targets, match_samples
from differad.data.placing import FILES, FileStore, check_sample, clip_sample_boxes, read_union, relative, sample_boxes
from differad.data.sources.registry import find_source
from differad.data.sources.sample import ProblemList, Problems, Sample, is_storable, refuse, try_or_report
from differad.errors import InputError, ManifestError, OptionError
from differad.images import image_size
from differad.options import check_option, option
from differad.progress import track

MANIFEST = "pairs.jsonl"
# Files that a build writes, apart from images and masks.
RESULTS = (MANIFEST, "card.json", "card.md", "checksums.sha256", "sheet.html")
UNMASKED = ("error", "unknown")
# Decoding releases the interpreter lock, so threads use all cores.
_CHECK_THREADS = min(8, os.cpu_count() or 1)
_TargetLabels = tuple[Boxes | None, Path | None]


@dataclass(frozen=True)
class BuildOptions:
    """What `build` does beyond pairing."""

    pairing: Pairing = field(default_factory=Pairing)
    boxes: bool = option(True, "take boxes from masks now; else the reader of the manifest does")
    check: bool = option(False, "decode every image and mask first")
    sizes: bool = option(True, "read the header of each target with labelled boxes and check that they are inside")
    files: str = option("point", "point at the files, copy them, or link them (hard, else symbolic) under the output")
    skip_bad: bool = option(False, "list invalid samples and continue without them")
    unmasked: str = option("error", "defect without a mask where others have one: error, or unknown (place unknown)")
    categories: tuple[str, ...] = option((), "categories to use; none uses all")
    group: str | None = option(None, "structure group, written into every pair")

    def __post_init__(self) -> None:
        check_option("files", self.files, self.files in FILES, f"one of {', '.join(FILES)}")
        check_option("unmasked", self.unmasked, self.unmasked in UNMASKED, f"one of {', '.join(UNMASKED)}")


@dataclass(frozen=True, eq=False)
class Built:
    """The result of a build: the pairs as written, the number of samples, and a message for each sample left out."""

    pairs: list[Pair]
    samples: int
    problems: list[str]

    def summary(self) -> dict[str, Any]:
        """Counts as in the JSON output."""
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

    `embed` replaces the default descriptor that finds the nearest reference. `force` removes what a killed build left in
    `out` and starts over. `finish` is called before the folder counts as finished. Raises OptionError, InputError if
    `out` is in use, and ManifestError or ImageError on the first invalid sample unless `skip_bad` lists it.
    """
    with create_output_folder(out, force=force) as folder:
        folder.record(*(folder.path / name for name in RESULTS))
        built = _build_into(folder, source, Path(root), options or BuildOptions(), embed, progress)
        if finish is not None:
            finish(built)
    return built


def _build_into(
    folder: OutputFolder, source: str, root: Path, options: BuildOptions, embed: Embed | None, progress: bool
) -> Built:
    problems = ProblemList()
    report = problems if options.skip_bad else refuse
    samples = read_samples(source, root, options, report, progress=progress)
    store = FileStore(root, folder.path, options.files, record=folder.record)
    pairs = list(make_pairs(source, samples, store, options, report, embed=embed, progress=progress))
    write_manifest(folder.path / MANIFEST, pairs)
    return Built(pairs, len(samples), problems.messages)


def is_place_unknown(pair: Pair) -> bool:
    """Whether a pair is abnormal without boxes and mask, so that the place of the defect is unknown."""
    return pair.anomalous is True and pair.boxes is None and pair.mask is None


def write_manifest(path: Path, pairs: Sequence[Pair]) -> None:
    """Write pairs as a manifest. Raises ManifestError, also if there are no pairs, and WriteError."""
    if not pairs:
        raise ManifestError(f"{path}: no pair to write; every sample was left out or has no reference (--pairing)")
    write_pairs(path, pairs)


def read_samples(
    source: str, root: Path, options: BuildOptions, problems: Problems = refuse, *, progress: bool = True
) -> list[Sample]:
    """The usable samples of a data set, each image once. Raises OptionError, ManifestError, ImageError."""
    source_entry = find_source(source)
    read = source_entry.read
    if options.unmasked == "unknown":
        if source_entry.read_unmasked is None:
            raise OptionError(
                f"--unmasked unknown: {source} needs a mask or boxes for each defect; leave the option out"
            )
        read = source_entry.read_unmasked
    if not is_storable(str(root)):
        raise InputError(f"{str(root)!r}: not UTF-8; a manifest could not name it, so rename the folder")
    samples_of_set = list(track(read(root, problems), f"reading {source}", shown=progress))
    categories = {sample.category for sample in samples_of_set}
    for name in options.categories:
        if name not in categories:
            raise OptionError(f"category {name!r}: not in {root}; expected some of {', '.join(sorted(categories))}")
    chosen = [sample for sample in samples_of_set if not options.categories or sample.category in options.categories]
    samples = list(_without_contradictions(list(_without_duplicates(chosen, root, problems)), problems))
    return list(_decodable(samples, problems, progress)) if options.check else samples


def make_pairs(
    source: str,
    samples: Sequence[Sample],
    store: FileStore,
    options: BuildOptions,
    problems: Problems = refuse,
    *,
    embed: Embed | None = None,
    progress: bool = True,
) -> Iterator[Pair]:
    """Pair the samples of one data set; files that a pair needs are made together with it.

    Raises OptionError, and ManifestError or ImageError through `problems`.
    """
    total = len(choose_targets(samples, options.pairing)) * options.pairing.references
    matches = match_samples(samples, options.pairing, problems, embed=embed)
    labels_of: tuple[Sample, _TargetLabels | None] | None = None
    for match in track(matches, f"pairing {source}", total, shown=progress):
        # Matches of one target are consecutive, so its mask is read, or reported, once.
        if labels_of is None or labels_of[0] is not match.target:
            labels_of = match.target, try_or_report(problems, _target_labels, match.target, store, options)
        if labels_of[1] is not None:
            pair = try_or_report(problems, _pair, source, match, store, *labels_of[1], options.group)
            if pair is not None:
                yield pair


def _target_labels(target: Sample, store: FileStore, options: BuildOptions) -> _TargetLabels:
    """Boxes and mask of a target. Boxes are None if unknown, or if `options` leave them to the target's one mask file."""
    if target.place_unknown:
        return None, None
    one_file = len(target.masks) == 1 and target.region is None
    if one_file and target.boxes is None and not options.boxes:
        return None, store.mask(target, None)
    union = read_union(target) if target.masks and not (one_file and target.boxes is not None) else None
    boxes = sample_boxes(target, union)
    if target.boxes is not None and target.region is None and options.sizes and not target.is_normal:
        boxes = clip_sample_boxes(target, boxes, *image_size(target.image))
    return boxes, store.mask(target, union)


def _pair(
    source: str, match: Match, store: FileStore, boxes: Boxes | None, mask: Path | None, group: str | None
) -> Pair:
    target, reference = match.target, match.reference
    extra = {
        "source": source,
        "kind": target.defect_type,
        "split": target.split,
        "view": target.view,
        # With the source's name the id is unique beyond this manifest.
        "product": f"{source}/{target.instance_id}" if target.instance_id else "",
        "reference_product": f"{source}/{reference.instance_id}" if reference.instance_id else "",
    }
    rank = f"#{match.rank}" if match.rank else ""
    return Pair(
        reference=store.image(reference),
        target=store.image(target),
        id=f"{source}/{store.name(target)}{rank}",
        category=target.category,
        boxes=boxes,
        mask=mask,
        group=group,
        anomalous=not target.is_normal,
        extra={name: value for name, value in extra.items() if value},
    )


def _without_duplicates(samples: Sequence[Sample], root: Path, problems: Problems) -> Iterator[Sample]:
    """Samples below the root, each image once, without those that are listed both as normal and as defective."""
    by_key: dict[tuple[str, object], list[Sample]] = {}
    for sample in samples:
        key = try_or_report(problems, _sample_key, sample, root)
        if key is not None:
            by_key.setdefault(key, []).append(sample)
    for same_key in by_key.values():
        if len({sample.is_normal for sample in same_key}) > 1:
            problems(f"{same_key[0].image}: listed as good and as defective; correct the labels that name it")
            continue
        for sample in same_key[1:]:
            problems(f"{sample.image}: listed twice; expected each image once, so correct the labels that name it")
        yield same_key[0]


def _without_contradictions(samples: Sequence[Sample], problems: Problems) -> Iterator[Sample]:
    """Samples without a byte-identical copy that has the other label."""
    # Tiles of one strip may have different labels.
    normal = {sample.image: sample.is_normal for sample in samples if sample.region is None}
    groups = try_or_report(
        problems, FileComparer().copies, normal, lambda group: len({normal[path] for path in group}) > 1
    )
    contradicting: set[Path] = set()
    for group in groups or []:
        good, defective = ([path for path in group if normal[path] is wanted_label] for wanted_label in (True, False))
        problems(
            f"{good[0]}: the same file as {defective[0]}, but one is good and one defective; remove the one that is wrong"
        )
        contradicting.update(group)
    return (sample for sample in samples if sample.image not in contradicting)


def _sample_key(sample: Sample, root: Path) -> tuple[str, object]:
    """Relative path and region, which make the sample's id. Raises ManifestError if one of its files is outside the root."""
    for path in (*sample.masks, *((sample.template,) if sample.template else ())):
        relative(path, root)
    name = relative(sample.image, root).as_posix()
    if not is_storable(name):
        raise ManifestError(f"{name!r}: not UTF-8; a manifest could not name it, so rename the file")
    return name, sample.region


def _decodable(samples: Sequence[Sample], problems: Problems, progress: bool) -> Iterator[Sample]:
    """Samples whose files can be decoded and are consistent."""
    with ThreadPoolExecutor(_CHECK_THREADS) as pool:
        results = pool.map(_problem, samples)
        for sample, problem in zip(samples, track(results, "checking", len(samples), shown=progress), strict=True):
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
