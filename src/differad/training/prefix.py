"""Encode each distinct prompt once: completions of one group share its vision features and its key/value cache.

The G completions of a group repeat a long prompt with two images and differ in a few dozen tokens. This module runs each
distinct prompt once, without its last token. Every completion of the group gets that cache; only the last prompt token and the
completions run G times. Attention sees the same keys at the same positions. So sampled tokens, log-probabilities and gradients
equal those of the repeated prompt up to rounding.

Knows nothing of rewards, advantages or trainers.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from differad.locators import transformers_hooks as hooks
from differad.locators.grouped import can_group, completions_per_prompt, decoding_groups
from differad.training.pictures import Batch, Row, VisionFeatureCache, has_active_dropout, image_inputs

# Capacity of a cache, in new tokens, if the generation config sets no limit.
_DEFAULT_CAPACITY = 256


@dataclass(frozen=True, eq=False)
class Prompts:
    """The U distinct prompts of a batch of B rows.

    `first` (U,) is the first row of each distinct prompt, `prompt_index` (B,) the index of each row's prompt.
    """

    first: Tensor
    prompt_index: Tensor

    @property
    def shared(self) -> bool:
        """Whether any prompt belongs to more than one row."""
        return len(self.first) < len(self.prompt_index)


@dataclass(frozen=True, eq=False)
class PromptCompletions:
    """A batch whose rows (B, P + keep) end in completions of `keep` tokens, and its distinct prompts.

    Prompts may be padded on the left, completions on the right.
    """

    batch: Batch
    keep: int
    prompts: Prompts

    @property
    def start(self) -> int:
        """The column where completions begin."""
        return int(self.batch.ids.shape[1]) - self.keep


def split_completions(batch: Batch, keep: int) -> PromptCompletions:
    """The last `keep` tokens of each row as its completion."""
    return PromptCompletions(batch, keep, prompts_of(batch.until(batch.ids.shape[1] - keep)))


def prompts_of(batch: Batch) -> Prompts:
    """As `find_prompts`, for rows that hold only prompts."""
    return find_prompts(batch.ids, batch.mask, batch.pictures.rows())


def find_prompts(ids: Tensor, mask: Tensor, rows: list[Row]) -> Prompts:
    """Group rows with equal prompts (B, P) and equal images; different pairs may have the same text."""
    first: list[int] = []
    prompt_index: list[int] = []
    for row, images in enumerate(rows):
        same = (
            number
            for number, other in enumerate(first)
            if torch.equal(ids[row], ids[other]) and torch.equal(mask[row], mask[other]) and _same(images, rows[other])
        )
        number = next(same, len(first))
        if number == len(first):
            first.append(row)
        prompt_index.append(number)
    return Prompts(torch.tensor(first, device=ids.device), torch.tensor(prompt_index, device=ids.device))


@dataclass(frozen=True, eq=False)
class _CachedPrompt:
    """One prompt's tokens (L,), its images, and each layer's state after all tokens but the last."""

    ids: Tensor
    row: Row
    layers: list[hooks.LayerStates]


class PromptCache:
    """Prompts that one model has encoded without gradients. Valid while its weights, precision and active adapters stay the same.

    The key is a prompt's tokens and images, without padding.
    """

    def __init__(self) -> None:
        self._entries: list[_CachedPrompt] = []

    def __len__(self) -> int:
        """Number of cached prompts."""
        return len(self._entries)

    def get(self, model: Any, ids: Tensor, mask: Tensor, rows: list[Row]) -> DynamicCache | None:
        """The model's cache of prompts (U, P) without their last token; None if any of them is missing."""
        entries = [self._find(ids[row][mask[row].bool()], rows[row]) for row in range(len(ids))]
        hits = [entry for entry in entries if entry is not None]
        if len(hits) < len(entries):
            return None
        return hooks.join_states(model, [entry.layers for entry in hits], ids.shape[1] - 1)

    def put(self, ids: Tensor, mask: Tensor, rows: list[Row], cache: DynamicCache) -> None:
        """Store the prompts (U, P) of a cache; sliding-window layers drop early tokens, so their caches are not stored."""
        if not hooks.can_keep(cache):
            return
        for number, row in enumerate(rows):
            tokens = ids[number][mask[number].bool()]
            states = hooks.row_states(cache, number, ids.shape[1] - len(tokens))
            self._entries.append(_CachedPrompt(tokens, row, states))

    def _find(self, ids: Tensor, row: Row) -> _CachedPrompt | None:
        return next((each for each in self._entries if torch.equal(each.ids, ids) and _same(each.row, row)), None)


def _same(one: Row, other: Row) -> bool:
    return all(torch.equal(first, second) for first, second in zip(one, other, strict=True))


def encode_prompts(
    model: Any,
    batch: Batch,
    prompts: Prompts,
    vision_cache: VisionFeatureCache | None = None,
    prompt_cache: PromptCache | None = None,
) -> DynamicCache:
    """The key/value cache (U rows) of every distinct prompt of a batch, without its last token.

    Images in `vision_cache` and prompts in `prompt_cache` are not encoded again.
    """
    rows = batch.pictures.rows()
    chosen = [rows[row] for row in prompts.first.tolist()]
    ids, mask, types = (values[prompts.first] for values in (batch.ids, batch.mask, batch.types))
    if prompt_cache is not None:
        cache = prompt_cache.get(model, ids, mask, chosen)
        if cache is None:
            cache = encode_prompts(model, batch, prompts, vision_cache)
            prompt_cache.put(ids, mask, chosen, cache)
        return cache
    cache = hooks.empty_cache(model)
    model(
        input_ids=ids[:, :-1],
        attention_mask=mask[:, :-1],
        mm_token_type_ids=types[:, :-1],
        use_cache=True,
        logits_to_keep=1,
        **hooks.cache_input(model, cache),
        **hooks.without_balance_loss(model),
        **image_inputs(chosen, vision_cache),
    )
    return cache


def position_ids(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Rotary position ids (3, B, L), and rope deltas (B, 1): each row's next position minus its length."""
    positions, rope_deltas = model.model.get_rope_index(
        input_ids=batch.ids,
        mm_token_type_ids=batch.types,
        image_grid_thw=batch.pictures.grids,
        attention_mask=batch.mask,
    )
    return positions, rope_deltas


def completion_inputs(
    model: Any,
    rows: PromptCompletions,
    vision_cache: VisionFeatureCache | None = None,
    prompt_cache: PromptCache | None = None,
) -> dict[str, Any]:
    """The inputs with which `model` scores completions behind their prompts' cache.

    Its logits (B, 1 + keep, V) are those of the last prompt token and of the completion.
    """
    batch, start = rows.batch, rows.start
    positions, _ = position_ids(model, batch)
    cache = encode_prompts(model, batch.until(start), rows.prompts, vision_cache, prompt_cache)
    cache.reorder_cache(rows.prompts.prompt_index)
    return {
        "input_ids": batch.ids[:, start - 1 :],
        "attention_mask": batch.mask,
        "position_ids": positions[:, :, start - 1 :],
        "use_cache": True,
        **hooks.cache_input(model, cache),
        **hooks.without_balance_loss(model),
    }


@torch.no_grad()
def generate_shared(
    model: Any,
    batch: Batch,
    config: GenerationConfig,
    vision_cache: VisionFeatureCache | None = None,
    prompt_cache: PromptCache | None = None,
    **settings: Any,
) -> Tensor:
    """As `model.generate` on the same prompts (B, P), each encoded once. Returns prompts with completions (B, P + C).

    The same random numbers give the same tokens as `generate`, up to rounding of the logits.
    """
    prompts = prompts_of(batch)
    cache = encode_prompts(model, batch, prompts, vision_cache, prompt_cache)
    _, rope_deltas = position_ids(model, batch)
    group_size = completions_per_prompt(prompts.prompt_index)
    with ExitStack() as stack:
        if group_size and config.max_new_tokens and can_group(model, cache) and not has_active_dropout(model):
            prompt_mask = batch.mask[prompts.first, :-1]
            stack.enter_context(decoding_groups(model, cache, prompt_mask, group_size, config.max_new_tokens))
        else:
            hooks.with_capacity(cache, prompts.prompt_index, config.max_new_tokens or _DEFAULT_CAPACITY)
        hooks.set_rope_deltas(model, rope_deltas)
        # Call the class's method: a trainer may have replaced the instance's by this function.
        generated: Tensor = type(model).generate(
            model,
            input_ids=batch.ids,
            attention_mask=batch.mask,
            generation_config=config,
            **hooks.cache_input(model, cache),
            **settings,
        )
    return generated
