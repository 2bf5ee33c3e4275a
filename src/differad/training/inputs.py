"""The files that a run reads: manifests and checkpoints must exist; images, masks and weights are identified by content hash.

Size, time and hash of each file are in `inputs.jsonl` of the run's folder, so that a resumed run reads only files whose size
or time has changed. Knows nothing of models or trainers.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from itertools import islice
from pathlib import Path

from differad.data.manifest import read_pairs
from differad.data.stamps import Stamp, combined, file_of, stamp_files
from differad.errors import ManifestError, OptionError
from differad.evaluation.identity import weight_files
from differad.files import write_lines
from differad.locators.checkpoints import is_hub_id
from differad.training.recipe import Recipe

INPUTS = "inputs.jsonl"


@dataclass(frozen=True)
class InputFiles:
    """One content hash per kind (`images`, `weights`), the stamps by file, and the first changed file of each kind."""

    contents: dict[str, str]
    stamps: dict[str, Stamp]
    changed: dict[str, str]

    def write(self, out: Path) -> None:
        """Write the stamps to the run's folder. Raises WriteError."""
        write_lines(out / INPUTS, (json.dumps([name, *astuple(one)]) + "\n" for name, one in self.stamps.items()))


def check_present(recipe: Recipe) -> None:
    """Raise ManifestError or OptionError for a missing manifest or checkpoint folder, naming its key.

    Loads nothing, so a run fails at once.
    """
    for key, manifests in (("data.pairs", recipe.data.pairs), ("held_out.pairs", recipe.held_out.pairs)):
        missing = [path for path in manifests if not path.is_file()]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            what = "not a file" if missing[0].exists() else "no such file"
            raise ManifestError(
                f"{key}: {missing[0]}: {what}{more}; the recipe's first lines or docs/training.md say how to make it, or name "
                f"your own: '{key}=[FILE]'"
            )
    comparer = recipe.model.tiny.comparer if recipe.model.tiny is not None else None
    for key, checkpoint in (("model.checkpoint", recipe.model.start), ("model.tiny.comparer", comparer)):
        # A hub id has one slash; whether it exists shows at the download.
        if checkpoint is None or Path(checkpoint).expanduser().exists():
            continue
        if key != "model.checkpoint" or not is_hub_id(str(checkpoint)):
            raise OptionError(
                f"{key}: {checkpoint}: no such folder; train it first (the recipe's first lines say how), or name another: "
                f"{key}=FOLDER"
            )


def read_inputs(recipe: Recipe) -> InputFiles:
    """Hashes of the files that `recipe` reads, compared with those of an earlier run in its folder.

    A missing file raises no error here, only where it is opened. Raises OptionError, ManifestError.
    """
    earlier = _earlier(recipe.out / INPUTS)
    kinds = {"images": dict.fromkeys(_images(recipe)), "weights": dict.fromkeys(_weights(recipe))}
    stamps: dict[str, Stamp] = {}
    for files in kinds.values():
        present = {name: Path(name) for name in files if Path(name).is_file()}
        try:
            stamps |= stamp_files(present, earlier)
        except OSError as error:
            raise OptionError(f"{error.filename}: cannot be read ({error.strerror})") from None
    contents = {kind: combined(_content(stamps, name) for name in files) for kind, files in kinds.items()}
    changed = {
        kind: name
        for kind, files in kinds.items()
        for name in reversed(files)
        if name in earlier and _content(stamps, name) != earlier[name].content
    }
    return InputFiles(contents, stamps, changed)


def _content(stamps: Mapping[str, Stamp], name: str) -> str:
    return stamps[name].content if name in stamps else "missing"


def _images(recipe: Recipe) -> Iterator[str]:
    pairs = (pair for manifest in recipe.data.pairs for pair in read_pairs(manifest) if pair.boxes is not None)
    for pair in islice(pairs, recipe.data.limit):
        for image in (pair.reference, pair.target, pair.mask):
            path = None if image is None else file_of(image)
            if path is not None:
                yield str(path)


def _weights(recipe: Recipe) -> Iterator[str]:
    comparer = recipe.model.tiny.comparer if recipe.model.tiny is not None else None
    folders = [Path(folder).expanduser().absolute() for folder in (recipe.model.start, comparer) if folder is not None]
    yield from (str(path) for path in weight_files(folder for folder in folders if folder.exists()).values())


def _earlier(path: Path) -> dict[str, Stamp]:
    """The stamps in `path`; invalid lines are ignored, so their files are read again."""
    stamps = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    for line in lines:
        try:
            name, *values = json.loads(line)
            stamps[name] = Stamp(*values)
        except (ValueError, TypeError):
            continue
    return stamps
