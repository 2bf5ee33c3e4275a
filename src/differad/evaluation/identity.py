"""Description of a run as JSON (model, weights, options, manifests), and the differences between two runs.

Options that are text are stored as a hash, since they may be secrets; the user and password of an address are omitted.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import astuple, is_dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import differad
from differad.data.stamps import Stamp, content_hash, stamp_files
from differad.errors import InputError, ManifestError
from differad.locators import Locator
from differad.options import list_options
from differad.text import without_user_info

FORMAT = "differad run 1"
# Options that change the time of an answer, not the answer.
_SPEED = frozenset(
    {"workers", "concurrency", "timeout", "deadline", "retries", "batch_size", "remember_prefixes", "api_key_env"}
)
# Endings of files of a checkpoint's folder that its answers depend on.
_WEIGHTS = frozenset({".safetensors", ".json", ".txt", ".model", ".jinja"})


def describe_run(locator: Locator, manifests: Iterable[Path], earlier: Mapping[str, Any] | None) -> dict[str, Any]:
    """Everything except images that the answers of `locator` on `manifests` depend on.

    Weights that have not changed since `earlier` are not read again. Raises InputError, ManifestError.
    """
    weights = weight_files(getattr(locator, "weights", ()))
    recorded = {name: Stamp(*values) for name, values in (earlier or {}).get("weights", {}).items()}
    return {
        "format": FORMAT,
        "differad": differad.__version__,
        "model": without_user_info(locator.name),
        "revision": getattr(locator, "revision", None),
        "options": _plain(getattr(locator, "options", None)),
        "weights": {name: list(astuple(entry)) for name, entry in stamp_weights(weights, recorded).items()},
        "manifests": {str(path.resolve()): _manifest_hash(path) for path in manifests},
    }


def changes(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences between two descriptions as text, without values of options that are text."""
    if earlier["model"] != now["model"]:
        # Options and weights of another model differ anyway.
        return [f"model ({earlier['model']}, now {now['model']})"]
    changed = []
    if earlier["differad"] != now["differad"]:
        changed.append(f"version of differad ({earlier['differad']}, now {now['differad']})")
    options = _differing(earlier["options"], now["options"])
    if options:
        details = [_option_change(name, earlier["options"].get(name), now["options"].get(name)) for name in options]
        listed = ", ".join(filter(None, details))
        changed.append(f"options ({listed})" if listed else "options")
    contents = [{name: values[-1] for name, values in run["weights"].items()} for run in (earlier, now)]
    weights = _differing(*contents) or _differing({"revision": earlier["revision"]}, {"revision": now["revision"]})
    if weights:
        changed.append(f"weights ({weights[0]})")
    manifests = _differing(earlier["manifests"], now["manifests"])
    if manifests:
        changed.append(f"manifests ({manifests[0]})")
    return changed


def weight_files(paths: Iterable[Path]) -> dict[str, Path]:
    """The files that answers depend on, by folder and name: each of `paths`, or the files in it if it is a folder."""
    files: dict[str, Path] = {}
    for path in paths:
        contents = sorted(path.iterdir()) if path.is_dir() else [path]
        files |= {f"{file.parent.name}/{file.name}": file for file in contents if file.suffix in _WEIGHTS}
    return files


def stamp_weights(files: Mapping[str, Path], earlier: Mapping[str, Stamp]) -> dict[str, Stamp]:
    """The stamps of weights by name. Raises InputError if one cannot be read."""
    try:
        return stamp_files(files, earlier)
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}); expected the model's weights") from None


def _manifest_hash(path: Path) -> str:
    try:
        return content_hash(path)
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); expected a file of JSON lines") from None


def _plain(options: Any) -> dict[str, Any]:
    if options is None:
        return {}
    if not is_dataclass(options):
        return {"": _hash(options)}
    names = (option.name for option in list_options(type(options)))
    values = {name: attrgetter(name)(options) for name in names if name.rpartition(".")[2] not in _SPEED}
    return {name: value if isinstance(value, int | float | None) else _hash(value) for name, value in values.items()}


def _hash(value: object) -> str:
    return f"hash {hashlib.blake2b(repr(value).encode(), digest_size=16).hexdigest()}"


def _option_change(name: str, earlier: object, now: object) -> str:
    has_values = name and not any(isinstance(value, str) for value in (earlier, now))
    return f"{name} {earlier}, now {now}" if has_values else name


def _differing(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [name for name in {**earlier, **now} if earlier.get(name) != now.get(name)]
