"""A prompt and all answers to it as one sequence, for the pass that is differentiated: what stands once is computed once.

The answers stand behind the prompt, each begun by the prompt's last token; a mask lets each see the prompt and itself, and its
places are those that it has behind the prompt alone. Attention sees the same keys as in rows of their own, so that logits,
losses and gradients equal those of the repeated prompt up to rounding. It is one plain pass without a cache, which gradient
checkpointing may run again. Prefix Grouper (arXiv 2506.05433) does it for text.

Knows nothing of rewards, advantages or trainers.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from differad.locators.grouped import added
from differad.locators.transformers_hooks import takes_masks, text_attention, without_balance
from differad.training.pictures import PictureMemory, picture_inputs
from differad.training.prefix import Answered, places

# A token costs a layer about this many times its width squared in multiplications, and its width for every key it meets, twice.
_WEIGHTS = 12


@dataclass(frozen=True, eq=False)
class Layout:
    """Rows of a batch laid out as U sequences of L tokens.

    `inputs` is what the model takes, `labels` (U, L) what each token should be, -100 where that is nobody's business.
    """

    inputs: dict[str, Any]
    labels: Tensor
    of_row: Tensor
    member: Tensor
    members: int
    keep: int

    def rows(self, values: Tensor) -> Tensor:
        """Values (U, L - 1) that belong to the next token, for the answers of each row, (B, keep)."""
        width = self.members * (self.keep + 1)
        blocks = functional.pad(values, (0, 1))[:, -width:].unflatten(1, (self.members, -1))
        return blocks[self.of_row, self.member, : self.keep]


def lay_out(model: Any, answered: Answered, memory: PictureMemory | None = None) -> Layout:
    """Rows as one sequence a prompt."""
    batch, keep, prompts, start = answered.batch, answered.keep, answered.prompts, answered.start
    ids, mask, rows = batch.ids, batch.mask, batch.pictures.rows()
    of_row, member = prompts.of_row, count_members(prompts.of_row)
    members, head = int(member.max()) + 1, start - 1
    positions, _ = places(model, batch)

    def laid(values: Tensor) -> Tensor:
        # Where a prompt has fewer answers than another, its first one stands there again, and nobody reads it.
        blocks = values[prompts.first, None, head:].repeat(1, members, 1)
        blocks[of_row, member] = values[:, head:]
        return torch.cat([values[prompts.first, :head], blocks.flatten(1)], dim=1)

    named = ids.masked_fill(mask == 0, -100)
    named[:, :start] = -100
    labels = laid(named)
    sees = who_sees_what(mask[prompts.first, :head], members, keep + 1)
    inputs = {
        "input_ids": laid(ids),
        "attention_mask": as_mask(sees, model)[:, None],
        "position_ids": torch.stack([laid(axis) for axis in positions]),
        **picture_inputs([rows[row] for row in prompts.first.tolist()], memory),
        **without_balance(model),
    }
    return Layout(inputs, labels, of_row, member, members, keep)


def who_sees_what(mask: Tensor, members: int, block: int) -> Tensor:
    """(U, L, L) of prompts whose pads `mask` (U, P) tells and `members` blocks behind each, true where a token may attend.

    To its prompt but for pads, to its own block, to nothing behind it, and to itself whatever it is.
    """
    head = mask.shape[1]
    own = torch.ones(block, block, dtype=torch.bool, device=mask.device)
    beside = torch.ones(head, head, dtype=torch.bool, device=mask.device)
    sees = torch.block_diag(beside, *[own] * members).bool().tril()
    sees[head:, :head] = True
    sees = sees.repeat(len(mask), 1, 1)
    sees[:, :, :head] &= mask[:, None].bool()
    return sees | torch.eye(len(sees[0]), dtype=torch.bool, device=mask.device)


def as_mask(sees: Tensor, model: Any) -> Tensor:
    """What a model's text attention takes: truths, or, where it adds them to its scores, 0 and minus infinity."""
    if text_attention(model) != "eager":
        return sees
    return added(sees, model.dtype)


def count_members(of_row: Tensor) -> Tensor:
    """The how-manieth of its prompt each row (B,) is."""
    same = of_row[:, None] == of_row
    return same.tril(-1).sum(dim=1)


def pays(model: Any, answered: Answered) -> bool:
    """Whether sequences take fewer multiplications than rows: long answers meet the keys of all others, if only to be masked."""
    if not takes_masks(model):
        return False
    rows, whole = answered.batch.ids.shape
    members = int(count_members(answered.prompts.of_row).max()) + 1
    length = answered.start - 1 + members * (answered.keep + 1)
    width = _WEIGHTS * model.config.get_text_config().hidden_size
    together = len(answered.prompts.first) * length * (width + 2 * length)
    return bool(together < rows * whole * (width + 2 * whole))
