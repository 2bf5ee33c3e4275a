"""The group mathematics of difficulty-aware GRPO, on plain tensors: no trainer, no process group, no text.

A group is the G completions of one prompt. Tensors of completions have shape (groups, G), those of groups (groups,). Source of
every formula: DifferAD-R1, arXiv 2606.16601, section on difficulty-aware optimisation. Where the authors' published code differs
(batch mean instead of the group's, reward instead of IoU), this module follows the paper.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

STD_FLOOR = 1e-4
EQUAL_BELOW = 1e-6
# TRL's losses that average over rows or batches; the others (cispo, dapo, vespo) divide by the tokens of all processes.
_MEANS_OF_ROWS = ("grpo", "dr_grpo", "luspo", "sapo")
_MEANS_OF_BATCHES = ("bnpo",)


def group_advantages(rewards: Tensor) -> Tensor:
    """(r - mean) / (std + 1e-4) within each group, shape (groups, G), with the sample standard deviation, as in TRL."""
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / (rewards.std(dim=1, keepdim=True) + STD_FLOOR)


def is_uninformative(localization: Tensor) -> Tensor:
    """True for each group whose localization rewards (groups, G) are all equal and not 1, shape (groups,).

    Equal rewards give zero advantages. A group of perfect rewards is solved, not uninformative.
    """
    spread = localization.std(dim=1, correction=0)
    solved = (localization >= 1.0 - EQUAL_BELOW).any(dim=1)
    return (spread < EQUAL_BELOW) & ~solved


def adaptive_weights(localization: Tensor, missed: Tensor) -> Tensor:
    """(exp(1 - alpha) + sqrt(1 + beta)) / 2 of each group, shape (groups,): 1 if all are perfect, about 2.07 if all fail.

    `alpha` is the group's mean localization reward (groups, G), `beta` the share of its completions that `missed` (groups, G):
    IoU under 0.3, or a box on a normal target.
    """
    alpha = localization.mean(dim=1)
    beta = missed.to(localization.dtype).mean(dim=1)
    return (torch.exp(1.0 - alpha) + torch.sqrt(1.0 + beta)) / 2.0


def rows_of(groups: Tensor, size: int, process: int, count: int) -> list[int]:
    """Indices of the chosen groups' completions among the `count` of `process`, in order.

    `groups` (groups,) is the selection over all processes, ordered by rank; a group of `size` completions may span two processes.
    """
    chosen = groups.repeat_interleave(size)[process * count : (process + 1) * count]
    return [int(row) for row in chosen.nonzero().flatten()]


def count_terms(loss: str, masks: Sequence[Tensor]) -> tuple[int, int]:
    """Number of terms that TRL's `loss` averages, and how many of them have an unmasked token.

    `masks` (B, C) are the completion masks of one process's batches. A term is a completion, or a batch for `bnpo`. Losses that
    divide by the number of tokens return (1, 1), because masked tokens do not count there.
    """
    if loss in _MEANS_OF_ROWS:
        return sum(len(mask) for mask in masks), sum(int(mask.any(dim=1).sum()) for mask in masks)
    if loss in _MEANS_OF_BATCHES:
        return len(masks), sum(bool(mask.any()) for mask in masks)
    return 1, 1
