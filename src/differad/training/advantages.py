"""The group mathematics of difficulty-aware GRPO, on plain tensors: no trainer, no process group, no text.

A group is the G answers to one prompt. Tensors that speak of answers have shape (groups, G), those that speak of groups
(groups,). Source of every formula: DifferAD-R1, arXiv 2606.16601, section on difficulty-aware optimisation; where the
authors' published code departs from it (batch mean in place of the group's, reward in place of IoU), the paper is followed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

STD_FLOOR = 1e-4
EQUAL_BELOW = 1e-6
# What TRL's losses take their mean over, beyond those that divide by the tokens of all processes (cispo, dapo, vespo).
_MEANS_OF_ROWS = ("grpo", "dr_grpo", "luspo", "sapo")
_MEANS_OF_BATCHES = ("bnpo",)


def group_advantages(rewards: Tensor) -> Tensor:
    """(r - mean) / (std + 1e-4) within each group, shape (groups, G); the sample's deviation, as TRL takes it."""
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / (rewards.std(dim=1, keepdim=True) + STD_FLOOR)


def is_uninformative(localization: Tensor) -> Tensor:
    """True for each group whose localization rewards (groups, G) are all equal while none is 1, shape (groups,).

    Equal rewards give no advantage to learn from; a group that is right throughout is done, not stuck.
    """
    spread = localization.std(dim=1, correction=0)
    solved = (localization >= 1.0 - EQUAL_BELOW).any(dim=1)
    return (spread < EQUAL_BELOW) & ~solved


def adaptive_weights(localization: Tensor, missed: Tensor) -> Tensor:
    """(exp(1 - alpha) + sqrt(1 + beta)) / 2 of each group, shape (groups,): 1 for an easy group, about 2.07 for a hopeless one.

    `alpha` is the group's mean localization reward (groups, G), `beta` the share of its answers that `missed` (groups, G):
    IoU under 0.3, or a box on a normal target.
    """
    alpha = localization.mean(dim=1)
    beta = missed.to(localization.dtype).mean(dim=1)
    return (torch.exp(1.0 - alpha) + torch.sqrt(1.0 + beta)) / 2.0


def rows_of(groups: Tensor, size: int, process: int, count: int) -> list[int]:
    """Which of the `count` answers that `process` holds belong to a chosen group, in order.

    `groups` (groups,) is the choice over all processes, whose answers stand in the order of their rank; a group of `size`
    answers may lie across two of them.
    """
    chosen = groups.repeat_interleave(size)[process * count : (process + 1) * count]
    return [int(row) for row in chosen.nonzero().flatten()]


def count_terms(loss: str, masks: Sequence[Tensor]) -> tuple[int, int]:
    """Terms that TRL's `loss` takes its mean over, and how many of them hold a token that it sees.

    `masks` (B, C) are the completion masks of one process's batches. A term is an answer, for `bnpo` a batch. Losses that divide
    by the tokens themselves have (1, 1): what is masked does not count there.
    """
    if loss in _MEANS_OF_ROWS:
        return sum(len(mask) for mask in masks), sum(int(mask.any(dim=1).sum()) for mask in masks)
    if loss in _MEANS_OF_BATCHES:
        return len(masks), sum(bool(mask.any()) for mask in masks)
    return 1, 1
