"""Encode each distinct prompt once: answers of one group share its vision features and its key/value cache.

The G answers of a group repeat a long prompt with two pictures and differ in a few dozen tokens. Here the prompt, but for its
last token, runs once per distinct prompt; its cache is handed to every answer of the group, and only the last prompt token
and the answers run G times. Attention sees the same keys in the same places, so that draws, log-probabilities and, where they
are asked for, gradients equal those of the repeated prompt up to rounding.

Knows nothing of rewards, advantages or trainers.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from differad.locators import transformers_hooks as hooks
from differad.locators.grouped import can_group, decoding_groups, members_of
from differad.training.pictures import Batch, PictureMemory, Row, is_random, picture_inputs

# Tokens that a cache has room for where nothing says how many will come.
_ROOM = 256


@dataclass(frozen=True, eq=False)
class Prompts:
    """Rows of a batch and the prompts they stand on.

    `first` (U,) are the rows that show each distinct prompt first, `of_row` (B,) says which of them each row shares.
    """

    first: Tensor
    of_row: Tensor

    @property
    def shared(self) -> bool:
        """Whether any prompt stands under more than one row."""
        return len(self.first) < len(self.of_row)


@dataclass(frozen=True, eq=False)
class Answered:
    """A batch whose rows (B, P + keep) end in answers of `keep` tokens, and the prompts that they stand on.

    Pads may stand left of a prompt and right of an answer.
    """

    batch: Batch
    keep: int
    prompts: Prompts

    @property
    def start(self) -> int:
        """The column where answers begin."""
        return int(self.batch.ids.shape[1]) - self.keep


def split_answers(batch: Batch, keep: int) -> Answered:
    """The last `keep` tokens of each row as its answer."""
    return Answered(batch, keep, prompts_of(batch.until(batch.ids.shape[1] - keep)))


def prompts_of(batch: Batch) -> Prompts:
    """As `find_prompts`, of rows that are prompts alone."""
    return find_prompts(batch.ids, batch.mask, batch.pictures.rows())


def find_prompts(ids: Tensor, mask: Tensor, rows: list[Row]) -> Prompts:
    """Which rows have the same prompt (B, P) and the same pictures; a text alone does not tell two pairs apart."""
    first: list[int] = []
    of_row: list[int] = []
    for row, pictured in enumerate(rows):
        same = (
            number
            for number, other in enumerate(first)
            if torch.equal(ids[row], ids[other])
            and torch.equal(mask[row], mask[other])
            and _same(pictured, rows[other])
        )
        number = next(same, len(first))
        if number == len(first):
            first.append(row)
        of_row.append(number)
    return Prompts(torch.tensor(first, device=ids.device), torch.tensor(of_row, device=ids.device))


@dataclass(frozen=True, eq=False)
class _Encoded:
    """One prompt's tokens (L,), its pictures, and what each layer holds of it but for its last token."""

    ids: Tensor
    row: Row
    layers: list[hooks.LayerStates]


class PromptMemory:
    """Prompts that one model has encoded without gradients; for as long as its weights, and the way it runs, stay the same.

    A prompt is known by its tokens and its pictures, whatever pads it stood behind.
    """

    def __init__(self) -> None:
        self._kept: list[_Encoded] = []

    def __len__(self) -> int:
        """How many prompts are remembered."""
        return len(self._kept)

    def recall(self, model: Any, ids: Tensor, mask: Tensor, rows: list[Row]) -> DynamicCache | None:
        """The model's cache of prompts (U, P) but for their last token; None where one of them is not known."""
        found = [self._find(ids[row][mask[row].bool()], rows[row]) for row in range(len(ids))]
        known = [each for each in found if each is not None]
        if len(known) < len(found):
            return None
        return hooks.join_states(model, [each.layers for each in known], ids.shape[1] - 1)

    def keep(self, ids: Tensor, mask: Tensor, rows: list[Row], cache: DynamicCache) -> None:
        """Remember the prompts (U, P) that a cache is of; one whose layers forget what a window has left is no use."""
        if not hooks.can_keep(cache):
            return
        for number, row in enumerate(rows):
            own = ids[number][mask[number].bool()]
            self._kept.append(_Encoded(own, row, hooks.row_states(cache, number, ids.shape[1] - len(own))))

    def _find(self, ids: Tensor, row: Row) -> _Encoded | None:
        return next((each for each in self._kept if torch.equal(each.ids, ids) and _same(each.row, row)), None)


def _same(one: Row, other: Row) -> bool:
    return all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


def encode_prompts(
    model: Any,
    batch: Batch,
    prompts: Prompts,
    memory: PictureMemory | None = None,
    known: PromptMemory | None = None,
) -> DynamicCache:
    """The cache (U rows) of every distinct prompt of a batch but for its last token.

    Pictures that `memory` holds are not looked at again, and prompts that are `known` are not encoded again.
    """
    rows = batch.pictures.rows()
    chosen = [rows[row] for row in prompts.first.tolist()]
    ids, mask, types = (values[prompts.first] for values in (batch.ids, batch.mask, batch.types))
    if known is not None:
        cache = known.recall(model, ids, mask, chosen)
        if cache is None:
            cache = encode_prompts(model, batch, prompts, memory)
            known.keep(ids, mask, chosen, cache)
        return cache
    cache = hooks.empty_cache(model)
    model(
        input_ids=ids[:, :-1],
        attention_mask=mask[:, :-1],
        mm_token_type_ids=types[:, :-1],
        use_cache=True,
        logits_to_keep=1,
        **hooks.cache_input(model, cache),
        **hooks.without_balance(model),
        **picture_inputs(chosen, memory),
    )
    return cache


def places(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Where a model sees each token, (3, B, L), and what a row's next place is beyond its length, (B, 1)."""
    positions, beyond = model.model.get_rope_index(
        input_ids=batch.ids,
        mm_token_type_ids=batch.types,
        image_grid_thw=batch.pictures.grids,
        attention_mask=batch.mask,
    )
    return positions, beyond


def answer_inputs(
    model: Any, answered: Answered, memory: PictureMemory | None = None, known: PromptMemory | None = None
) -> dict[str, Any]:
    """What `model` takes to score answers whose prompts have been encoded once.

    Its logits (B, 1 + keep, V) are those of the last prompt token and of the answer.
    """
    batch, start = answered.batch, answered.start
    positions, _ = places(model, batch)
    cache = encode_prompts(model, batch.until(start), answered.prompts, memory, known)
    cache.reorder_cache(answered.prompts.of_row)
    return {
        "input_ids": batch.ids[:, start - 1 :],
        "attention_mask": batch.mask,
        "position_ids": positions[:, :, start - 1 :],
        "use_cache": True,
        **hooks.cache_input(model, cache),
        **hooks.without_balance(model),
    }


@torch.no_grad()
def generate_shared(
    model: Any,
    batch: Batch,
    config: GenerationConfig,
    memory: PictureMemory | None = None,
    known: PromptMemory | None = None,
    **settings: Any,
) -> Tensor:
    """As `model.generate` on the same prompts (B, P): each is encoded once. Returns prompts with answers (B, P + C).

    Draws are those of `generate` for the same random numbers, up to rounding of the logits.
    """
    prompts = prompts_of(batch)
    cache = encode_prompts(model, batch, prompts, memory, known)
    _, beyond = places(model, batch)
    members = members_of(prompts.of_row)
    with ExitStack() as stack:
        if members and config.max_new_tokens and can_group(model, cache) and not is_random(model):
            seen = batch.mask[prompts.first, :-1]
            stack.enter_context(decoding_groups(model, cache, seen, members, config.max_new_tokens))
        else:
            hooks.with_capacity(cache, prompts.of_row, config.max_new_tokens or _ROOM)
        hooks.set_rope_deltas(model, beyond)
        # The class's own: a trainer may have put this function in its place.
        drawn: Tensor = type(model).generate(
            model,
            input_ids=batch.ids,
            attention_mask=batch.mask,
            generation_config=config,
            **hooks.cache_input(model, cache),
            **settings,
        )
    return drawn
