"""A recipe: a YAML file with the categories of a benchmark, and for each its source, pairing and number of pairs.

`build_recipe` builds the categories whose data sets are present below a folder, and reports absent ones and how to get them.
The result is one manifest, whose `group` is the structure group, a data card and a contact sheet.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from differad.core import Pair
from differad.data.build import MANIFEST, RESULTS, BuildOptions, make_pairs, read_samples, write_manifest
from differad.data.card import files_of, make_card, write_card
from differad.data.output_folder import OutputFolder, create_output_folder
from differad.data.pairing import Embed, Pairing
from differad.data.placing import FileStore
from differad.data.sheet import write_sheet
from differad.data.sources.registry import SOURCES
from differad.data.sources.sample import ProblemList, Problems, Sample, refuse
from differad.data.yaml_text import load_yaml
from differad.errors import InputError, ManifestError, MissingExtraError, OptionError, WriteError

# States of a category without pairs.
_UNBUILT_STATES = ("absent", "unmatched", "broken")
_STRICT = ConfigDict(extra="forbid", frozen=True)


class Defaults(BaseModel):
    """Default values for every category."""

    model_config = _STRICT

    pairing: Literal["nearest", "random", "given"] = "nearest"
    references: int = Field(default=1, ge=1)
    normals: float = Field(default=0.5, ge=0, lt=1)
    seed: int = 0


class CategorySpec(BaseModel):
    """A category: its group, source, number of pairs, and which of the source's categories, views and defect types it takes.

    `from` lists the source's own categories (none takes all). Empty `views` and `kinds` (defect types) take all; `kinds` does
    not apply to normal samples.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    category: str = Field(min_length=1)
    group: str = Field(min_length=1)
    source: str
    names: tuple[str, ...] = Field(default=(), alias="from")
    views: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    count: int = Field(ge=1)
    pairing: Literal["nearest", "random", "given"] | None = None
    references: int | None = Field(default=None, ge=1)
    normals: float | None = Field(default=None, ge=0, lt=1)
    note: str = ""

    @field_validator("source")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in SOURCES:
            raise ValueError(f"no such source; expected one of {', '.join(sorted(SOURCES))}")
        return name

    def takes(self, sample: Sample) -> bool:
        """Whether a sample of the source belongs to this category."""
        return (
            (not self.names or sample.category in self.names)
            and (not self.views or sample.view in self.views)
            and (sample.is_normal or not self.kinds or sample.defect_type in self.kinds)
        )


class Recipe(BaseModel):
    """A benchmark as a list of categories."""

    model_config = _STRICT

    title: str = Field(min_length=1)
    note: str = ""
    defaults: Defaults = Defaults()
    categories: tuple[CategorySpec, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> "Recipe":
        names = [entry.category for entry in self.categories]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"category {twice!r} occurs twice; expected one entry each")
        return self

    def pairing(self, entry: CategorySpec) -> Pairing:
        """How the pairs of one category are made."""
        base = self.defaults
        return Pairing(
            method=entry.pairing or base.pairing,
            references=entry.references or base.references,
            normal_share=base.normals if entry.normals is None else entry.normals,
            count=entry.count,
            seed=base.seed,
        )


@dataclass
class CategoryResult:
    """The result for one category: "built", "short" of its count, or without pairs, with the reason and where to get the data.

    "absent": no folder; "unmatched": the folder holds nothing of the category; "broken": the folder cannot be read.
    """

    category: str
    group: str
    source: str
    wanted: int
    pairs: int = 0
    state: str = "absent"
    why: str = ""
    get: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The result as in the JSON output."""
        return dict(vars(self))


@dataclass
class RecipeResult:
    """The pairs, the result for each category, and a message for each sample left out."""

    pairs: list[Pair]
    outcomes: list[CategoryResult]
    problems: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Counts as in the JSON output."""
        return {
            "pairs": len(self.pairs),
            "wanted": sum(outcome.wanted for outcome in self.outcomes),
            "categories": [outcome.to_dict() for outcome in self.outcomes],
            "skipped": len(self.problems),
            "problems": self.problems,
        }


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe. Raises ManifestError naming the key, MissingExtraError without a YAML reader."""
    path = Path(path)
    try:
        document = load_yaml(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such file; expected a recipe in YAML, as recipes/ad_dualdiff.yaml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: cannot be read ({error}); expected a recipe in YAML") from None
    except MissingExtraError:
        raise
    except InputError as error:
        raise ManifestError(f"{path}: {error}; correct the recipe") from None
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "recipe"
        value = "" if first["type"] in ("missing", "model_type") else f" {str(first['input'])[:60]!r}:"
        raise ManifestError(f"{path}: {key}:{value} {first['msg']}") from None


def build_recipe(
    recipe: Recipe,
    root: str | Path,
    out: str | Path,
    options: BuildOptions | None = None,
    *,
    roots: Mapping[str, Path] | None = None,
    embed: Embed | None = None,
    checksums: bool = False,
    progress: bool = True,
    force: bool = False,
) -> RecipeResult:
    """Build the categories that are present below `root`/SOURCE, or below `roots[SOURCE]`, into the new folder `out`.

    Writes pairs.jsonl, card.json, card.md and sheet.html. The recipe's pairing, categories and groups replace those in
    `options`. `force` removes what a killed build left in `out` and starts over. Raises OptionError, InputError, ManifestError
    if nothing is present, and the error of an invalid file or data set unless `skip_bad` lists it.
    """
    options = options or BuildOptions()
    folders = _source_folders(recipe, Path(root), roots or {})
    with create_output_folder(out, force=force) as folder:
        folder.record(*(folder.path / name for name in RESULTS))
        return _build_into(folder, recipe, root, folders, options, embed, checksums=checksums, progress=progress)


def _build_into(
    folder: OutputFolder,
    recipe: Recipe,
    root: str | Path,
    folders: Mapping[str, Path],
    options: BuildOptions,
    embed: Embed | None,
    *,
    checksums: bool,
    progress: bool,
) -> RecipeResult:
    out = folder.path
    problems = ProblemList()
    report = problems if options.skip_bad else refuse
    built = RecipeResult(
        [], [_absent_result(entry, folders[entry.source]) for entry in recipe.categories], problems.messages
    )
    builder = _RecipeBuilder(recipe, options, folder, report, embed, progress)
    for source, folder_of_source in folders.items():
        if folder_of_source.is_dir():
            builder.run(source, folder_of_source, built.outcomes)
    built.pairs = [pair for entry in recipe.categories for pair in builder.pairs.get(entry.category, [])]
    if not built.pairs:
        raise ManifestError(_nothing_built_message(root, folders, built.outcomes))
    _refuse_shared(built.pairs)
    write_manifest(out / MANIFEST, built.pairs)
    card = {**make_card(built.pairs, recipe.title, progress=progress), **_notes(recipe, built.outcomes)}
    listed = files_of(built.pairs) if checksums else None
    write_card(out, card, out / MANIFEST, files=listed, progress=progress)
    write_sheet(out / "sheet.html", built.pairs, recipe.title, note=_summary_line(built.outcomes), progress=progress)
    return built


@dataclass
class _RecipeBuilder:
    """Builds the categories source by source and collects the pairs by category."""

    recipe: Recipe
    options: BuildOptions
    folder: OutputFolder
    problems: Problems
    embed: Embed | None
    progress: bool
    pairs: dict[str, list[Pair]] = field(default_factory=dict)

    def run(self, source: str, folder_of_source: Path, outcomes: Sequence[CategoryResult]) -> None:
        """Build every category of `source`, whose samples are read once. Raises ManifestError, ImageError."""
        # The categories of the data set are only known after reading, so the recipe's choice is made afterwards.
        whole = replace(self.options, categories=())
        try:
            samples = read_samples(source, folder_of_source, whole, self.problems, progress=self.progress)
        except WriteError:
            raise
        except InputError as error:  # the data set as a whole cannot be read
            self.problems(str(error))
            for outcome in outcomes:
                if outcome.source == source:
                    outcome.state, outcome.why = "broken", str(error)
            return
        # A folder per source: files of two data sets may have the same name.
        file_store = FileStore(
            folder_of_source, self.folder.path / source, self.options.files, record=self.folder.record
        )
        for entry, outcome in zip(self.recipe.categories, outcomes, strict=True):
            if entry.source == source:
                self._build(entry, outcome, samples, file_store)

    def _build(
        self, entry: CategorySpec, outcome: CategoryResult, samples: Sequence[Sample], file_store: FileStore
    ) -> None:
        samples_of_category = _as_one_category([sample for sample in samples if entry.takes(sample)], entry.category)
        if not samples_of_category:
            available = ", ".join(sorted({sample.category for sample in samples})) or "nothing"
            outcome.state, outcome.why = (
                "unmatched",
                f"nothing there fits {', '.join(entry.names) or 'the views and kinds asked for'}; there is {available}",
            )
            return
        options = replace(self.options, pairing=self.recipe.pairing(entry), group=entry.group)
        pairs = make_pairs(
            entry.source,
            samples_of_category,
            file_store,
            options,
            self.problems,
            embed=self.embed,
            progress=self.progress,
        )
        self.pairs[entry.category] = list(pairs)
        outcome.pairs = len(self.pairs[entry.category])
        outcome.state, outcome.why, outcome.get = "built", "", ""
        if outcome.pairs < outcome.wanted:
            outcome.state, outcome.why = (
                "short",
                f"{outcome.pairs} of {outcome.wanted} pairs; the data set holds no more",
            )


def _as_one_category(samples: Sequence[Sample], category: str) -> list[Sample]:
    """Samples as one category. If the source had several, each becomes a view, so that references stay within it."""
    if len({sample.category for sample in samples}) < 2:
        return [replace(sample, category=category) for sample in samples]
    return [
        replace(sample, category=category, view=f"{sample.category}/{sample.view}".rstrip("/")) for sample in samples
    ]


def _source_folders(recipe: Recipe, root: Path, roots: Mapping[str, Path]) -> dict[str, Path]:
    """The folder of each source that the recipe names, in order. Raises OptionError."""
    named = list(dict.fromkeys(entry.source for entry in recipe.categories))
    for name in roots:
        if name not in named:
            raise OptionError(f"source {name!r}: not in the recipe; expected one of {', '.join(named)}")
    return {name: Path(roots.get(name, root / name)) for name in named}


def _absent_result(entry: CategorySpec, folder_of_source: Path) -> CategoryResult:
    source = SOURCES[entry.source]
    return CategoryResult(
        entry.category,
        entry.group,
        entry.source,
        entry.count,
        why=f"no folder {folder_of_source}",
        get=f"{source.title}: {source.url} ({source.licence}); unpack as {source.layout}"
        + (f". {entry.note}" if entry.note else ""),
    )


def _refuse_shared(pairs: Sequence[Pair]) -> None:
    """Raise ManifestError if two categories take the same image, since ids in a manifest are unique."""
    taken: dict[str, str] = {}
    for pair in pairs:
        if pair.id in taken:
            raise ManifestError(
                f"categories {taken[pair.id]!r} and {pair.category!r} both take {pair.id}; expected each image in one, "
                "so separate them by from, views or kinds"
            )
        taken[pair.id] = pair.category


def _notes(recipe: Recipe, outcomes: Sequence[CategoryResult]) -> dict[str, Any]:
    """Notes for the card: the recipe's note, the notes of its categories, and which are absent or incomplete."""
    notes = [recipe.note] if recipe.note else []
    built = {outcome.category for outcome in outcomes if outcome.pairs}
    notes += [f"{e.category}: {e.note}" for e in recipe.categories if e.note and e.category in built]
    notes += [f"{o.category}: {o.state}, {o.why}" for o in outcomes if o.state != "built"]
    return {"notes": notes, "recipe": [outcome.to_dict() for outcome in outcomes]}


def _summary_line(outcomes: Sequence[CategoryResult]) -> str:
    by_state = {state: [one.category for one in outcomes if one.state == state] for state in _UNBUILT_STATES}
    return " ".join(f"{state.capitalize()}: {', '.join(names)}." for state, names in by_state.items() if names)


def _nothing_built_message(root: str | Path, folders: Mapping[str, Path], outcomes: Sequence[CategoryResult]) -> str:
    """The message if no pair was made: the first reason of a present data set, else the expected folder."""
    present = next((one for one in outcomes if one.state != "absent"), None)
    if present is not None:
        return f"{root}: no pair of the recipe could be built; the first reason, of {present.category!r}: {present.why}"
    return (
        f"{root}: holds no data set of the recipe; expected a folder such as {next(iter(folders.values()))} "
        "(docs/sources.md says where to get each)"
    )
