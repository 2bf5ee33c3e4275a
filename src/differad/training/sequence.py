"""Pack a prompt and all its completions into one sequence, for passes with gradients: the prompt is computed once.

The completions follow the prompt; each starts with a copy of the prompt's last token. A mask lets each attend to the prompt
and itself, and its position ids are those that it has directly behind the prompt. Attention sees the same keys as in separate
rows, so logits, losses and gradients equal those of the repeated prompt up to rounding. It is one plain pass without a cache,
which gradient checkpointing may run again. Prefix Grouper (arXiv 2506.05433) does this for text.

Knows nothing of rewards, advantages or trainers.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from differad.locators.grouped import added
from differad.locators.transformers_hooks import supports_masks, text_attention, without_balance_loss
from differad.training.pictures import VisionFeatureCache, image_inputs
from differad.training.prefix import PromptCompletions, position_ids

# Multiplications of a layer per token: about 12 * width^2, and 2 * width for each key that it attends to.
_WEIGHTS = 12


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Rows of a batch packed into U sequences of L tokens.

    `inputs` are the model's inputs, `labels` (U, L) the target tokens, -100 where the loss ignores them. `prompt_index` and
    `group_index` (B,) give each row's sequence and its index within that sequence's group.
    """

    inputs: dict[str, Any]
    labels: Tensor
    prompt_index: Tensor
    group_index: Tensor
    group_size: int
    keep: int

    def rows(self, values: Tensor) -> Tensor:
        """Unpack values (U, L - 1) of next tokens into those of each row's completion, (B, keep)."""
        width = self.group_size * (self.keep + 1)
        blocks = functional.pad(values, (0, 1))[:, -width:].unflatten(1, (self.group_size, -1))
        return blocks[self.prompt_index, self.group_index, : self.keep]


def pack(model: Any, rows: PromptCompletions, vision_cache: VisionFeatureCache | None = None) -> PackedBatch:
    """Pack rows into one sequence per prompt."""
    batch, keep, prompts, start = rows.batch, rows.keep, rows.prompts, rows.start
    ids, mask, images = batch.ids, batch.mask, batch.pictures.rows()
    prompt_index, group_index = prompts.prompt_index, index_in_group(prompts.prompt_index)
    group_size, prefix = int(group_index.max()) + 1, start - 1
    positions, _ = position_ids(model, batch)

    def packed(values: Tensor) -> Tensor:
        # A group smaller than the largest is filled up with its first completion, whose values are never read.
        blocks = values[prompts.first, None, prefix:].repeat(1, group_size, 1)
        blocks[prompt_index, group_index] = values[:, prefix:]
        return torch.cat([values[prompts.first, :prefix], blocks.flatten(1)], dim=1)

    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :start] = -100
    allowed = packed_attention_mask(mask[prompts.first, :prefix], group_size, keep + 1)
    inputs = {
        "input_ids": packed(ids),
        "attention_mask": to_attention_mask(allowed, model)[:, None],
        "position_ids": torch.stack([packed(axis) for axis in positions]),
        **image_inputs([images[row] for row in prompts.first.tolist()], vision_cache),
        **without_balance_loss(model),
    }
    return PackedBatch(inputs, packed(labels), prompt_index, group_index, group_size, keep)


def packed_attention_mask(mask: Tensor, group_size: int, block: int) -> Tensor:
    """(U, L, L), true where a token may attend: prompts with padding `mask` (U, P), each with `group_size` blocks behind it.

    A token attends to its prompt without the padding, to earlier tokens of its own block, and always to itself.
    """
    prefix = mask.shape[1]
    completion = torch.ones(block, block, dtype=torch.bool, device=mask.device)
    prompt = torch.ones(prefix, prefix, dtype=torch.bool, device=mask.device)
    allowed = torch.block_diag(prompt, *[completion] * group_size).bool().tril()
    allowed[prefix:, :prefix] = True
    allowed = allowed.repeat(len(mask), 1, 1)
    allowed[:, :, :prefix] &= mask[:, None].bool()
    return allowed | torch.eye(len(allowed[0]), dtype=torch.bool, device=mask.device)


def to_attention_mask(allowed: Tensor, model: Any) -> Tensor:
    """The mask that a model's text attention takes: booleans, or 0 and minus infinity if it adds the mask to its scores."""
    if text_attention(model) != "eager":
        return allowed
    return added(allowed, model.dtype)


def index_in_group(prompt_index: Tensor) -> Tensor:
    """Index of each row (B,) within its group."""
    same = prompt_index[:, None] == prompt_index
    return same.tril(-1).sum(dim=1)


def is_cheaper(model: Any, rows: PromptCompletions) -> bool:
    """Whether packed sequences take fewer multiplications than rows, masked keys of other completions included."""
    if not supports_masks(model):
        return False
    count, row_length = rows.batch.ids.shape
    group_size = int(index_in_group(rows.prompts.prompt_index).max()) + 1
    length = rows.start - 1 + group_size * (rows.keep + 1)
    width = _WEIGHTS * model.config.get_text_config().hidden_size
    packed_cost = len(rows.prompts.first) * length * (width + 2 * length)
    return bool(packed_cost < count * row_length * (width + 2 * row_length))
