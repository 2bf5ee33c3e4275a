"""Whatever cannot be written: one line, exit code 2, nothing to trip over; the same command then ends as if nothing had been."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("resource", reason="limits of a process are POSIX's")
from differad.cli.main import run
from differad.data.manifest import read_pairs
from differad.errors import InputWarning, WriteError
from differad.files import AppendFile, atomic_folder, atomic_write, leftovers, sync_files, write_bytes, write_text
from differad.images import read_image
from differad.synthesis.draw import SynthesisOptions
from differad.synthesis.run import synthesize
from faults import Disk, full_after, no_file_above

SIDE = 48
BOX = [8, 8, 14, 13]
SYNTHESIZE = ("synthesize", "--count", "3", "--size", "32", "--seed", "3", "--out", "{out}/set")
BUILD = ("build", "folder", "{data}/parts", "--out", "{out}/built", "--copy", "--sheet", "--checksums", "--all-normals")
COMMANDS = {
    "locate": ("locate", "--pairs", "{data}/pairs.jsonl", "--out", "{out}/new/p.jsonl", "--model", "difference"),
    "save": ("locate", "{data}/good.png", "{data}/1.png", "--save", "{out}/new/o.png", "--model", "difference"),
    "evaluate": ("evaluate", "{data}/pairs.jsonl", "--out", "{out}/new/run", "--model", "difference"),
    "inspect": (
        *("inspect", "{data}/good.png", "{data}/0.png", "{data}/1.png", "{data}/2.png", "--out", "{out}/new/run"),
        *("--model", "difference", "--no-fail-on-anomaly"),
    ),
    "synthesize": SYNTHESIZE,
    "webdataset": (*SYNTHESIZE, "--format", "webdataset", "--shard-size", "2"),
    "parquet": (*SYNTHESIZE, "--format", "parquet", "--shard-size", "2"),
    "build": BUILD,
    "link": ("build", "folder", "{data}/parts", "--out", "{out}/built", "--link"),
    "recipe": (
        *("build-recipe", "{data}/recipe.yaml", "--root", "{data}", "--source-root", "folder={data}/parts"),
        *("--out", "{out}/built", "--copy"),
    ),
    "split": ("split", "{data}/own.jsonl", "--by", "category", "--held-out", "b", "--out", "{out}/sides"),
    "import": (
        "import",
        "label-studio",
        "{data}/tasks.json",
        "{data}/pairs.jsonl",
        "{out}/new.jsonl",
        "--masks",
        "{out}/m",
    ),
} | {
    f"export {name}": ("export", name, "{data}/pairs.jsonl", "{out}/sent", "--predictions", "{data}/predictions.jsonl")
    for name in ("coco", "yolo", "label-studio", "cvat")
}
COMMANDS["export yolo --copy"] = (*COMMANDS["export yolo"], "--copy")
NEEDS = {"parquet": "pyarrow", "recipe": "yaml"}
# What no two runs have in common.
TIMES = re.compile(
    rb'"(?:median_)?seconds": [0-9.]+|median [0-9.]+ s a pair|(?<=,)[0-9.]+(?=,(?:true|false)?,"?\[)'  # the last: results.csv
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four pairs, their predictions, an export of Label Studio, and a folder of good and bad parts."""
    folder = tmp_path_factory.mktemp("data") / "data"
    rng = np.random.default_rng(0)
    lines = []
    for name in ("good", "0", "1", "2", "3"):
        if name in ("good", "2"):
            scene = np.asarray(Image.fromarray(rng.integers(40, 200, (8, 8, 3), np.uint8)).resize((SIDE, SIDE)))
        pixels = scene + rng.integers(0, 2, scene.shape, np.uint8)
        spoilt = pixels.copy()
        spoilt[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
        save(folder / f"{name}.png", spoilt if name in "13" else pixels)
        if name in ("good", "0"):
            save(folder / "parts" / "good" / f"{name}.png", pixels)
        if name == "1":
            save(folder / "parts" / "dent" / f"{name}.png", spoilt)
            save(
                folder / "parts" / "masks" / "dent" / f"{name}.png",
                (spoilt != pixels).any(axis=2).astype(np.uint8) * 255,
            )
        if name != "good":
            boxes = [BOX] if name in "13" else []
            reference = "good.png" if name in "01" else "2.png"
            names = {"reference": reference, "target": f"{name}.png", "category": "a" if name in "01" else "b"}
            lines.append({"id": name, **names, "boxes": boxes})
    for manifest in ("pairs", "own"):
        (folder / f"{manifest}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = [{"id": line["id"], "boxes": line["boxes"], "scores": [0.5] * len(line["boxes"])} for line in lines]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))
    entry = "{category: part, group: all, source: folder, count: 2, pairing: random}"
    (folder / "recipe.yaml").write_text(f"title: parts\ncategories: [{entry}]\n")
    (folder / "tasks.json").write_text(json.dumps([polygon(name) for name in "13"]))
    return folder


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def polygon(pair_id):
    """An export of Label Studio with a triangle."""
    value = {"points": [[10, 10], [60, 10], [10, 70]], "polygonlabels": ["defect"]}
    region = {"id": "r", "type": "polygonlabels", "from_name": "p", "to_name": "image", "value": value}
    size = {"original_width": SIDE, "original_height": SIDE, "image_rotation": 0}
    return {"id": 1, "data": {"pair_id": pair_id}, "annotations": [{"id": 1, "result": [{**region, **size}]}]}


def files(folder):
    """Every file below a folder by its name, without parts that differ between runs."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): TIMES.sub(b"", path.read_bytes()) for path in found}


def differad(name, data, out):
    return run([part.format(data=data, out=out) for part in COMMANDS[name]] + ["--quiet"])


def check_line(captured, out):
    """One line on stderr that names a path below `out` and how to continue."""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("differad: ")
    assert str(out) in lines[0]
    assert "make room there, or choose another place" in lines[0]


def check_nothing_half(out):
    """No temporary file, none that is empty, no marker."""
    left = {name: len(content) for name, content in files(out).items()}
    assert [name for name, size in left.items() if name.endswith(".tmp") or "unfinished" in name or not size] == []


@pytest.fixture(params=[name for name in COMMANDS if name != "export yolo"])
def command(request):
    if request.param in NEEDS and find_spec(NEEDS[request.param]) is None:
        pytest.skip(f"{NEEDS[request.param]} is not installed")
    return request.param


_WHOLE = {}


@pytest.fixture
def whole(command, data, capsys, monkeypatch):
    """The files of an undisturbed run, and how often it asked for room."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no power is cut here, and a busy disk takes its time
    if command not in _WHOLE:
        out = data.parent / "whole" / command
        out.mkdir(parents=True)
        with full_after(out) as calls:
            assert differad(command, data, out) == 0
            _WHOLE[command] = files(out), calls()
        capsys.readouterr()
    return _WHOLE[command]


def test_no_room_for_the_nth_call(command, data, whole, capsys):
    """The disk is full from the n-th call that needs space, for every n."""
    expected, count = whole
    assert count > 1
    for calls in range(count):
        out = data.parent / "tried" / command
        out.mkdir(parents=True)
        with full_after(out, calls):
            assert differad(command, data, out) == 2, calls
        check_line(capsys.readouterr(), out)
        check_nothing_half(out)
        assert differad(command, data, out) == 0, capsys.readouterr().err
        capsys.readouterr()
        assert files(out) == expected, calls
        shutil.rmtree(out)


@pytest.mark.parametrize("size", [10, 1000])
def test_a_write_that_is_cut_off(command, data, whole, capsys, size):
    """The operating system accepts the first bytes of any file and refuses the rest."""
    expected, _ = whole
    out = data.parent / "cut" / command
    out.mkdir(parents=True)
    with no_file_above(size):
        code = differad(command, data, out)
    captured = capsys.readouterr()
    links = command == "link" and size > 10  # what is linked was there before
    assert code == 2 or links or max(map(len, expected.values())) <= size
    if code:
        check_line(captured, out)
        check_nothing_half(out)
        assert differad(command, data, out) == 0, capsys.readouterr().err
    assert files(out) == expected
    shutil.rmtree(out)


@pytest.fixture
def small_disk(data):
    """A file system of 64 KiB, as deep in the tree as other outputs; it is removed afterwards."""
    folder = data.parent / "mounted"
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a file system can be mounted by root alone, and not everywhere")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("kept", [4, 24])
def test_a_small_disk(command, data, whole, small_disk, capsys, kept):
    """A real one, with so many KiB left."""
    expected, _ = whole
    filling = small_disk / "filling"
    filling.write_bytes(bytes((64 - kept) << 10))
    out = small_disk / command
    out.mkdir()
    if differad(command, data, out):
        check_line(capsys.readouterr(), out)
        check_nothing_half(out)
        filling.unlink()
        assert differad(command, data, out) == 0, capsys.readouterr().err
    assert files(out) == expected


def test_the_verdict_comes_before_the_image(data, tmp_path, capsys):
    with full_after(tmp_path, 0):
        assert differad("save", data, tmp_path) == 2
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1].startswith("  difference, ")
    check_line(captured, tmp_path)
    assert files(tmp_path) == {}


def test_a_table_comes_before_the_image(tmp_path, capsys):
    with full_after(tmp_path, 0):
        assert run(["audit-reward", "--save", str(tmp_path / "audit.png"), "--json", "--quiet"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["trials"] > 0
    check_line(captured, tmp_path)


@pytest.mark.parametrize(
    "name", ["locate", "evaluate", "synthesize", "build", "export coco", "import", "split", "save"]
)
def test_an_output_that_cannot_be_written(name, data, tmp_path, capsys):
    """A file has the path of an output folder."""
    (tmp_path / "file").write_bytes(b"mine")
    assert differad(name, data, tmp_path / "file") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "file") in line
    assert "; choose another place" in line
    assert files(tmp_path) == {"file": b"mine"}


def test_stdout_that_is_full():
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    for command in (["models"], ["models", "--json"]):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "differad", *command], stdout=full, stderr=subprocess.PIPE, text=True
            )
        assert done.returncode == 2
        assert done.stderr == (
            "differad: stdout: cannot be written (No space left on device); make room there, or choose another place\n"
        )


def test_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(FileNotFoundError), atomic_write(path) as fresh:
        fresh.write_text((tmp_path / "nowhere").read_text())
    assert files(tmp_path) == {"a.txt": b"old"}
    with atomic_write(path) as fresh:
        fresh.write_text("new")
        assert path.read_text() == "old"
        assert leftovers([path]) == [fresh]
    assert files(tmp_path) == {"a.txt": b"new"}


def test_what_a_file_may_replace(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(WriteError, match="folder: cannot be written"):
        write_text(tmp_path / "folder", "")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(WriteError, match="not a regular file"):
        write_text(tmp_path / "pipe", "")
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    longest = tmp_path / ("n" * 251 + ".txt")
    with atomic_write(longest) as fresh:
        fresh.write_text("")
        assert leftovers([longest]) == [fresh]
    assert longest.exists()


def test_an_error_about_another_file_is_no_failed_write(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a"):
        (tmp_path / "nowhere").read_bytes()
    with pytest.raises(OSError, match="of a library") as caught, atomic_write(tmp_path / "a"):
        raise OSError("of a library")
    assert not isinstance(caught.value, WriteError)
    assert files(tmp_path) == {}


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    def fill(content, fail=False):
        with atomic_folder(tmp_path / "model") as fresh:
            write_text(fresh / "a", content)
            (fresh / "below").mkdir()
            if fail:
                raise OSError(errno.ENOSPC, "full", str(fresh / "b"))

    (tmp_path / "model.tmp").mkdir()  # of a run that was killed
    (tmp_path / "model.tmp" / "half").write_text("")
    with pytest.raises(WriteError, match="model: cannot be written"):
        fill("one", fail=True)
    assert list(tmp_path.iterdir()) == []
    fill("one")
    with pytest.raises(WriteError):
        fill("two", fail=True)
    assert files(tmp_path) == {"model/a": b"one"}
    (tmp_path / "model").rename(tmp_path / "model.old.tmp")  # a kill between the two steps
    with pytest.raises(WriteError):
        fill("two", fail=True)
    assert files(tmp_path) == {"model/a": b"one"}
    fill("two")
    assert files(tmp_path) == {"model/a": b"two"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_line_that_does_not_fit_is_cut_off(tmp_path):
    path = tmp_path / "lines"
    with AppendFile(path) as file:
        file.append("one\n")
        with no_file_above(6), pytest.raises(WriteError, match="lines: cannot be written"):
            file.append("two\n")
        assert path.read_text() == "one\n"
        file.append("three\n")
    assert path.read_text() == "one\nthree\n"
    with no_file_above(6), pytest.raises(WriteError), AppendFile(tmp_path / "new") as file:
        file.append("too long\n")
    assert not (tmp_path / "new").exists()


OPTIONS = SynthesisOptions(seed=5, size=32)


def draw(out, form="folder", count=12):
    return synthesize(OPTIONS, count, out, format=form, shard_size=4, progress=False)


@pytest.mark.parametrize("form", ["folder", "webdataset"])
def test_a_power_cut_takes_nothing_that_the_manifest_names(tmp_path, monkeypatch, form):
    disk = Disk(tmp_path, monkeypatch)
    draw(tmp_path / "set", form)
    manifest = next((tmp_path / "set").glob("*s.jsonl"))
    lines = manifest.read_bytes()
    disk.cut_power()
    # The manifest may come to the disk by itself, all of it, and its last lines as zeros.
    manifest.write_bytes(lines)
    if form == "folder":
        for pair in read_pairs(manifest):
            read_image(pair.reference), read_image(pair.target)
    assert draw(tmp_path / "set", form).kept == 12
    manifest.write_bytes(lines[: len(lines) // 2] + bytes(30) + b"\n")
    draw(tmp_path / "set", form)
    draw(tmp_path / "whole", form)
    assert files(tmp_path / "set") == files(tmp_path / "whole")


def before_the_end(path):
    """A size at which a cut-off file looks valid: a tar between two pairs."""
    if path.suffix != ".tar":
        return -1
    with tarfile.open(path) as tar:
        return next(member.offset for member in tar.getmembers()[1:] if member.name.endswith("reference.png"))


@pytest.mark.parametrize("form", ["folder", "webdataset", "parquet"])
@pytest.mark.parametrize("damage", ["empty", "gone", "cut", "short"])
def test_a_set_with_lost_files_is_completed(tmp_path, form, damage):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    draw(tmp_path / "whole", form, count=48)  # more than are read completely when a set is continued
    shutil.copytree(tmp_path / "whole", tmp_path / "set")
    names = sorted(name for name in files(tmp_path / "set") if name.endswith((".png", ".tar", ".parquet")))
    lost = tmp_path / "set" / names[len(names) // 2]
    if damage == "gone":
        lost.unlink()
    else:
        lost.write_bytes(lost.read_bytes()[: {"empty": 0, "cut": 100, "short": before_the_end(lost)}[damage]])
    message = {"empty": "empty", "gone": "missing"}.get(damage, "incomplete")
    with pytest.warns(InputWarning, match=f"{lost.name}: {message}; pairs are generated again from number"):
        assert draw(tmp_path / "set", form, count=48).kept < 48
    assert files(tmp_path / "set") == files(tmp_path / "whole")


def test_what_the_predictions_name_survives_a_power_cut(data, tmp_path, monkeypatch, capsys):
    disk = Disk(tmp_path, monkeypatch)
    assert differad("evaluate", data, tmp_path) == 0
    whole = files(tmp_path)
    disk.cut_power()
    assert files(tmp_path) == whole
    # Before the last sync: the predictions came to the disk, the log of their images did not.
    for left in (b"", b"\0" * 20):
        (tmp_path / "new" / "run" / "images.jsonl").write_bytes(left)
        assert differad("evaluate", data, tmp_path) == 0, capsys.readouterr().err
        assert files(tmp_path) == whole


@pytest.mark.parametrize("name", ["evaluate", "inspect", "locate"])
def test_a_power_cut_at_any_moment_of_a_run(data, tmp_path, monkeypatch, capsys, name):
    """All files that the predictions name are whole, and the same command gives the result of an uninterrupted run."""
    monkeypatch.setattr("differad.evaluation.run.SECONDS_BETWEEN_SYNCS", 0)
    out, copies = data.parent / "cut" / name, data.parent / "copies" / name
    out.mkdir(parents=True)
    copies.mkdir(parents=True)
    with monkeypatch.context() as patched:
        Disk(out, patched, copies)
        assert differad(name, data, out) == 0
    whole = files(out)
    assert len(list(copies.iterdir())) > 8
    for copy in sorted(copies.iterdir()):
        capsys.readouterr()
        shutil.rmtree(out)
        shutil.copytree(copy, out)
        assert differad(name, data, out) == 0, (copy, capsys.readouterr().err)
        assert files(out) == whole, copy


def test_builds_and_exports_are_on_the_disk_when_they_are_finished(data, tmp_path, monkeypatch):
    for name in ("build", "export yolo --copy", "export coco", "import", "split", "save", "locate"):
        disk = Disk(tmp_path / name, monkeypatch)
        assert differad(name, data, tmp_path / name) == 0
        whole = files(tmp_path / name)
        disk.cut_power()
        assert files(tmp_path / name) == whole


def test_files_without_a_sync_are_lost(tmp_path, monkeypatch):
    """The assumption of the tests of power cuts."""
    disk = Disk(tmp_path, monkeypatch)
    for name in "ab":
        write_bytes(tmp_path / name, b"content", sync=False)
    sync_files([tmp_path / "a"])
    disk.cut_power()
    assert files(tmp_path) == {"a": b"content", "b": b""}
    many = [tmp_path / str(number) for number in range(100)]
    for path in many:
        write_bytes(path, b"content", sync=False)
    sync_files(many)
    disk.cut_power()
    assert {path.read_bytes() for path in many} == {b"content"}


def test_a_killed_export_is_started_over(data, tmp_path, capsys):
    arguments = ["export", "yolo", f"{data}/pairs.jsonl", str(tmp_path / "sent")]
    # Ended at the first label file: an image is there, and the marker.
    code = (
        "import os; from differad.data.exchange import yolo; from differad.cli.main import run; "
        f"yolo.write_text = lambda *_, **__: os._exit(9); run({arguments})"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert ".differad-unfinished" in {Path(name).name for name in files(tmp_path)}
    assert differad("export yolo", data, tmp_path) == 0, capsys.readouterr().err
    (tmp_path / "whole").mkdir()
    assert differad("export yolo", data, tmp_path / "whole") == 0
    names = [set(files(tmp_path / part)) for part in ("sent", "whole/sent")]
    assert names[0] == names[1]


def test_what_a_killed_write_left_goes_with_the_next_run(data, tmp_path):
    run_folder = tmp_path / "new" / "run"
    run_folder.mkdir(parents=True)
    (run_folder / "report.html.12.tmp").write_text("<html>")
    (run_folder / "report.html.mine.tmp").write_text("<html>")
    assert differad("evaluate", data, tmp_path) == 0
    assert [path.name for path in run_folder.glob("*.tmp")] == ["report.html.mine.tmp"]
