"""What a run's answers depend on, as JSON: model, weights, options, manifests; and what of it differs between two runs.

Text among the options is kept as a hash only, since it may be a secret; the user and password of an address are left out.
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
# Options that change how long an answer takes, not the answer.
_SPEED = frozenset(
    {"workers", "concurrency", "timeout", "deadline", "retries", "batch_size", "remember_prefixes", "api_key_env"}
)
# Files of a checkpoint's folder that its answers depend on.
_WEIGHTS = frozenset({".safetensors", ".json", ".txt", ".model", ".jinja"})


def describe_run(locator: Locator, manifests: Iterable[Path], earlier: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the answers of `locator` on `manifests` depend on, images left out.

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
        "weights": {name: list(astuple(one)) for name, one in stamp_weights(weights, recorded).items()},
        "manifests": {str(path.resolve()): _manifest_hash(path) for path in manifests},
    }


def changes(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two descriptions, in words; no value of an option that is text."""
    if earlier["model"] != now["model"]:
        # Its options and weights are others anyway.
        return [f"model ({earlier['model']}, now {now['model']})"]
    changed = []
    if earlier["differad"] != now["differad"]:
        changed.append(f"version of differad ({earlier['differad']}, now {now['differad']})")
    options = _differing(earlier["options"], now["options"])
    if options:
        named = [_option_change(name, earlier["options"].get(name), now["options"].get(name)) for name in options]
        changed.append(" ".join(["options", *(f"({name})" for name in [", ".join(filter(None, named))] if name)]))
    contents = [{name: values[-1] for name, values in run["weights"].items()} for run in (earlier, now)]
    weights = _differing(*contents) or _differing({"revision": earlier["revision"]}, {"revision": now["revision"]})
    if weights:
        changed.append(f"weights ({weights[0]})")
    manifests = _differing(earlier["manifests"], now["manifests"])
    if manifests:
        changed.append(f"manifests ({manifests[0]})")
    return changed


def weight_files(places: Iterable[Path]) -> dict[str, Path]:
    """The files that answers depend on, by folder and name: each of `places`, or what lies in it where it is a folder."""
    files: dict[str, Path] = {}
    for place in places:
        inside = sorted(place.iterdir()) if place.is_dir() else [place]
        files |= {f"{path.parent.name}/{path.name}": path for path in inside if path.suffix in _WEIGHTS}
    return files


def stamp_weights(files: Mapping[str, Path], earlier: Mapping[str, Stamp]) -> dict[str, Stamp]:
    """The stamps of weights by name. Raises InputError where one cannot be read."""
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
    named = (option.name for option in list_options(type(options)))
    values = {name: attrgetter(name)(options) for name in named if name.rpartition(".")[2] not in _SPEED}
    return {name: one if isinstance(one, int | float | None) else _hash(one) for name, one in values.items()}


def _hash(value: object) -> str:
    return f"hash {hashlib.blake2b(repr(value).encode(), digest_size=16).hexdigest()}"


def _option_change(name: str, earlier: object, now: object) -> str:
    shown = name and not any(isinstance(value, str) for value in (earlier, now))
    return f"{name} {earlier}, now {now}" if shown else name


def _differing(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [name for name in {**earlier, **now} if earlier.get(name) != now.get(name)]
