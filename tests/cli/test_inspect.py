"""`differad inspect`: a good part and a folder; nothing labelled, nothing listed, nothing lost."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from differad import load_locator
from differad.cli.main import run
from differad.errors import ImageError, InputError, InputWarning
from differad.evaluation.inspection import inspect_folder
from differad.images import read_image

EXAMPLES = Path(__file__).parents[2] / "examples"
GOOD, DEFECT = EXAMPLES / "board_good.png", EXAMPLES / "board_defect.png"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A good part, and a folder with a good and a bad one, a bad one in a subfolder, and noise that cannot be aligned."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(GOOD, "good.png")
    (tmp_path / "test" / "sub").mkdir(parents=True)
    shutil.copy(GOOD, "test/a.png")
    shutil.copy(DEFECT, "test/b.png")
    shutil.copy(DEFECT, "test/sub/b.png")
    noise = np.random.default_rng(0).integers(0, 256, (320, 320, 3), np.uint8)
    Image.fromarray(noise).save("test/noise.png")
    return tmp_path


def inspect(*arguments, model="difference"):
    return run(["inspect", *map(str, arguments), "--out", "out", "--model", model])


def rows(out="out"):
    with (Path(out) / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def verdicts(out="out"):
    return {row["id"]: row["verdict"] for row in rows(out)}


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_a_folder(place, capsys):
    assert inspect("good.png", "test") == 3
    assert verdicts() == {"a.png": "accept", "b.png": "reject", "noise.png": "review", "sub/b.png": "reject"}
    by_id = {row["id"]: row for row in rows()}
    assert [by_id["b.png"][name] for name in ("target", "reference", "comparable", "anomalous")] == [
        *("test/b.png", "good.png", "true", "true")
    ]
    assert np.shape(json.loads(by_id["b.png"]["boxes"])) == (1, 4)
    assert float(by_id["b.png"]["confidence"]) > 0.5 > float(by_id["a.png"]["confidence"])
    assert float(by_id["b.png"]["seconds"]) > 0
    assert (by_id["noise.png"]["anomalous"], by_id["noise.png"]["comparable"]) == ("", "false")
    assert "does not register" in by_id["noise.png"]["reason"]
    drawn = {name: row["overlay"] for name, row in by_id.items() if row["overlay"]}
    assert set(drawn) == {"b.png", "noise.png", "sub/b.png"}
    for name, overlay in drawn.items():
        changed = (read_image(f"out/{overlay}") != read_image(f"test/{name}")).any(axis=2)
        assert changed.any()
    page = Path("out/report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2 * 4  # good part and target of each
    streams = capsys.readouterr()
    assert "4 targets: 2 abnormal, 1 normal, 1 without an answer: out/results.csv, out/report.html" in streams.out
    assert "noise.png  no answer" in streams.out


def test_json_lines_of_this_run_and_the_last(place, capsys):
    for _ in range(2):
        assert inspect("good.png", "test", "--json") == 3
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert {line["id"]: line["anomalous"] for line in lines} == {
            "a.png": False, "b.png": True, "noise.png": None, "sub/b.png": True
        }  # fmt: skip
        assert {"target", "reference", "verdict", "boxes", "confidence", "reasoning", "seconds"} <= set(lines[0])


@pytest.mark.parametrize(
    ("targets", "ids"),
    [
        (["test/a.png"], {"a.png"}),
        (["test/a.png", "test/b.png"], {"a.png", "b.png"}),
        (["test/a.png", "test/sub"], {"a.png", "sub/b.png"}),
        (["test/sub/b.png", "test/sub", "test/sub/../sub/b.png"], {"b.png"}),
    ],
)
def test_ids_are_paths_below_the_folder_that_holds_all(place, targets, ids):
    inspect("good.png", *targets)
    assert set(verdicts()) == ids


def test_exit_codes(place, capsys):
    assert inspect("good.png", "test/a.png") == 0
    shutil.rmtree("out")
    assert inspect("good.png", "test/a.png", "test/noise.png") == 4
    assert inspect("good.png", "test/a.png", "test/noise.png", "--no-fail-on-anomaly") == 0
    shutil.rmtree("out")
    assert inspect("good.png", "test/noise.png", "--no-fail-on-anomaly") == 4
    assert "no target has an answer, the first: test/noise.png: The reference does not" in capsys.readouterr().err


def test_the_environment_decides_by_default(place, monkeypatch):
    monkeypatch.setenv("DIFFERAD_FAIL_ON_ANOMALY", "0")
    assert inspect("good.png", "test/b.png") == 0
    monkeypatch.setenv("DIFFERAD_FAIL_ON_ANOMALY", "1")
    assert run(["locate", "good.png", "test/b.png", "-m", "difference"]) == 3
    assert run(["locate", "good.png", "test/b.png", "-m", "difference", "--no-fail-on-anomaly"]) == 0


def test_an_unreadable_image_is_a_row(place, capsys):
    Path("test/broken.png").write_bytes(GOOD.read_bytes()[:3000])
    Path("test/photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    Path("test/notes.txt").write_text("not a part")
    assert inspect("good.png", "test") == 3
    found = verdicts()
    assert (found["broken.png"], found["photo.heic"], len(found)) == ("review", "review", 6)
    assert "broken or truncated" in next(row["reason"] for row in rows() if row["id"] == "broken.png")
    streams = capsys.readouterr()
    assert "1 file is ignored, the first: test/notes.txt" in streams.err
    assert "2 of 6 pairs failed, the first: test/broken.png" in streams.err
    shutil.copy(GOOD, "test/broken.png")  # mended, it is tried again
    inspect("good.png", "test")
    assert verdicts() == {**found, "broken.png": "accept"}


def test_all_unreadable(place, capsys):
    Path("test/a.png").write_bytes(b"")
    assert inspect("good.png", "test/a.png") == 2
    assert verdicts() == {"a.png": "review"}
    assert "all 1 pairs failed, the first: test/a.png" in capsys.readouterr().err


class Killed:
    """A locator that is ended after so many answers, as Ctrl-C ends it."""

    def __init__(self, count):
        self._locator = load_locator("difference")
        self.name, self.options, self.weights = self._locator.name, self._locator.options, ()
        self._left = count

    def locate_many(self, pairs):
        for outcome in self._locator.locate_many(pairs):
            if not self._left:
                raise KeyboardInterrupt
            self._left -= 1
            yield outcome


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_killed_run_continues(place, count):
    inspect("good.png", "test")
    whole = rows()
    others = {name: content for name, content in contents("out").items() if name.suffix in (".jpg", ".html")}
    shutil.rmtree("out")
    with pytest.raises(KeyboardInterrupt):
        inspect_folder("good.png", ["test"], Killed(count), "out", progress=False)
    begun = rows()
    assert [row["id"] for row in begun] == [row["id"] for row in whole[:count]]
    inspect("good.png", "test")
    assert rows()[:count] == begun  # with the seconds of the first run: not done again
    assert [{**row, "seconds": None} for row in rows()] == [{**row, "seconds": None} for row in whole]
    assert {name: content for name, content in contents("out").items() if name.suffix in (".jpg", ".html")} == others


def test_a_folder_that_fills_up(place):
    inspect("good.png", "test")
    before = {row["id"]: row for row in rows()}
    shutil.copy(DEFECT, "test/0_new.png")
    inspect("good.png", "test")
    after = rows()
    assert [row["id"] for row in after] == ["0_new.png", *before]
    assert [row for row in after if row["id"] in before] == list(before.values())


def test_another_model_or_another_good_part_is_refused(place, capsys):
    inspect("good.png", "test")
    before = contents("out")
    assert inspect("good.png", "test", "-o", "tolerance=3") == 2
    assert "holds a run with other options" in capsys.readouterr().err
    shutil.copy(GOOD, "other.png")
    assert inspect("other.png", "test") == 2
    assert "out: holds an answer to other images for pair 'a.png'" in capsys.readouterr().err
    assert contents("out").keys() == before.keys()
    assert all(contents("out")[name] == before[name] for name in before if name.suffix in (".csv", ".html"))
    assert contents("out")[Path("pairs.jsonl")] == before[Path("pairs.jsonl")]


def shade(path, left, right):
    """A part whose left half is one grey and whose right half another."""
    pixels = np.full((64, 64, 3), left, np.uint8)
    pixels[:, 32:] = right
    pixels += np.random.default_rng(left).integers(0, 3, pixels.shape, np.uint8)
    Path(path).parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_the_most_similar_good_part_is_the_reference(place):
    for name, left, right in (("dark", 40, 90), ("bright", 150, 200), ("mirrored", 90, 40)):
        shade(f"good/{name}.png", left, right)
        shade(f"new/{name}_too.png", left + 4, right + 4)
    shutil.copy("good/dark.png", "new/dark_copy.png")
    Path("new/empty.png").write_bytes(b"")
    inspect("good", "new")
    assert {row["id"]: row["reference"] for row in rows()} == {
        "dark_too.png": "good/dark.png",
        "bright_too.png": "good/bright.png",
        "mirrored_too.png": "good/mirrored.png",
        "dark_copy.png": "good/bright.png",  # its own file says nothing of it
        "empty.png": "good/bright.png",  # the first: no part can look like it
    }
    shade("good/closer.png", 44, 94)  # one more good part: finished targets keep theirs
    shade("new/dark_3.png", 45, 95)
    inspect("good", "new")
    references = {row["id"]: row["reference"] for row in rows()}
    assert (references["dark_too.png"], references["dark_3.png"]) == ("good/dark.png", "good/closer.png")


def test_good_parts_that_cannot_be_read(place):
    Path("good").mkdir()
    Path("good/0.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"no good part can be read, the first: good/0\.png"):
        inspect_folder("good", ["test"], load_locator("difference"), "out", progress=False)
    shutil.copy(GOOD, "good/1.png")
    with pytest.warns(InputWarning, match="1 of 2 good parts cannot be read and are left out, the first: good/0.png"):
        inspect_folder("good", ["test"], load_locator("difference"), "out", progress=False)
    assert {row["reference"] for row in rows()} == {"good/1.png"}


def test_good_parts_and_earlier_results_are_no_targets(place):
    Path("test/good").mkdir()
    shutil.move("good.png", "test/good/1.png")
    command = ["inspect", "test/good", "test", "--out", "test/out", "--model", "difference"]
    for _ in range(2):
        assert run(command) == 3
        assert set(verdicts("test/out")) == {"a.png", "b.png", "noise.png", "sub/b.png"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["good.png"], "expected GOOD and TARGETS, images or folders of them"),
        (["good.png", "gone"], "gone: no such file or folder"),
        (["gone.png", "test"], "gone.png: no such file or folder"),
        (["test", "test"], "holds no image to inspect; the good parts are no targets"),
        (["empty", "test"], "empty: holds no image"),
        (["good.png", "empty"], "empty: holds no image to inspect"),
        (["good.png", "test", "--pairs", "pairs.jsonl"], "good.png beside --pairs"),
        (["--pairs", "gone.jsonl"], "gone.jsonl: no such file"),
    ],
)
def test_nothing_to_inspect(place, capsys, arguments, message):
    Path("empty").mkdir()
    assert inspect(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_an_output_folder_that_holds_the_images(place):
    with pytest.raises(InputError, match="test: holds the images that are compared"):
        inspect_folder("good.png", ["test"], load_locator("difference"), "test")


@pytest.mark.parametrize(
    ("command", "way"),
    [
        (["locate", "good", "test"], "differad inspect good test --out DIR"),
        (["locate", "good.png", "test"], "differad inspect good.png test --out DIR"),
        (["locate", "good.png", "test/a.png", "test/b.png"], "differad inspect good.png test/a.png … --out DIR"),
        (["locate", "--pairs", "test", "--out", "p.jsonl"], "differad inspect GOOD test --out DIR"),
        (["evaluate", "test", "--out", "e"], "differad inspect GOOD test --out DIR"),
        (["build", "folder", "test", "--out", "e"], "differad inspect GOOD TARGETS --out DIR"),
        (["build", "folder", ".", "--out", "e"], "differad inspect GOOD test --out DIR"),
    ],
)
def test_other_commands_name_this_command(place, capsys, command, way):
    Path("good").mkdir()
    shutil.copy(GOOD, "good/1.png")
    assert run(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert way in line


def test_pairs_without_labels(place, capsys):
    inspect("good.png", "test")
    assert run(["evaluate", "out/pairs.jsonl", "--out", "e"]) == 2
    assert "differad inspect --pairs out/pairs.jsonl --out DIR" in capsys.readouterr().err
    assert run(["inspect", "--pairs", "out/pairs.jsonl", "--out", "again", "--model", "difference"]) == 3
    assert verdicts("again") == verdicts()


def test_labels_come_later(place, capsys):
    inspect("good.png", "test")
    predictions = ["--predictions", "out/predictions.jsonl"]
    assert run(["export", "coco", "out/pairs.jsonl", "sent", "--root", ".", *predictions]) == 0
    lines = [json.loads(line) for line in Path("out/pairs.jsonl").read_text().splitlines()]
    labelled = [{**line, "boxes": [[180, 64, 218, 102]] if "b.png" in line["id"] else []} for line in lines]
    Path("out/labelled.jsonl").write_text("".join(json.dumps(line) + "\n" for line in labelled))
    capsys.readouterr()
    assert run(["score", "out/labelled.jsonl", "out/predictions.jsonl", "--json"]) == 0
    overall = json.loads(capsys.readouterr().out)["overall"]
    assert (overall["pairs"], overall["anomalous"], overall["acc_0.5"], overall["valid"]) == (4, 2, 1.0, 0.75)


def test_odd_files(place, capsys):
    for name in ("pipe.png", "sub/pipe.jpg"):
        os.mkfifo(place / "test" / name)
    (place / "test" / "device.png").symlink_to("/dev/zero")
    (place / "test" / "gone.png").symlink_to("nowhere")
    (place / "test" / "folder.png").mkdir()
    inspect("good.png", "test")
    assert set(verdicts()) == {"a.png", "b.png", "noise.png", "sub/b.png", "gone.png"}
    assert "test: 3 files are ignored, the first: test/device.png: a pipe or a device" in capsys.readouterr().err
    assert inspect("good.png", "test/pipe.png") == 2
    assert "test/pipe.png: can be read only once" in capsys.readouterr().err


def test_an_overlay_that_no_jpeg_could_hold(place):
    strip = np.random.default_rng(0).integers(0, 256, (16, 66_000, 3), np.uint8)
    Image.fromarray(strip).save("strip.png")
    assert inspect("good.png", "strip.png") == 4
    (row,) = rows()
    assert read_image(Path("out", row["overlay"])).shape[1] == 65_000


def test_harmful_names(place):
    names = [
        "<b>bold.png",
        'quo"te, comma.png',
        "two\nlines.png",
        "=1+1.png",
        f"{'x' * 246}.png",
        "page[2].png",
        "é.png",
    ]
    for name in names:
        shutil.copy(DEFECT, Path("test") / name)
    assert inspect("good.png", "test") == 3
    assert {name: verdicts()[name] for name in names} == dict.fromkeys(names, "reject")
    assert all(Path("out", row["overlay"]).is_file() for row in rows() if row["overlay"])
    page = Path("out/report.html").read_text()
    assert "<b>bold" not in page
    assert "&lt;b&gt;bold" in page
    inspect("good.png", "test")
    assert len(rows()) == len(names) + 4


def test_ids_that_lead_out_of_the_folder(place):
    lines = [{"id": name, "reference": "good.png", "target": "test/b.png"} for name in ("../out", "/etc/x", ".", "a/b")]
    Path("own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(["inspect", "--pairs", "own.jsonl", "--out", "out/new", "--model", "difference"]) == 3
    overlays = {row["overlay"] for row in rows("out/new")}
    assert len(overlays) == 4
    assert {path.parent for path in map(Path, overlays)} == {Path("overlays")}
    assert {path.name for path in Path("out").iterdir()} == {"new"}
