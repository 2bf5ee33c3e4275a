"""The table of metrics as text: names are not interpreted as markup, and counts that it lacks are printed below it."""

import pytest

from differad.cli.table import print_metrics
from differad.evaluation.metrics import PairResult, summarise


def printed(results, capsys, **counts):
    print_metrics(summarise(results, resamples=10) | {"boxes_cut": 0} | counts)
    return capsys.readouterr().out


@pytest.mark.parametrize("name", ["[/b]", "[red]", ":warning:", "部品", "a[0]"])
def test_a_category_s_name_is_no_markup(name, capsys):
    assert name in printed([PairResult(name, True, 0.5, True, True)], capsys)


def test_pairs_of_unknown_place_give_a_dash_and_a_count_below(capsys):
    unknown = PairResult("a", True, 0.0, True, True, confidence=0.9, has_location=False)
    invalid = PairResult("a", False, 0.0, False, False)
    lines = printed([unknown, unknown, invalid], capsys, boxes_cut=3).splitlines()
    assert lines[1].split() == ["a", "3", "-", "-", "-", "1.00", "0.00", "0.67"]
    below = " ".join(" ".join(lines[3:]).split())
    assert "2 of 2 anomalous pairs: place unknown, counted in det F1 and valid, not in mIoU, Acc and F1@0.3" in below
    assert "AUROC 0.00 (1 pairs without a ranked answer count as worst)" in below
    assert "3 true boxes extend beyond their target" in below


def test_without_counts_nothing_is_printed_below(capsys):
    lines = printed(
        [PairResult("a", True, 0.5, True, True), PairResult("a", False, 0.0, False, True)], capsys
    ).splitlines()
    assert len(lines) == 3  # heading, category, all pairs
