"""`differad build`, `build-recipe`, `split` and `check-leaks` as a user runs them."""

import json

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from differad.cli.build import build_command, build_recipe_command
from differad.cli.split import check_leaks_command, split_command
from differad.data.manifest import read_pairs
from differad.errors import InputError, ManifestError, OptionError

app = typer.Typer()
app.command("build")(build_command)
app.command("build-recipe")(build_recipe_command)
app.command("split")(split_command)
app.command("check-leaks")(check_leaks_command)


def differad(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path):
    """MVTec AD's layout: two categories with eight good parts and four defects."""
    rng = np.random.default_rng(0)
    root = tmp_path / "sets" / "mvtec"
    for category in ("nut", "tile"):
        for number in range(8):
            part = rng.integers(0, 200, (8, 8, 3), dtype=np.uint8).repeat(6, axis=0).repeat(6, axis=1)
            save(root / category / "train/good" / f"{number}.png", part)
            if number < 4:
                part[10:20, 10:24] = 255
                mask = np.zeros((48, 48), np.uint8)
                mask[10:20, 10:24] = 255
                save(root / category / "test/dent" / f"{number}.png", part)
                save(root / category / "ground_truth/dent" / f"{number}_mask.png", mask)
    return root


def test_build_prints_one_json_document(root, tmp_path):
    out = tmp_path / "out"
    done = differad("build", "mvtec", root, "--out", out, "--check", "--sheet", "--checksums", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {
        "source": "mvtec",
        "manifest": str(out / "pairs.jsonl"),
        "samples": 24,
        "pairs": 16,
        "anomalous": 8,
        "place_unknown": 0,
        "normal": 8,
        "skipped": 0,
        "problems": [],
    }
    names = ["card.json", "card.md", "checksums.sha256", "pairs.jsonl", "sheet.html"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert all(pair.boxes.tolist() in ([], [[10, 10, 24, 20]]) for pair in read_pairs(out / "pairs.jsonl"))


def test_build_for_a_person_lists_what_it_left_out(root, tmp_path):
    (root / "nut/ground_truth/dent/1_mask.png").unlink()
    with pytest.raises(ManifestError, match="no mask at"):
        differad("build", "mvtec", root, "--out", tmp_path / "a")
    done = differad("build", "mvtec", root, "--out", tmp_path / "b", "--skip-bad", "--normals", 0)
    assert "7 pairs (7 anomalous, 0 normal), 1 left out" in done.stdout
    assert "skipped: " in done.stderr
    assert "no mask at" in done.stderr


def test_build_counts_defects_of_unknown_place_separately(tmp_path):
    root = tmp_path / "factory"
    for number in range(4):
        folder = root / ("good" if number < 2 else "bad")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (24, 24, 3), np.uint8)).save(
            folder / f"{number}.png"
        )
    done = differad("build", "folder", root, "--out", tmp_path / "a", "--all-normals", "--sheet")
    assert "4 pairs (2 anomalous (2 of unknown place), 2 normal), 0 left out" in done.stdout
    (root / "ground_truth/bad").mkdir(parents=True)
    Image.fromarray(np.eye(24, dtype=np.uint8) * 255).save(root / "ground_truth/bad/2.png")
    with pytest.raises(ManifestError, match=r"3.png: no mask at .* \(--unmasked unknown\)"):
        differad("build", "folder", root, "--out", tmp_path / "b")
    done = differad("build", "folder", root, "--out", tmp_path / "c", "--unmasked", "unknown")
    assert "4 pairs (2 anomalous (1 of unknown place), 2 normal), 0 left out" in done.stdout


def test_build_lazily(root, tmp_path):
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    done = differad("build", "mvtec", root, "--out", tmp_path / "out", "--lazy", "--all-normals", "--json")
    assert json.loads(done.stdout)["normal"] == 16
    assert json.loads((tmp_path / "out" / "card.json").read_text())["boxes_left_to_masks"] == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--copy", "--link"], "--copy with --link"),
        (["--lazy", "--check"], "--lazy with --check"),
        (["--lazy", "--pairing", "nearest"], "which --lazy excludes"),
        (["--pairing", "best"], "one of nearest, random, given"),
        (["--normals", "1"], "normal_share=1.0"),
        (["--category", "bolt"], "category 'bolt'"),
    ],
)
def test_options_that_do_not_go_together(root, tmp_path, options, message):
    with pytest.raises(OptionError, match=message):
        differad("build", "mvtec", root, "--out", tmp_path / "out", *options)


def test_build_recipe(root, tmp_path):
    pytest.importorskip("yaml", reason="recipes need pyyaml: pip install 'differad[data]'")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "title: t\ncategories:\n"
        "  - {category: Nut, group: complex, source: mvtec, from: [nut], count: 6}\n"
        "  - {category: Fabric, group: easy, source: aitex, count: 6}\n"
    )
    done = differad("build-recipe", recipe, "--root", tmp_path / "sets", "--out", tmp_path / "out")
    assert "6 of 12 pairs, 0 left out" in done.stdout
    assert "Get it: AITEX" in done.stderr
    given = ["--source-root", f"mvtec={root}", "--json"]
    done = differad("build-recipe", recipe, "--root", tmp_path, "--out", tmp_path / "again", *given)
    assert [one["state"] for one in json.loads(done.stdout)["categories"]] == ["built", "absent"]
    with pytest.raises(OptionError, match="expected SOURCE=PATH"):
        differad("build-recipe", recipe, "--root", tmp_path, "--out", tmp_path / "c", "--source-root", "mvtec")


@pytest.fixture
def manifest(root, tmp_path):
    differad("build", "mvtec", root, "--out", tmp_path / "pairs", "--normals", 0)
    return tmp_path / "pairs" / "pairs.jsonl"


def test_split_by_category(manifest, tmp_path):
    out = tmp_path / "split"
    done = differad("split", manifest, "--by", "category", "--held-out", "tile", "--out", out, "--json")
    sides = json.loads(done.stdout)["sides"]
    assert {name: (side["pairs"], side["anomalous"]) for name, side in sides.items()} == {
        "train": (4, 4),
        "test": (4, 4),
    }
    assert {pair.category for pair in read_pairs(out / "test.jsonl")} == {"tile"}
    assert "no leaks between 4 and 4 pairs" in differad("check-leaks", out / "train.jsonl", out / "test.jsonl").stdout
    assert all(pair.target.is_file() for pair in read_pairs(out / "train.jsonl"))


def test_split_by_instance(manifest, tmp_path):
    sides = ["--share", "a=0.5", "--share", "b=0.25", "--share", "c=0.25"]
    done = differad("split", manifest, "--by", "instance", *sides, "--out", tmp_path / "split")
    assert [line.split(",")[0] for line in done.stdout.splitlines()] == ["a: 4 pairs", "b: 2 pairs", "c: 2 pairs"]


def test_leaks_are_listed_and_end_with_an_error(manifest, tmp_path):
    with pytest.raises(ManifestError, match=r"16 leaks between the sides, the first image .*; expected none"):
        differad("check-leaks", manifest, manifest)
    done = CliRunner().invoke(app, ["check-leaks", str(manifest), str(manifest), "--json", "--shared-references"])
    assert json.loads(done.stdout)["kinds"] == {"image": 8, "product": 0, "near-duplicate": 0}
    assert isinstance(done.exception, ManifestError)


def test_a_split_by_category_that_leaks_is_not_written(manifest, tmp_path):
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    lines.append({**lines[0], "id": "again", "category": "tile"})
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ManifestError, match="leaks between the sides"):
        differad("split", manifest, "--by", "category", "--held-out", "tile", "--out", tmp_path / "split")
    assert not (tmp_path / "split").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--by", "colour"], "--by 'colour': expected category or instance"),
        (["--by", "category", "--share", "a=1"], "--share with --by category"),
        (["--by", "instance", "--held-out", "nut"], "--held-out with --by instance"),
        (["--by", "instance", "--share", "a"], "--share 'a': expected SIDE=SHARE"),
        (["--by", "instance", "--share", "../a=0.5"], r"--share '\.\./a=0\.5': expected SIDE=SHARE"),
        (["--by", "instance", "--share", "a=x"], "--share 'a=x'"),
        (["--by", "instance", "--share", "a=0.5", "--share", "b=0.6"], "that sum to 1"),
    ],
)
def test_split_options_are_checked(manifest, tmp_path, options, message):
    with pytest.raises(OptionError, match=message):
        differad("split", manifest, *options, "--out", tmp_path / "split")


def test_a_folder_in_use_is_refused(manifest, root):
    with pytest.raises(InputError, match="not empty"):
        differad("build", "mvtec", root, "--out", manifest.parent)


def test_an_unfinished_build_is_started_over(manifest, root, tmp_path):
    """Remains of a killed run: its marker, and half of a file."""
    commands = {
        "build": ["mvtec", root, "--sheet"],
        "split": [manifest, "--by", "category", "--held-out", "nut", "--radius", "0"],
    }
    for name, arguments in commands.items():
        out = tmp_path / "again" / name
        out.mkdir(parents=True)
        (out / ".differad-unfinished").write_text('"files of an unfinished build"\n"pairs.jsonl"\n"test.j')
        (out / "pairs.jsonl").write_text("{")
        with pytest.raises(InputError, match="holds an unfinished build; --force removes what it made and starts over"):
            differad(name, *arguments, "--out", out)
        assert differad(name, *arguments, "--out", out, "--force").exit_code == 0
        names = {"build": {"pairs.jsonl", "card.json", "card.md", "sheet.html"}, "split": {"train.jsonl", "test.jsonl"}}
        assert {path.name for path in out.iterdir()} == names[name]


@pytest.mark.parametrize("out", ["pairs", "derived/first/pairs"])
def test_the_output_folder_inside_the_data_set_is_no_kind_of_defect(root, tmp_path, monkeypatch, out):
    """Neither while it is written nor later, anywhere below the root."""
    parts = tmp_path / "parts"
    parts.mkdir()
    (root / "nut/train/good").rename(parts / "good")
    (root / "nut/test/dent").rename(parts / "dent")
    monkeypatch.chdir(parts)
    for name in (out, f"{out}_again"):
        done = differad("build", "folder", ".", "--out", name, "--all-normals", "--json")
        assert json.loads(done.stdout)["samples"] == 12
        assert {pair.extra.get("kind") for pair in read_pairs(parts / name / "pairs.jsonl")} == {None, "dent"}


def test_folders_that_lead_round_in_circles_are_listed_once(root, tmp_path):
    parts = tmp_path / "parts"
    parts.mkdir()
    (root / "nut/train/good").rename(parts / "good")
    (parts / "loop").mkdir()
    (parts / "loop" / "back").symlink_to(parts / "loop")
    done = differad("build", "folder", parts, "--out", tmp_path / "out", "--all-normals", "--json")
    assert json.loads(done.stdout)["samples"] == 8
