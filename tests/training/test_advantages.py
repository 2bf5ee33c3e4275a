"""The group mathematics, each number with its calculation."""

import math

import pytest
import torch

from differad.training.advantages import (
    adaptive_weights,
    count_terms,
    group_advantages,
    is_uninformative,
    rows_of,
)


def test_advantages_by_hand():
    rewards = torch.tensor([[0.0, 1.0, 2.0, 1.0]], dtype=torch.float64)
    # Mean 1, deviations -1 0 1 0, sample variance 2/3.
    scale = math.sqrt(2 / 3) + 1e-4
    assert group_advantages(rewards)[0].tolist() == pytest.approx([-1 / scale, 0, 1 / scale, 0])


def test_equal_rewards_give_no_advantage():
    assert group_advantages(torch.full((1, 4), 0.7)).abs().max() == 0


@pytest.mark.parametrize(
    ("rewards", "uninformative"),
    [
        ([0.0, 0.0, 0.0], True),
        ([0.4, 0.4, 0.4], True),
        ([0.4, 0.4, 0.4 + 1e-7], True),  # a spread below 1e-6 is rounding
        ([0.4, 0.4, 0.41], False),
        ([1.0, 1.0, 1.0], False),  # solved, not uninformative
        ([0.0, 0.0, 1.0], False),
    ],
)
def test_uninformative(rewards, uninformative):
    assert is_uninformative(torch.tensor([rewards], dtype=torch.float64)).tolist() == [uninformative]


def test_weights_by_hand():
    localization = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.5, 0.0]], dtype=torch.float64)
    missed = torch.tensor([[False, False], [True, True], [False, True]])
    expected = [
        1.0,  # alpha 1, beta 0: (1 + 1) / 2
        (math.e + math.sqrt(2)) / 2,  # alpha 0, beta 1: about 2.07
        (math.exp(0.75) + math.sqrt(1.5)) / 2,  # alpha 1/4, beta 1/2
    ]
    assert adaptive_weights(localization, missed).tolist() == pytest.approx(expected)
    assert expected[1] == pytest.approx(2.066, abs=1e-3)


def test_each_group_is_weighted_by_itself():
    localization, missed = torch.tensor([[0.9, 0.8], [0.1, 0.0]]), torch.tensor([[False, False], [True, True]])
    together = adaptive_weights(localization, missed)
    alone = [adaptive_weights(localization[[row]], missed[[row]]).item() for row in range(2)]
    assert together.tolist() == pytest.approx(alone)


def test_rows_of_a_group_that_spans_two_processes():
    # Three groups of four over two processes of six: rows 4..7 are the second group.
    chosen = torch.tensor([False, True, True])
    assert rows_of(chosen, 4, process=0, count=6) == [4, 5]
    assert rows_of(chosen, 4, process=1, count=6) == [0, 1, 2, 3, 4, 5]
    assert rows_of(torch.tensor([True, False, False]), 4, process=1, count=6) == []


def test_terms_of_a_mean_are_counted_as_the_loss_takes_them():
    """Two batches of three answers; the second holds nothing that the loss sees, and the first one masked answer."""
    masks = [torch.tensor([[1, 1], [0, 0], [1, 0]]), torch.zeros(3, 2)]
    for loss in ("grpo", "dr_grpo", "luspo", "sapo"):
        assert count_terms(loss, masks) == (6, 2)
    assert count_terms("bnpo", masks) == (2, 1)
    for loss in ("cispo", "dapo", "vespo"):
        assert count_terms(loss, masks) == (1, 1)
