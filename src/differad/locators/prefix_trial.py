"""Test whether prefixes can be cached, and steps recorded, with the installed transformers.

A miniature of the model answers two targets that way and by plain `generate`; the logits of every token have to agree
(`agreement`).
"""

import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from differad.errors import InputWarning
from differad.locators import transformers_hooks as hooks
from differad.locators.agreement import disagreement, max_sum_rounding, size
from differad.locators.miniature import PAD, Sample, build_miniature, in_double, make_sample, same_random_state
from differad.locators.prefix import encode_prefix, generate_after, generate_whole, keeps_all, obstacle, records

_NEW_TOKENS = 4
# Logits (2, V) of each token that a model answers a sample with.
_Way = Callable[[Any, Sample], list[Tensor]]


def can_cache_prefixes(model: Any) -> bool:
    """Whether prefixes of a model's prompts can be cached; if the installed release prevents it, an InputWarning says why."""
    return _agrees(model, keeps_all, _with_cached_prefix, "remember_prefixes: prompts are encoded whole")


def can_record(model: Any) -> bool:
    """Whether a model's steps can be recorded on its device; if the installed release prevents it, an InputWarning says why."""
    return _agrees(model, _fits, _recorded, "tokens are launched kernel by kernel")


def _fits(model: Any) -> bool:
    return records(model, hooks.empty_cache(model))


def _agrees(model: Any, allows: Callable[[Any], bool], way: _Way, instead: str) -> bool:
    """Whether a model allows a way to answer that agrees with plain `generate`; else a warning says what is done `instead`."""
    try:
        if obstacle(model) is not None or not allows(model):
            return False
        with same_random_state(model.device), torch.no_grad():
            reason = _try(model, way)
    # A release may have changed anything, so any exception is possible; the plain way is then used, with a warning.
    except Exception as error:  # noqa: BLE001
        reason = f"{type(error).__name__}: {error}"
    if reason is not None:
        text = f"{instead}: with transformers {version('transformers')} the other way does not agree"
        warnings.warn(f"{text} ({' '.join(reason.split())[:200]})", InputWarning, stacklevel=2)
    return reason is None


def _try(model: Any, way: _Way) -> str | None:
    small = build_miniature(model).eval()
    precise = in_double(small)
    sample = make_sample(small, 1, torch.Generator().manual_seed(0))
    ways = zip(way(small, sample), _whole(small, sample), _whole(precise, sample), strict=True)
    for step, (tested, whole, exact) in enumerate(ways):
        if message := disagreement(
            f"logits of token {step}", tested, whole, exact, max_sum_rounding(small) * size(exact)
        ):
            return message
    return None


def _config() -> GenerationConfig:
    return GenerationConfig(max_new_tokens=_NEW_TOKENS, do_sample=False, pad_token_id=PAD)


def _whole(model: Any, sample: Sample) -> list[Tensor]:
    """Logits (2, V) of each new token after two prompts with one reference, encoded whole."""
    logits: list[Tensor] = []
    model.generate(**_inputs(model, sample), generation_config=_config(), logits_processor=[_LogitsRecorder(logits)])
    return logits


def _recorded(model: Any, sample: Sample) -> list[Tensor]:
    """The same logits by recorded steps."""
    logits: list[Tensor] = []
    generate_whole(model, _inputs(model, sample), _config(), [_LogitsRecorder(logits)])
    return logits


def _inputs(model: Any, sample: Sample) -> dict[str, Tensor]:
    """A model's inputs for two whole prompts and their images."""
    sample = sample.to(model.device)
    begin, ends = _split_prompts(sample)
    ids, mask = _padded([begin + end for end in ends], sample)
    reference, targets = _images(sample)
    pairs = [image for target in targets for image in (reference, target)]
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": (ids == sample.image_token).int(),
        "pixel_values": torch.cat([patches for patches, _ in pairs]),
        "image_grid_thw": torch.cat([grid for _, grid in pairs]),
    }


def _with_cached_prefix(model: Any, sample: Sample) -> list[Tensor]:
    """The same logits with the prefix cached."""
    logits: list[Tensor] = []
    begin, ends = _split_prompts(sample)
    first, _ = _padded([begin], sample)
    reference, targets = _images(sample)
    prefix = encode_prefix(model, first, (first == sample.image_token).int(), *reference)
    ids, mask = _padded(ends, sample)
    patches, grids = (torch.cat(parts) for parts in zip(*targets, strict=True))
    kinds = (ids == sample.image_token).int()
    generate_after(model, prefix, ids, mask, kinds, patches, grids, _config(), [_LogitsRecorder(logits)])
    return logits


class _LogitsRecorder:
    """A logits processor that records them unchanged, on the CPU."""

    def __init__(self, logits: list[Tensor]) -> None:
        self._logits = logits

    def __call__(self, _ids: Tensor, scores: Tensor) -> Tensor:
        self._logits.append(scores.cpu())
        return scores


def _split_prompts(sample: Sample) -> tuple[list[int], list[list[int]]]:
    """The first prompt up to the end of its first image, and the rest of each prompt."""
    ends = [_end_of_image(row, sample.image_token) for row in sample.prompts]
    return sample.prompts[0][: ends[0]], [row[end:] for row, end in zip(sample.prompts, ends, strict=True)]


def _end_of_image(row: list[int], token: int) -> int:
    begin = row.index(token)
    return next(index for index in range(begin, len(row)) if row[index] != token)


def _images(sample: Sample) -> tuple[tuple[Tensor, Tensor], list[tuple[Tensor, Tensor]]]:
    """Patches and grid of the first prompt's reference, and of each prompt's target."""
    parts = torch.split(sample.patches, sample.grids.prod(dim=1).tolist())
    images = list(zip(parts, torch.split(sample.grids, 1), strict=True))
    return images[0], images[1::2]


def _padded(rows: list[list[int]], sample: Sample) -> tuple[Tensor, Tensor]:
    """Tokens and mask (B, L), padded on the left."""
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows], device=sample.patches.device)
    return ids, (ids != PAD).long()
