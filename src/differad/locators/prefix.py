"""Prefix caching: the beginning of a prompt, system text and reference, is encoded once for all targets that share it.

Its keys and values are cached; target, question and answer run against them. Attention has the same keys at the same positions as
for a prompt that is encoded whole, so that logits are equal up to rounding. Also: the reasons why a model does not allow it.

Knows nothing of images, texts or boxes. Raises nothing of its own.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from differad.locators import transformers_hooks as hooks
from differad.locators.grouped import decoding_groups


@dataclass(frozen=True, eq=False)
class Prefix:
    """An encoded prefix: its tokens (1, L), their types (1, L), its images' grids (M, 3), keys and values of each layer."""

    ids: Tensor
    types: Tensor
    grids: Tensor
    layers: list[tuple[Tensor, Tensor]]


def obstacle(model: Any, *, cached: bool = True, learns: bool = False) -> str | None:
    """Why prefixes of a model cannot be shared, in words; None if they can.

    `cached`: a cache is to hold them. `learns`: the pass is differentiated.
    """
    if not hasattr(getattr(model, "model", None), "get_rope_index"):
        return f"{type(model).__name__} gives no positions of images (get_rope_index)"
    if not hasattr(model.model, "visual") or "mm_encoder_outputs" not in signature(type(model).forward).parameters:
        return f"{type(model).__name__} takes no image features (mm_encoder_outputs)"
    if not hooks.can_repeat(hooks.empty_cache(model)):
        return f"{type(model).__name__} has a cache whose rows cannot be repeated (reorder_cache)"
    if learns and not keeps_all(model):
        return f"{type(model).__name__} has layers that do not keep the keys and values of every token"
    if (
        cached
        and model.training
        and any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    ):
        return "gradient checkpointing drops the prompt's cache before the answers use it"
    return None


def keeps_all(model: Any) -> bool:
    """Whether a model's cache holds every token: layers with a sliding window drop the prefix as the text grows."""
    return hooks.holds_every_token(hooks.empty_cache(model))


def encode_prefix(model: Any, ids: Tensor, types: Tensor, patches: Tensor, grids: Tensor) -> Prefix:
    """Encode tokens (1, L), of types (1, L), that contain images of patches (P, D) and grids (M, 3)."""
    cache = hooks.empty_cache(model)
    model(
        input_ids=ids,
        mm_token_type_ids=types,
        pixel_values=patches,
        image_grid_thw=grids,
        use_cache=True,
        logits_to_keep=1,
        **hooks.cache_input(model, cache),
    )
    return Prefix(ids, types, grids, hooks.keys_and_values(cache))


def generate_after(
    model: Any,
    prefix: Prefix,
    ids: Tensor,
    mask: Tensor,
    types: Tensor,
    patches: Tensor,
    grids: Tensor,
    config: GenerationConfig,
    processors: list[Any],
) -> Tensor:
    """As `generate` for rows (B, T) after one prefix; returns the new tokens (B, C).

    Each row has one image, of `grids` (B, 3). Rows are padded on the left, that is between the prefix and the row.
    """
    rows, length = len(ids), prefix.ids.shape[1]
    full_ids = torch.cat([prefix.ids.expand(rows, -1), ids], dim=1)
    full_mask = torch.cat([mask.new_ones(rows, length), mask], dim=1)
    positions, deltas = model.model.get_rope_index(
        input_ids=full_ids,
        mm_token_type_ids=torch.cat([prefix.types.expand(rows, -1), types], dim=1),
        image_grid_thw=torch.cat([torch.cat([prefix.grids, grid[None]]) for grid in grids]),
        attention_mask=full_mask,
    )
    cache = hooks.empty_cache(model)
    one_prompt = torch.zeros(rows, dtype=torch.long, device=ids.device)
    for number, states in enumerate(prefix.layers):
        cache.update(*states, number)
    if records(model, cache):
        cache.reorder_cache(one_prompt)
    else:
        hooks.with_capacity(cache, one_prompt, ids.shape[1] + int(config.max_new_tokens or 0))
    model(
        input_ids=ids[:, :-1],
        attention_mask=full_mask[:, :-1],
        position_ids=positions[:, :, length:-1],
        pixel_values=patches,
        image_grid_thw=grids,
        mm_token_type_ids=types[:, :-1],
        use_cache=True,
        logits_to_keep=1,
        **hooks.cache_input(model, cache),
        **hooks.without_balance_loss(model),
    )
    return _decode(model, cache, full_ids, full_mask, deltas, config, processors)


def generate_whole(
    model: Any, inputs: dict[str, Tensor], config: GenerationConfig, processors: list[Any], *, fixed: bool | None = None
) -> Tensor:
    """As `generate(**inputs)` for prompts (B, L) padded on the left; returns the new tokens (B, C). Steps are recorded on a GPU.

    `fixed`: use buffers of fixed size on every device, as a recorded step needs them.
    """
    ids, mask, types = (inputs[name] for name in ("input_ids", "attention_mask", "mm_token_type_ids"))
    cache = hooks.empty_cache(model)
    _, deltas = model.model.get_rope_index(
        input_ids=ids, mm_token_type_ids=types, image_grid_thw=inputs["image_grid_thw"], attention_mask=mask
    )
    model(
        **inputs
        | {"input_ids": ids[:, :-1], "attention_mask": mask[:, :-1], "mm_token_type_ids": types[:, :-1]}
        | hooks.cache_input(model, cache)
        | hooks.without_balance_loss(model),
        use_cache=True,
        logits_to_keep=1,
    )
    return _decode(model, cache, ids, mask, deltas, config, processors, fixed=fixed)


def records(model: Any, cache: DynamicCache) -> bool:
    """Whether decoding steps are recorded: on a GPU, if the attention can be replaced and the cache holds every token."""
    return bool(model.device.type == "cuda") and hooks.holds_every_token(cache) and hooks.supports_masks(model)


def _decode(
    model: Any,
    cache: DynamicCache,
    ids: Tensor,
    mask: Tensor,
    deltas: Tensor,
    config: GenerationConfig,
    processors: list[Any],
    *,
    fixed: bool | None = None,
) -> Tensor:
    """New tokens (B, C) after prompts (B, L), of which `cache` holds all tokens but the last."""
    hooks.set_rope_deltas(model, deltas)
    with ExitStack() as stack:
        if fixed or records(model, cache):
            capacity = int(config.max_new_tokens or 0)
            # Each row is a group of its own.
            stack.enter_context(decoding_groups(model, cache, mask[:, :-1], 1, capacity, fixed=True))
        output: Tensor = model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=processors,
            **hooks.cache_input(model, cache),
            **hooks.without_balance_loss(model),
        )
    return output[:, ids.shape[1] :]
