"""Which pairs `--limit` takes."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from parts import make_pairs

from differad.evaluation.selection import labelled_pairs, spread


def test_of_sorted_pairs_both_labels_are_taken():
    """As real manifests are: the defective ones first."""
    labels = [True] * 90 + [False] * 10
    chosen = spread(labels, 10)
    assert len(chosen) == 10
    assert sum(labels[place] for place in chosen) == 9  # 10 * 90 / 100
    abnormal = sorted(place for place in chosen if labels[place])
    assert max(np.diff([*abnormal, 90])) <= 16  # 90 / 9 = 10 apart on average; halves of halves are within twice of it
    assert min(abnormal) == 0


@pytest.mark.parametrize("labels", [[True] * 50 + [False], [False] * 50 + [True], [True, False]])
def test_a_rare_label_is_selected_from_two_on(labels):
    for limit in range(2, len(labels) + 1):
        chosen = spread(labels, limit)
        assert len(chosen) == limit
        assert {labels[place] for place in chosen} == {True, False}


@pytest.mark.parametrize("labels", [[True] * 7, [False] * 5, [True, False, False] * 9, [], [True]])
def test_a_larger_limit_adds_to_a_smaller_one(labels):
    before = frozenset()
    for limit in range(1, len(labels) + 3):
        chosen = spread(labels, limit)
        assert len(chosen) == min(limit, len(labels))
        assert before <= chosen
        before = chosen
    assert before == set(range(len(labels)))


def test_over_manifests_and_without_the_unlabelled(tmp_path):
    one, two = make_pairs(tmp_path / "one", 6, p1={"boxes": None}), make_pairs(tmp_path / "two", 6)
    two.write_text(two.read_text().replace('"id": "p', '"id": "q'))
    assert [pair.id for pair in labelled_pairs([one, two])] == [
        "p0",
        *(f"p{n}" for n in range(2, 6)),
        *(f"q{n}" for n in range(6)),
    ]
    few = [pair.id for pair in labelled_pairs([one, two], 4)]
    assert {name[0] for name in few} == {"p", "q"}
    assert "p1" not in few
