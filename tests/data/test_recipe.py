"""A recipe builds what is present and says what is absent; the shipped one holds the paper's categories."""

import json
from pathlib import Path

import numpy as np
import pytest

from differad.data.build import BuildOptions
from differad.data.manifest import read_pairs
from differad.data.recipe import build_recipe, read_recipe
from differad.errors import ManifestError, OptionError
from miniatures import damage, marked, mvtec, part, save

pytest.importorskip("yaml", reason="recipes need pyyaml: pip install 'differad[data]'")

AD_DUALDIFF = Path(__file__).parents[2] / "recipes" / "ad_dualdiff.yaml"
RECIPE = """
title: Two sources
note: a note
categories:
  - {category: Nut, group: complex, source: mvtec, from: [nut], count: 4}
  - {category: Both, group: easy, source: mvtec, from: [nut, tile], count: 100, normals: 0}
  - {category: Bolt, group: complex, source: mvtec, from: [bolt], count: 4}
  - {category: Fabric, group: easy, source: aitex, count: 4, note: strips}
"""


def recipe(tmp_path, text=RECIPE):
    (tmp_path / "recipe.yaml").write_text(text)
    return read_recipe(tmp_path / "recipe.yaml")


def test_present_categories_are_built_and_absent_ones_reported(tmp_path):
    mvtec(tmp_path / "sets" / "mvtec")
    out = tmp_path / "out"
    # One image is in two categories, so that each needs a separate manifest: ids would occur twice.
    text = RECIPE.replace("from: [nut, tile]", "from: [tile]")
    built = build_recipe(recipe(tmp_path, text), tmp_path / "sets", out, checksums=True)
    assert [(o.category, o.state, o.pairs) for o in built.outcomes] == [
        ("Nut", "built", 4),
        ("Both", "short", 3),
        ("Bolt", "unmatched", 0),
        ("Fabric", "absent", 0),
    ]
    assert "nothing there fits bolt; there is nut, tile" in built.outcomes[2].why
    assert built.outcomes[3].get.startswith("AITEX: 7 fabrics")
    assert "https://www.aitex.es/afid/" in built.outcomes[3].get
    pairs = list(read_pairs(out / "pairs.jsonl"))
    assert {(p.category, p.group) for p in pairs} == {("Nut", "complex"), ("Both", "easy")}
    assert sorted(p.name for p in out.iterdir()) == [
        "card.json", "card.md", "checksums.sha256", "pairs.jsonl", "sheet.html"
    ]  # fmt: skip
    card = json.loads((out / "card.json").read_text())
    assert card["notes"][0] == "a note"
    assert "Fabric: absent" in card["notes"][-1]
    assert "Absent: Fabric. Unmatched: Bolt." in (out / "sheet.html").read_text()
    assert built.summary()["wanted"] == 112


def half_unpacked(root):
    """A data set whose archive was partly unpacked: its folders exist, but not their contents."""
    (root / "Images").mkdir(parents=True)
    return root


def test_a_half_unpacked_data_set_affects_only_its_own_categories(tmp_path):
    mvtec(tmp_path / "sets" / "mvtec")
    half_unpacked(tmp_path / "sets" / "aitex")
    text = RECIPE.replace("from: [nut, tile]", "from: [tile]")
    with pytest.raises(ManifestError, match=str(tmp_path / "sets" / "aitex")):
        build_recipe(recipe(tmp_path, text), tmp_path / "sets", tmp_path / "out")
    skipping = BuildOptions(skip_bad=True)
    built = build_recipe(recipe(tmp_path, text), tmp_path / "sets", tmp_path / "out", skipping)
    assert [o.state for o in built.outcomes] == ["built", "short", "unmatched", "broken"]
    assert built.outcomes[3].why in built.problems
    assert "Broken: Fabric." in (tmp_path / "out" / "sheet.html").read_text()


def test_nothing_but_a_half_unpacked_data_set_says_why(tmp_path):
    half_unpacked(tmp_path / "sets" / "aitex")
    with pytest.raises(
        ManifestError, match=r"no pair of the recipe could be built; the first reason, of 'Fabric': .*aitex"
    ):
        build_recipe(recipe(tmp_path), tmp_path / "sets", tmp_path / "out", BuildOptions(skip_bad=True))


def test_merged_categories_keep_to_their_own_references(tmp_path):
    mvtec(tmp_path / "sets" / "mvtec")
    text = "title: t\ncategories: [{category: All, group: g, source: mvtec, count: 12, pairing: random}]"
    built = build_recipe(recipe(tmp_path, text), tmp_path / "sets", tmp_path / "out")
    assert len(built.pairs) == 12
    for pair in built.pairs:
        assert Path(pair.reference).parts[-4] == Path(pair.target).parts[-4]
        assert pair.extra["view"] == Path(pair.target).parts[-4]


def test_one_image_in_two_categories_is_refused(tmp_path):
    mvtec(tmp_path / "sets" / "mvtec")
    with pytest.raises(ManifestError, match="'Nut' and 'Both' both take mvtec/nut/"):
        build_recipe(recipe(tmp_path), tmp_path / "sets", tmp_path / "out")


def test_roots_views_kinds_and_problems(tmp_path):
    root = mvtec(tmp_path / "elsewhere")
    save(root / "nut/test/dent/000.png", damage(part(0), (1, 1, 9, 9)))
    save(root / "nut/ground_truth/dent/000_mask.png", marked((1, 1, 9, 9)))
    save(root / "nut/ground_truth/scratch/000_mask.png", np.zeros((96, 96), np.uint8))
    text = "title: t\ncategories: [{category: N, group: g, source: mvtec, from: [nut], kinds: [dent], count: 9, normals: 0}]"
    roots = {"mvtec": root}
    built = build_recipe(recipe(tmp_path, text), tmp_path, tmp_path / "out", roots=roots)
    assert [pair.extra["kind"] for pair in built.pairs] == ["dent"]
    skipping = BuildOptions(skip_bad=True)
    both = text.replace("dent]", "dent, scratch]")
    again = build_recipe(recipe(tmp_path, both), tmp_path, tmp_path / "out2", skipping, roots=roots)
    assert (len(again.pairs), len(again.problems)) == (3, 1)
    with pytest.raises(OptionError, match="source 'visa': not in the recipe; expected one of mvtec"):
        build_recipe(recipe(tmp_path, text), tmp_path, tmp_path / "out3", roots={"visa": root})


def test_nothing_present_at_all(tmp_path):
    with pytest.raises(ManifestError, match=r"holds no data set of the recipe; expected a folder such as .*mvtec"):
        build_recipe(recipe(tmp_path), tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("source: aitex", "source: aitecs"), r"categories.3.source: 'aitecs'.*no such source; expected one of 3cad"),
        (("count: 100", "count: 0"), r"categories.1.count: '0'.*greater than or equal to 1"),
        (("count: 100", "counts: 100"), r"categories.1.count: Field required"),
        (("note: strips", "remark: strips"), r"categories.3.remark.*Extra inputs"),
        (("category: Both", "category: Nut"), "category 'Nut' occurs twice"),
        (("title: Two sources", ""), "title: Field required"),
        (("normals: 0}", "normals: 1}"), "categories.1.normals: '1'.*less than 1"),
        (("title: Two sources", "title: ["), "not YAML"),
        ((RECIPE, "- 3"), "recipe:"),
        ((RECIPE, ""), "recipe:"),
    ],
)
def test_errors_name_the_key(tmp_path, change, message):
    with pytest.raises(ManifestError, match=message) as caught:
        recipe(tmp_path, RECIPE.replace(*change))
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ManifestError, match="no such file; expected a recipe"):
        read_recipe(tmp_path / "gone.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"title: \xe9")
    with pytest.raises(ManifestError, match="cannot be read"):
        read_recipe(tmp_path / "latin.yaml")


def test_the_shipped_recipe_holds_the_paper_s_categories():
    shipped = read_recipe(AD_DUALDIFF)
    groups = [entry.group for entry in shipped.categories]
    assert len(groups) == 20
    assert [groups.count(name) for name in ("easy structure", "common logic", "complex structure")] == [4, 4, 12]
    assert sum(entry.count for entry in shipped.categories) == 13_000
    assert all(entry.note for entry in shipped.categories)
