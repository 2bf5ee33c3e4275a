"""Encode each distinct prompt once: answers of one group share its vision features and its key/value cache.

The G answers of a group repeat a long prompt with two pictures and differ in a few dozen tokens. Here the prompt, but for its
last token, runs once per distinct prompt, with gradients; its cache is handed to every answer of the group, and only the
last prompt token and the answers run G times. Attention sees the same keys in the same places, so that logits, losses and
gradients equal those of the repeated prompt up to rounding. Prefix Grouper (arXiv 2506.05433) does it for text.

Knows nothing of rewards, advantages or trainers.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig


@dataclass(frozen=True, eq=False)
class Prompts:
    """Rows of a batch and the prompts they stand on.

    `first` (U,) are the rows that show each distinct prompt first, `of_row` (B,) says which of them each row shares.
    """

    first: torch.Tensor
    of_row: torch.Tensor

    @property
    def shared(self) -> bool:
        """Whether any prompt stands under more than one row."""
        return len(self.first) < len(self.of_row)


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures of a batch of prompts as a Qwen-VL takes them.

    `patches` (N, D) of all pictures, `grids` (M, 3) their patches in time, height and width, `counts` pictures per row.
    """

    patches: torch.Tensor
    grids: torch.Tensor
    counts: list[int]

    def rows(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Patches and grids of each row."""
        grids = torch.split(self.grids, self.counts)
        lengths = [int(grid.prod(dim=1).sum()) for grid in grids]
        return list(zip(torch.split(self.patches, lengths), grids, strict=True))


def find_prompts(ids: torch.Tensor, mask: torch.Tensor, pictures: Pictures) -> Prompts:
    """Which rows have the same prompt (B, P) and the same pictures; a text alone does not tell two pairs apart."""
    rows = pictures.rows()
    first: list[int] = []
    of_row: list[int] = []
    for row, (patches, grids) in enumerate(rows):
        same = (
            number
            for number, other in enumerate(first)
            if torch.equal(ids[row], ids[other])
            and torch.equal(mask[row], mask[other])
            and torch.equal(grids, rows[other][1])
            and torch.equal(patches, rows[other][0])
        )
        number = next(same, len(first))
        if number == len(first):
            first.append(row)
        of_row.append(number)
    return Prompts(torch.tensor(first, device=ids.device), torch.tensor(of_row, device=ids.device))


def can_share(model: Any) -> bool:
    """Whether a model's prompts can be shared: gradient checkpointing throws the cache away that the answers need."""
    checkpointing = bool(getattr(model, "is_gradient_checkpointing", False)) and model.training
    return hasattr(model.model, "get_rope_index") and not checkpointing


def encode_prompts(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor, pictures: Pictures, prompts: Prompts
) -> DynamicCache:
    """The cache (U rows) of every distinct prompt but for its last token; `ids`, `mask`, `types` are (B, P)."""
    rows = [pictures.rows()[row] for row in prompts.first.tolist()]
    cache = DynamicCache(config=model.config.get_text_config())
    model(
        input_ids=ids[prompts.first, :-1],
        attention_mask=mask[prompts.first, :-1],
        mm_token_type_ids=types[prompts.first, :-1],
        pixel_values=torch.cat([patches for patches, _ in rows]),
        image_grid_thw=torch.cat([grids for _, grids in rows]),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return cache


def answer_inputs(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor, keep: int, pictures: Pictures
) -> dict[str, Any]:
    """What `model` takes to score the last `keep` tokens of (B, P + keep) rows, whose prompts have been encoded once.

    Its logits (B, 1 + keep, V) are those of the last prompt token and of the answer. Pads may stand left of a prompt and
    right of an answer.
    """
    start = ids.shape[1] - keep
    prompts = find_prompts(ids[:, :start], mask[:, :start], pictures)
    positions, _ = model.model.get_rope_index(
        input_ids=ids, mm_token_type_ids=types, image_grid_thw=pictures.grids, attention_mask=mask
    )
    cache = encode_prompts(model, ids[:, :start], mask[:, :start], types[:, :start], pictures, prompts)
    cache.batch_select_indices(prompts.of_row)
    return {
        "input_ids": ids[:, start - 1 :],
        "attention_mask": mask,
        "position_ids": positions[:, :, start - 1 :],
        "past_key_values": cache,
        "use_cache": True,
    }


@torch.no_grad()
def generate_shared(
    model: Any,
    ids: torch.Tensor,
    mask: torch.Tensor,
    types: torch.Tensor,
    pictures: Pictures,
    config: GenerationConfig,
    **settings: Any,
) -> torch.Tensor:
    """As `model.generate` on the same rows (B, P): each prompt is encoded once. Returns prompts with answers (B, P + C).

    Rows of one group must stand together, all groups equally large; draws are those of `generate` for the same random
    numbers, up to rounding of the logits.
    """
    prompts = find_prompts(ids, mask, pictures)
    cache = encode_prompts(model, ids, mask, types, pictures, prompts)
    cache.batch_select_indices(prompts.of_row)
    model.model.rope_deltas = model.model.rope_deltas[prompts.of_row]
    return model.generate(
        input_ids=ids, attention_mask=mask, past_key_values=cache, generation_config=config, **settings
    )
