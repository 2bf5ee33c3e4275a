"""The origin of a checkpoint, in its `run_info.json`: recipe, data checksums, versions, commit.

The file is written last and atomically, so a checkpoint that has it is complete. An interrupted checkpoint lacks it, and no run
resumes from it. Knows nothing of models or trainers.
"""

import json
import platform
import shutil
from collections.abc import Container, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from differad.errors import OptionError
from differad.files import sync_tree, write_text
from differad.training.recipe import Recipe

RUN_INFO = "run_info.json"
PACKAGES = ("differad", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "numpy")
# Keys that may differ in a resumed run: its length, and its logging.
_FREE_TRAIN = (
    "steps",
    "epochs",
    "minutes",
    "log_every",
    "save_every",
    "keep",
    "report_to",
    "samples_every",
    "samples",
    "workers",
)
_FREE = {"": ("out", "held_out"), "train.": _FREE_TRAIN}


def describe_run(
    recipe: Recipe, checksums: Mapping[str, str], processes: int, inputs: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Everything that a run's losses depend on, JSON-ready. `inputs`: hashes of images and weights, None if not known."""
    return {
        "recipe": recipe.model_dump(mode="json"),
        "data": dict(checksums),
        "processes": processes,
        "inputs": None if inputs is None else dict(inputs),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "commit": git_commit(Path(__file__)),
    }


def write_run_info(folder: Path, run: Mapping[str, Any], step: int) -> None:
    """Flush the checkpoint in `folder` to the disk, then mark it as complete. Raises WriteError."""
    sync_tree(folder)
    write_text(folder / RUN_INFO, json.dumps({"step": step, **run}, indent=2) + "\n")


def read_run_info(folder: Path) -> dict[str, Any]:
    """The run info of a complete checkpoint. Raises OSError, ValueError."""
    return dict(json.loads((folder / RUN_INFO).read_text(encoding="utf-8")))


def complete_checkpoints(out: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    folders = [folder for folder in out.glob("checkpoint-*") if (folder / RUN_INFO).is_file()]
    return sorted(folders, key=lambda folder: int(folder.name.rpartition("-")[2]))


def discard_unfinished(out: Path, earlier: Container[Path]) -> None:
    """Remove incomplete checkpoints of a run, except `earlier` ones."""
    for folder in out.glob("checkpoint-*"):
        if folder not in earlier and not (folder / RUN_INFO).is_file():
            shutil.rmtree(folder, ignore_errors=True)


def find_start(
    out: Path, run: Mapping[str, Any], resume: bool, changed_files: Mapping[str, str] | None = None
) -> Path | None:
    """The checkpoint to resume from; None for a new start. Raises OptionError if the checkpoint does not fit the run.

    A run killed before its first checkpoint starts again. Without `resume`, `out` must contain no checkpoint.
    `changed_files` names one changed file of each kind of input, for the message.
    """
    checkpoints = complete_checkpoints(out)
    if not checkpoints:
        return None
    if not resume:
        raise OptionError(f"{out}: holds {checkpoints[-1].name} of an earlier run; pass --resume or another out=FOLDER")
    last = checkpoints[-1]
    earlier = read_run_info(last)
    changed = [key for key in ("recipe", "data", "processes") if _fixed(earlier, key) != _fixed(run, key)]
    if changed:
        what = _first_change(earlier["recipe"], run["recipe"]) if changed[0] == "recipe" else changed[0]
        raise OptionError(f"{last}: was made with another {what}; put it back, or start anew with out=FOLDER")
    for kind, content in (run["inputs"] or {}).items():
        if (earlier.get("inputs") or {}).get(kind) != content:
            name = (changed_files or {}).get(kind)
            what = f"{kind} ({name} has changed)" if name else kind
            raise OptionError(f"{last}: was made with other {what}; put them back, or start anew with out=FOLDER")
    return last


def git_commit(path: Path) -> str | None:
    """The current commit of the checkout around `path`, read from its files; None outside a checkout."""
    root = next((parent for parent in path.resolve().parents if (parent / ".git").exists()), None)
    if root is None:
        return None
    folder = root / ".git"
    if folder.is_file():  # a worktree: the file names the real folder
        folder = root / folder.read_text().removeprefix("gitdir:").strip()
    head = (folder / "HEAD").read_text().strip()
    if not head.startswith("ref:"):
        return head
    name = head.removeprefix("ref:").strip()
    common = folder / "commondir"
    shared = folder / common.read_text().strip() if common.is_file() else folder
    for path in (folder / name, shared / name):
        if path.is_file():
            return path.read_text().strip()
    packed = shared / "packed-refs"
    lines = packed.read_text().splitlines() if packed.is_file() else []
    return next((line.split()[0] for line in lines if line.endswith(f" {name}")), None)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _fixed(run: Mapping[str, Any], key: str) -> Any:
    """The part of a run's description that must be equal to resume."""
    if key != "recipe":
        return run[key]
    recipe = {name: value for name, value in run["recipe"].items() if name not in _FREE[""]}
    return recipe | {"train": {name: value for name, value in recipe["train"].items() if name not in _FREE_TRAIN}}


def _first_change(earlier: Mapping[str, Any], now: Mapping[str, Any], above: str = "") -> str:
    """The dotted key of the first different value."""
    for key in {**earlier, **now}:
        old, new = earlier.get(key), now.get(key)
        if old == new or key in _FREE.get(above, ()):
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            return _first_change(old, new, f"{above}{key}.")
        return f"{above}{key} ({old!r}, now {new!r})"
    return "recipe"
