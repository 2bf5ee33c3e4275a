"""A reference is a normal sample of the same category and view, never the target itself or the same part."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from differad.data.copies import FileComparer
from differad.data.pairing import Pairing, choose_targets, describe, match_samples
from differad.data.sources.mvtec import read_mvtec
from differad.data.sources.sample import ProblemList, Sample
from differad.data.thumbnails import read_thumbnail
from differad.errors import ManifestError, OptionError
from miniatures import damage, mvtec, part, save


def good(name, **facts):
    return Sample(Path(name), "c", True, **facts)


def bad(name, **facts):
    return Sample(Path(name), "c", False, boxes=[[0, 0, 1, 1]], **facts)


def matched(samples, problems=None, **options):
    options = {"method": "random", "normal_share": 0, **options}
    extra = () if problems is None else (problems,)
    return [(m.target.image.name, m.reference.image.name) for m in match_samples(samples, Pairing(**options), *extra)]


def test_the_nearest_good_part_is_the_one_that_was_damaged(tmp_path):
    samples = list(read_mvtec(mvtec(tmp_path)))
    matches = list(match_samples(samples, Pairing(normal_share=0)))
    assert len(matches) == 6
    assert all(m.target.category == m.reference.category for m in matches)
    assert all(m.target.image.name == m.reference.image.name for m in matches)  # 000.png damaged is near 000.png


def test_brightness_colour_and_aspect_count(tmp_path):
    base = part(1)
    files = {
        "darker.png": base // 2,
        "blue.png": base * np.array([0, 0, 1], np.uint8),
        "wide.png": np.repeat(base, 3, axis=1),
        "target.png": damage(base, (5, 5, 9, 9)),
    }
    for name, pixels in files.items():
        save(tmp_path / name, pixels)
    samples = [good(tmp_path / name) for name in files if name != "target.png"] + [bad(tmp_path / "target.png")]
    found = matched(samples, method="nearest", references=3)
    references = [reference for _, reference in found]
    assert (references[0], references[-1]) == ("darker.png", "wide.png")


def test_an_embedding_replaces_the_default_descriptor(tmp_path):
    for name, level in (("a.png", 10), ("b.png", 200), ("t.png", 190)):
        save(tmp_path / name, np.full((8, 8, 3), level, np.uint8))
    samples = [good(tmp_path / "a.png"), good(tmp_path / "b.png"), bad(tmp_path / "t.png")]
    pairing = Pairing(normal_share=0)
    far = [
        m.reference.image.name for m in match_samples(samples, pairing, embed=lambda rgb: 1 / (rgb.mean((0, 1)) - 195))
    ]
    near = [m.reference.image.name for m in match_samples(samples, pairing, embed=lambda rgb: rgb.mean((0, 1)))]
    assert (far, near) == (["a.png"], ["b.png"])
    with pytest.raises(OptionError, match="expected a vector of finite numbers"):
        list(match_samples(samples, pairing, embed=lambda rgb: rgb[0, 0] * np.nan))


def test_never_itself_the_same_part_or_another_view():
    samples = [
        good("itself", instance_id="1", view="A"),
        good("same part", instance_id="2", view="A"),
        good("other view", instance_id="3", view="B"),
        good("right", instance_id="4", view="A"),
        bad("target", instance_id="2", view="A"),
    ]
    parsed = {matched(samples, seed=seed)[0] for seed in range(20)}
    assert parsed == {("target", "right"), ("target", "itself")}
    both = dict(matched(samples, normal_share=None))
    assert both["itself"] in ("same part", "right")
    assert "other view" not in both  # a good part with nothing to compare it with makes no pair


def test_a_target_without_a_reference_is_refused_or_listed():
    samples = [good("only", view="A"), bad("x", view="B"), bad("y", view="A")]
    with pytest.raises(ManifestError, match="x: no good part of category 'c' and view 'B'"):
        matched(samples)
    problems = ProblemList()
    assert matched(samples, problems) == [("y", "only")]
    assert len(problems.messages) == 1


def test_the_train_split_is_preferred_and_a_view_without_any_uses_all():
    samples = [
        good("train", split="train", view="A"),
        good("test a", split="test", view="A"),
        good("test b", split="test", view="B"),
        bad("x", split="test", view="A"),
        bad("y", split="test", view="B"),
    ]
    assert all(matched(samples, seed=s) == [("x", "train"), ("y", "test b")] for s in range(9))


def test_a_template_is_preferred_and_given_requires_one():
    samples = [good("other"), bad("x", template=Path("x_temp")), bad("y")]
    assert matched(samples) == [("x", "x_temp"), ("y", "other")]
    with pytest.raises(ManifestError, match="y: the data set gives no template for it; choose --pairing"):
        matched(samples, method="given")


def test_random_references_depend_on_the_seed_and_the_target_alone():
    samples = [good(f"g{i}") for i in range(30)] + [bad(f"b{i}") for i in range(30)]
    first = matched(samples)
    assert first == matched(samples)
    assert first != matched(samples, seed=1)
    assert matched([*samples[:30], samples[-1]]) == first[-1:]
    assert len({reference for _, reference in first}) > 10


def test_several_references_differ_and_may_be_fewer():
    samples = [*(good(f"g{i}") for i in range(3)), bad("x")]
    assert len(set(matched(samples, references=3))) == 3
    assert len(set(matched(samples, references=9))) == 3
    ranks = [m.rank for m in match_samples(samples, Pairing("random", 2, 0))]
    assert ranks == [0, 1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"normal_share": 0.0}, (6, 0)),
        ({"normal_share": 0.25}, (6, 2)),  # 2 of 8
        ({"normal_share": 0.5}, (6, 6)),
        ({"normal_share": 0.9}, (6, 20)),  # 54 wanted, 20 there
        ({"normal_share": None}, (6, 20)),
        ({"normal_share": 0.5, "count": 4}, (2, 2)),
        ({"normal_share": 0.5, "count": 8, "references": 2}, (2, 2)),  # 4 targets with 2 references each
        ({"normal_share": 0.0, "count": 4}, (4, 0)),
        ({"normal_share": None, "count": 13}, (3, 10)),  # 20 of 26 are good: 10 of 13
    ],
)
def test_how_many_targets_of_each_kind(options, expected):
    samples = [good(f"g{i}", split="train" if i < 15 else "test") for i in range(20)] + [bad(f"b{i}") for i in range(6)]
    chosen = Counter(sample.is_normal for sample in choose_targets(samples, Pairing(**options)))
    assert (chosen[False], chosen[True]) == expected


def test_good_targets_come_from_outside_the_train_split_first():
    samples = [good(f"g{i}", split="train" if i < 15 else "test") for i in range(20)] + [bad(f"b{i}") for i in range(6)]
    normal = [s for s in choose_targets(samples, Pairing(normal_share=0.5)) if s.is_normal]
    assert Counter(s.split for s in normal) == {"test": 5, "train": 1}


def test_a_broken_image_is_reported_once(tmp_path):
    root = mvtec(tmp_path, categories=("nut",))
    (root / "nut/train/good/003.png").write_bytes(b"no image")
    (root / "nut/test/scratch/000.png").write_bytes(b"")
    problems = ProblemList()
    matches = list(match_samples(list(read_mvtec(root)), Pairing(normal_share=0), problems))
    assert len(matches) == 2
    assert len(problems.messages) == 2
    with pytest.raises(ManifestError, match="empty file"):
        list(match_samples(list(read_mvtec(root)), Pairing(normal_share=0)))


@pytest.mark.parametrize(
    "options", [{"method": "best"}, {"references": 0}, {"normal_share": 1.0}, {"normal_share": -0.1}, {"count": 0}]
)
def test_options_are_checked(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        Pairing(**options)


def test_more_targets_than_are_ranked_at_once_have_the_references_of_brute_force(tmp_path):
    rng = np.random.default_rng(0)
    images = {tmp_path / f"{number}.png": rng.integers(0, 255, (6, 8, 3)).astype(np.uint8) for number in range(150)}
    for path, pixels in images.items():
        save(path, pixels)
    samples = [Sample(path, "part", True) for path in images]
    vectors = np.stack([describe(read_thumbnail(path)) for path in images])
    for match in match_samples(samples, Pairing(references=3, normal_share=None)):
        own = list(images).index(match.target.image)
        order = np.argsort(np.linalg.norm(vectors - vectors[own], axis=1), kind="stable")
        assert list(images).index(match.reference.image) == [number for number in order if number != own][match.rank]


def test_many_copies_take_few_comparisons(tmp_path, monkeypatch):
    """300 links to three images: two comparisons are enough to rule out a pool of copies."""
    rng = np.random.default_rng(0)
    for name in "abc":
        save(tmp_path / f"{name}.png", rng.integers(0, 255, (6, 8, 3)).astype(np.uint8))
    samples = []
    for number in range(300):
        path = tmp_path / f"{number:04}.png"
        path.hardlink_to(tmp_path / f"{'abc'[number % 3]}.png")
        samples.append(Sample(path, "part", True))
    compared = []
    same = FileComparer.same
    monkeypatch.setattr(FileComparer, "same", lambda self, a, b: compared.append(a) or same(self, a, b))
    matches = list(match_samples(samples, Pairing(normal_share=None)))
    assert len(matches) == 300
    assert all(int(m.target.image.stem) % 3 != int(m.reference.image.stem) % 3 for m in matches)
    assert len(compared) < 10 * len(samples)
