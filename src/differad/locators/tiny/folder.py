"""Read and check the folder of an embedded policy before anything is computed.

Every error is one line with the file and what is missing. Needs neither torch nor transformers; knows nothing of how the
policy computes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from differad.answers.formats import TINY_MODEL_TYPE
from differad.errors import OptionError
from differad.locators.features.weights import read_safetensors

CONFIG, WEIGHTS_FILE, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
# Either of the two holds the settings of the image processor.
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
# Where a training run leaves its policy, below its own folder.
_RESULT = "model"


@dataclass(frozen=True)
class PolicyFiles:
    """The settings, tokens by their text, and weights (float32) of a policy's folder."""

    settings: Mapping[str, Any]
    tokens: Mapping[str, int]
    weights: Mapping[str, NDArray[np.float32]]


def holds_policy(folder: Path) -> bool:
    """Whether a folder's config.json is that of an embedded policy; the folder may lack something else."""
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and settings.get("model_type") == TINY_MODEL_TYPE


def result_below(folder: Path) -> Path | None:
    """The policy or checkpoint below a training run's `folder`; None if `folder` is one itself or there is none."""
    below = folder / _RESULT
    return below if _holds(below / CONFIG) and not _holds(folder / CONFIG) else None


def read_policy(folder: Path) -> PolicyFiles:
    """The files of the policy in `folder`, checked. Raises OptionError, InputError."""
    settings = _settings(folder)
    missing = [name for name in (WEIGHTS_FILE, TOKENIZER) if not _holds(folder / name)]
    if not any(_holds(folder / name) for name in PROCESSORS):
        missing.append(PROCESSORS[0])
    if missing:
        raise OptionError(f"{folder}: no {', '.join(missing)}; expected the whole folder of an embedded policy")
    weights = read_safetensors(folder / WEIGHTS_FILE, "copy the policy again, or train it again")
    return PolicyFiles(settings, _tokens(folder / TOKENIZER), weights)


def _settings(folder: Path) -> dict[str, Any]:
    if not _holds(folder / CONFIG):
        below = result_below(folder)
        remedy = f"the run's policy is {below}" if below else "expected the folder of an embedded policy"
        what = f"no {CONFIG}" if _holds(folder) else "no such folder"
        raise OptionError(f"{folder}: {what}; {remedy}")
    settings = _read_json(folder / CONFIG)
    model_type = settings.get("model_type")
    if model_type != TINY_MODEL_TYPE:
        raise OptionError(
            f"{folder}: model type {model_type!r}; expected an embedded policy ({TINY_MODEL_TYPE!r}), for other checkpoints "
            f"pass the folder alone: --model {folder}"
        )
    return settings


def _tokens(path: Path) -> dict[str, int]:
    tokenizer = _read_json(path)
    try:
        return {**tokenizer["model"]["vocab"], **{each["content"]: each["id"] for each in tokenizer["added_tokens"]}}
    except (KeyError, TypeError):
        raise OptionError(f"{path}: no tokens in it; expected the tokenizer of an embedded policy") from None


def _holds(path: Path) -> bool:
    """Whether a file or folder exists; one without permission to access counts as missing."""
    try:
        return path.exists()
    except OSError:
        return False


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"{path}: cannot be read as JSON ({error}); copy it from the checkpoint") from None
    if not isinstance(content, dict):
        raise OptionError(f"{path}: holds {type(content).__name__}; expected the object of a checkpoint")
    return content
