"""Splits without leaks: no image, near-duplicate or part on both sides."""

from pathlib import Path

import pytest

from differad.core import Pair
from differad.data.manifest import read_pairs
from differad.data.splits import find_leaks, instance_groups, split_by_category, split_by_instance
from differad.errors import ManifestError, OptionError
from miniatures import damage, part, save

SHARED = Path(__file__).parents[3] / "shared" / "data"
SHARES = {"train": 0.75, "test": 0.25}


def pair(folder, number, category="c", reference=None, target=None, **extra):
    """Pair `number`: a normal image and the same with a spot, every other pair normal."""
    good, box = part(number), (10, 10, 20, 20)
    reference = reference or save(folder / f"r{number}.png", good)
    target = target or save(folder / f"t{number}.png", damage(part(1000 + number), box))
    return Pair(reference, target, id=f"{number}", category=category, boxes=[box] if number % 2 else [], extra=extra)


def test_by_category():
    pairs = [Pair("r", "t", id=c, category=c) for c in "abc"]
    sides = split_by_category(pairs, ["b"])
    assert {name: [p.id for p in side] for name, side in sides.items()} == {"train": ["a", "c"], "test": ["b"]}
    with pytest.raises(OptionError, match="category 'd': no pair has it; expected some of a, b, c"):
        split_by_category(pairs, ["d"])
    with pytest.raises(OptionError, match="leaves no pair to train"):
        split_by_category(pairs, ["a", "b", "c"])
    with pytest.raises(OptionError, match="held out nothing"):
        split_by_category(pairs, [])


def test_by_instance_meets_the_shares_of_each_category_and_kind(tmp_path):
    pairs = [pair(tmp_path, number, "ab"[number // 8]) for number in range(16)]
    sides = split_by_instance(pairs, SHARES, seed=3)
    for category in "ab":
        for anomalous in (True, False):
            members = [p for p in sides["test"] if p.category == category and p.anomalous == anomalous]
            assert len(members) == 1  # a quarter of 4
    assert find_leaks(sides["train"], sides["test"]) == []
    again = split_by_instance(pairs, SHARES, seed=3)
    assert [p.id for p in again["test"]] == [p.id for p in sides["test"]]
    others = {tuple(p.id for p in split_by_instance(pairs, SHARES, seed=s)["test"]) for s in range(5)}
    assert len(others) > 1


def test_pairs_at_an_unknown_place_go_with_the_abnormal_and_unlabelled_ones_by_themselves(tmp_path):
    made = [pair(tmp_path, number) for number in range(16)]
    labels = {0: None, 1: True, 2: False, 3: None}  # unlabelled, place unknown, normal, with its box
    pairs = [
        p if n % 4 == 3 else Pair(p.reference, p.target, id=p.id, category="c", anomalous=labels[n % 4])
        for n, p in enumerate(made)
    ]
    test = split_by_instance(pairs, SHARES, seed=0)["test"]
    assert sorted(str(p.anomalous) for p in test) == ["False", "None", "True", "True"]  # a quarter of 4, 4 and 8


def test_what_belongs_together(tmp_path):
    pairs = [pair(tmp_path, number) for number in range(6)]
    copy = save(tmp_path / "copy.jpg", part(1001), quality=60)  # t1 without its spot, re-encoded
    pairs += [
        pair(tmp_path, 6, reference=pairs[0].reference),
        pair(tmp_path, 7, target=copy),
        pair(tmp_path, 8, product="s/1"),
        pair(tmp_path, 9, product="s/1"),
        pair(tmp_path, 10, reference_product="s/2"),
        pair(tmp_path, 11, product="s/2"),
    ]
    save(Path(pairs[1].target), part(1001))
    assert instance_groups(pairs) == [0, 1, 2, 3, 4, 5, 0, 1, 8, 8, 10, 10]
    assert instance_groups(pairs, references=False) == [0, 1, 2, 3, 4, 5, 6, 1, 8, 8, 10, 11]


def test_each_leak_is_reported_once_with_its_kind(tmp_path):
    train = [pair(tmp_path, 1, product="s/7"), pair(tmp_path, 2)]
    near = save(tmp_path / "near.jpg", part(2), quality=70)  # the reference of train pair 2
    test = [
        pair(tmp_path, 3, product="s/7"),
        pair(tmp_path, 4, reference=train[0].reference),
        pair(tmp_path, 5, target=near),
    ]
    leaks = find_leaks(train, test)
    assert [(leak.kind, leak.train_id, leak.test_id) for leak in leaks] == [
        ("image", "1", "4"),
        ("product", "1", "3"),
        ("near-duplicate", "2", "5"),
    ]
    assert "near.jpg" in str(leaks[2])
    assert leaks[0].to_dict()["train"] == str(tmp_path / "r1.png")
    assert [leak.kind for leak in find_leaks(train, test, references=False)] == ["product"]
    assert {leak.kind for leak in find_leaks(train, train)} == {"image", "product"}


def test_one_group_that_holds_everything(tmp_path):
    pairs = [pair(tmp_path, number, product="s/1") for number in range(3)]
    with pytest.raises(
        ManifestError, match=r"no pair is left for 'test', as 3 of 3 pairs belong together; .*--shared-ref"
    ):
        split_by_instance(pairs, SHARES)
    with pytest.raises(ManifestError, match="no pair is left for 'train'"):
        split_by_instance([], SHARES)


@pytest.mark.parametrize(
    "shares", [{}, {"a": 1.0}, {"a": 0.5, "b": 0.6}, {"a": 1.0, "b": 0.0}, {"a": float("nan"), "b": 1}]
)
def test_shares_are_checked(shares):
    with pytest.raises(OptionError, match="two or more above 0 that sum to 1"):
        split_by_instance([], shares)


@pytest.mark.parametrize("name", ["magnetic_tile", "kolektor_sdd"])
def test_real_pairs_split_without_leaks(name):
    path = SHARED / name / "pairs.jsonl"
    if not path.exists():
        pytest.skip(f"the real pairs are not here: {path}")
    pairs = list(read_pairs(path))
    sides = split_by_instance(pairs, SHARES)
    assert find_leaks(sides["train"], sides["test"]) == []
    assert 0.15 <= len(sides["test"]) / len(pairs) <= 0.35
    halves = pairs[::2], pairs[1::2]
    assert sum(map(len, halves)) == len(pairs)


def test_a_derived_set_leaks_into_its_origin():
    if not SHARED.exists():
        pytest.skip(f"the real pairs are not here: {SHARED}")
    whole, single = (list(read_pairs(SHARED / name / "pairs.jsonl"))[:25] for name in ("deeppcb", "deeppcb_single"))
    kinds = {leak.kind for leak in find_leaks(whole, single)}
    assert "image" in kinds  # the templates are the very same files
    assert "near-duplicate" in kinds  # a board with one of its defects kept
