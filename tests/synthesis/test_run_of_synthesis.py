"""Sets of synthetic pairs: real worker processes, real kills, and the same bytes whatever happened on the way."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pytest

from differad.data.manifest import read_pairs
from differad.data.masks import read_mask
from differad.data.shards import read_shards
from differad.errors import DifferadError, InputError, ManifestError, OptionError
from differad.images import read_image, write_image
from differad.synthesis import run as run_module
from differad.synthesis.draw import Drawer, DrawOptions
from differad.synthesis.run import CHUNK, synthesize

OPTIONS = DrawOptions(seed=5, size=64)
COUNT = 24
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed (pip install 'differad[ray]')")
needs_pyarrow = pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")
FORMATS = ["folder", "webdataset", pytest.param("parquet", marks=needs_pyarrow)]


def draw(out, count=COUNT, options=OPTIONS, **more):
    return synthesize(options, count, out, progress=False, shard_size=10, **more)


def digests(folder):
    """sha256 of every file below a folder, by its relative path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Digests of a whole set by format, drawn by one worker without a stop."""
    made = {}

    def get(form):
        if form not in made:
            out = tmp_path_factory.mktemp(form) / "set"
            draw(out, format=form)
            made[form] = digests(out)
        return made[form]

    return get


def test_a_set_holds_what_the_drawer_draws(tmp_path):
    summary = draw(tmp_path / "set")
    pairs = list(read_pairs(tmp_path / "set" / "pairs.jsonl"))
    assert [pair.id for pair in pairs] == [f"5-{index:08d}" for index in range(COUNT)]
    assert (summary.pairs, summary.kept, summary.drawn) == (COUNT, 0, COUNT)
    assert summary.anomalous == sum(pair.anomalous for pair in pairs) > 0
    drawer = Drawer(OPTIONS)
    for index in (0, 7, 8, COUNT - 1):  # two chunks' ends among them
        drawn, pair = drawer.draw(index), pairs[index]
        np.testing.assert_array_equal(read_image(pair.reference), drawn.reference)
        np.testing.assert_array_equal(read_image(pair.target), drawn.target)
        np.testing.assert_array_equal(pair.boxes, drawn.boxes)
        assert (pair.category, pair.extra["kind"], pair.extra["facts"]) == (drawn.category, drawn.kind, drawn.facts)
        if drawn.mask.any():
            np.testing.assert_array_equal(read_mask(pair.mask), drawn.mask)
        else:
            assert pair.mask is None


@pytest.mark.parametrize("form", FORMATS)
def test_two_workers_leave_the_same_bytes_as_one(tmp_path, unbroken, form):
    draw(tmp_path / "set", workers=2, format=form)
    assert digests(tmp_path / "set") == unbroken(form)


@needs_ray
def test_ray_leaves_the_same_bytes(tmp_path, unbroken):
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        for form in ("folder", "webdataset"):
            summary = draw(tmp_path / form, workers=2, engine="ray", format=form)
            assert (summary.pairs, digests(tmp_path / form)) == (COUNT, unbroken(form))
        draw(tmp_path / "more", 10)
        assert draw(tmp_path / "more", workers=2, engine="ray").kept == 10
        assert digests(tmp_path / "more") == unbroken("folder")
        broken = folder_with_a_broken_picture(tmp_path / "normals")
        with pytest.raises(InputError, match=r"pair \d+ of seed 5: .*broken\.png"):
            draw(tmp_path / "bad", options=broken, engine="ray", workers=2)
        assert ray.is_initialized()  # a cluster that was there before stays
    finally:
        ray.shutdown()


KILLED = """
from pathlib import Path
from differad.synthesis.draw import DrawOptions
from differad.synthesis.run import CHUNK, synthesize
if __name__ == "__main__":
    synthesize(DrawOptions(seed=5, size=64), {count}, {out!r}, workers={workers}, format={form!r}, shard_size=10, progress=False)
"""


def start(tmp_path, out, count=600, workers=2, form="folder"):
    script = tmp_path / "draw.py"
    script.write_text(KILLED.format(count=count, out=str(out), workers=workers, form=form))
    return subprocess.Popen(
        [sys.executable, str(script)],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        # A suite that was started in the background hands down an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(holds, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not holds() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    assert holds()


def lines_in(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def children_of(pid):
    return [child.pid for child in psutil.Process(pid).children()]


@pytest.mark.parametrize(("form", "workers"), [("folder", 1), ("folder", 2), ("webdataset", 2)])
def test_killed_and_continued_is_as_if_unbroken(tmp_path, form, workers):
    out, manifest = tmp_path / "set", "pairs.jsonl" if form == "folder" else "shards.jsonl"
    process = start(tmp_path, out, workers=workers, form=form)
    wait_for(lambda: lines_in(out / manifest) >= 3, process)
    process.kill()  # -9, and to the parent alone: its workers have to notice
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    finished = (out / manifest).read_bytes()
    finished = finished[: finished.rindex(b"\n") + 1]
    kept = sum(json.loads(line).get("pairs", 1) for line in finished.splitlines())
    with (out / manifest).open("a") as file:
        file.write('{"id": "5-000')  # what a kill in the middle of a line leaves

    total = kept + 40  # a few more, not the 600 that the killed run was asked for
    summary = draw(out, total, format=form)
    assert (summary.kept, summary.pairs) == (kept, total)
    assert (out / manifest).read_bytes().startswith(finished)
    draw(tmp_path / "unbroken", total, format=form)
    assert digests(out) == digests(tmp_path / "unbroken")


def test_workers_end_with_a_killed_run(tmp_path):
    out = tmp_path / "set"
    process = start(tmp_path, out, count=100_000)
    wait_for(lambda: lines_in(out / "pairs.jsonl") >= 3, process)
    workers = children_of(process.pid)
    assert len(workers) >= 2
    process.kill()
    process.wait()
    process.stderr.close()
    deadline = time.monotonic() + 10
    while any(map(psutil.pid_exists, workers)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(psutil.pid_exists, workers))


def test_ctrl_c_ends_all_processes_quietly(tmp_path):
    out = tmp_path / "set"
    process = start(tmp_path, out, count=100_000)
    wait_for(lambda: lines_in(out / "pairs.jsonl") >= 3, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to the workers too
    _, err = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert err.count("Traceback") == 1  # the script's own KeyboardInterrupt; the command turns it into a line
    assert "SpawnProcess" not in err


@pytest.mark.parametrize("form", FORMATS)
def test_a_larger_count_adds_to_a_set(tmp_path, unbroken, form):
    first = draw(tmp_path / "set", 13, format=form)
    second = draw(tmp_path / "set", format=form, workers=2)
    # Shards of 10: the second one held 3 pairs and has to hold 10, so it is written again.
    assert (first.pairs, second.kept, second.pairs) == (13, 13 if form == "folder" else 10, COUNT)
    assert digests(tmp_path / "set") == unbroken(form)
    third = draw(tmp_path / "set", format=form)
    assert (third.kept, third.drawn, third.anomalous) == (COUNT, 0, second.anomalous)
    assert digests(tmp_path / "set") == unbroken(form)


def test_a_set_begun_before_an_option_existed_goes_on(tmp_path, unbroken):
    out = tmp_path / "set"
    draw(out, 13)
    note = json.loads((out / "synthesis.json").read_text())
    del note["options"]["unaligned"], note["options"]["aspect"]
    (out / "synthesis.json").write_text(json.dumps(note))
    assert draw(out).kept == 13
    assert digests(out) == unbroken("folder")


def test_a_folder_of_another_set_is_refused(tmp_path, monkeypatch):
    out = tmp_path / "set"
    draw(out, 8)
    before = digests(out)
    for change, message in (
        ({"options": DrawOptions(seed=6, size=64)}, r"seed=5, asked for seed=6; choose another --out"),
        (
            {"options": DrawOptions(seed=5, size=64, kinds=("scratched",))},
            r"kinds=\[\], asked for kinds=\['scratched'\]",
        ),
        ({"format": "webdataset"}, "format='folder', asked for format='webdataset'"),
        ({"count": 7}, "holds 8 pairs, --count 7 is fewer"),
    ):
        with pytest.raises(InputError, match=message):
            draw(**{"out": out, "count": 9, **change})
    monkeypatch.setattr(run_module.differad, "__version__", "99")
    with pytest.raises(InputError, match="asked for version='99'"):
        draw(out, 9)
    assert digests(out) == before


def test_pictures_that_changed_make_another_set(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        write_image(tmp_path / "good" / f"{name}.png", rng.integers(0, 255, (80, 80, 3), np.uint8))
    options = DrawOptions(seed=5, size=64, normals=tmp_path / "good")
    draw(tmp_path / "set", 4, options)
    (tmp_path / "good" / "b.png").unlink()
    with pytest.raises(InputError, match="content of normals="):
        draw(tmp_path / "set", 8, options)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"holds holiday\.jpg and no synthesis\.json; expected a new folder"):
        draw(tmp_path)
    (tmp_path / "synthesis.json").write_text("{}")
    with pytest.raises(InputError, match="does not say what set this is"):
        draw(tmp_path)
    with pytest.raises(InputError, match=r"holiday\.jpg: cannot be made a folder"):
        draw(tmp_path / "holiday.jpg")


def test_a_manifest_that_lost_a_line_is_refused(tmp_path):
    draw(tmp_path / "set")
    manifest = tmp_path / "set" / "pairs.jsonl"
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(lines[:4] + lines[5:]))
    with pytest.raises(ManifestError, match=r"pairs\.jsonl:5: expected pair 4; cut the file off"):
        draw(tmp_path / "set")


def test_a_second_run_at_the_same_time_is_refused(tmp_path):
    out = tmp_path / "set"
    process = start(tmp_path, out, count=100_000)
    try:
        wait_for(lambda: lines_in(out / "pairs.jsonl") >= 3, process)
        with pytest.raises(InputError, match="another run writes to it"):
            draw(out, 100_000)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()


def folder_with_a_broken_picture(folder):
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        write_image(folder / f"{name}.png", rng.integers(0, 255, (80, 80, 3), np.uint8))
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:600])
    return DrawOptions(seed=5, size=64, normals=folder)


@pytest.mark.parametrize("form", ["folder", "webdataset"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_pair_that_cannot_be_drawn_is_named(tmp_path, workers, form):
    options = folder_with_a_broken_picture(tmp_path / "normals")
    with pytest.raises(InputError, match=r"pair (\d+) of seed 5: .*broken\.png") as caught:
        draw(tmp_path / "set", options=options, workers=workers, format=form)
    index = int(str(caught.value).split()[1])
    drawer = Drawer(options)
    for before in range(index):
        drawer.draw(before)
    with pytest.raises(InputError):
        drawer.draw(index)
    if form == "folder":
        assert lines_in(tmp_path / "set" / "pairs.jsonl") == index  # what went before it is kept


def test_a_bug_in_the_drawing_names_its_pair(tmp_path, monkeypatch):
    def fail(self, index):
        raise ZeroDivisionError

    monkeypatch.setattr(Drawer, "draw", fail)
    with pytest.raises(ZeroDivisionError) as caught:
        draw(tmp_path / "set")
    assert caught.value.__notes__ == ["while drawing pair 0 of seed 5"]


def test_a_worker_that_dies_is_an_error_that_says_how_to_go_on(tmp_path):
    out = tmp_path / "set"
    process = start(tmp_path, out, count=100_000)
    wait_for(lambda: lines_in(out / "pairs.jsonl") >= 3, process)
    os.kill(max(children_of(process.pid)), signal.SIGKILL)  # as the kernel does where memory runs out
    _, err = process.communicate(timeout=20)
    assert DifferadError.__name__ in err
    assert "with fewer workers: the set goes on where it stopped" in err


@pytest.mark.parametrize("form", ["webdataset", pytest.param("parquet", marks=needs_pyarrow)])
def test_shards_hold_the_same_pairs_as_the_folder(tmp_path, form):
    draw(tmp_path / "folder")
    draw(tmp_path / "shards", format=form)
    stored, packed = read_pairs(tmp_path / "folder" / "pairs.jsonl"), read_shards(tmp_path / "shards")
    for plain, pair in zip(stored, packed, strict=True):
        assert (pair.id, pair.category, pair.group) == (plain.id, plain.category, plain.group)
        np.testing.assert_array_equal(pair.boxes, plain.boxes)
        np.testing.assert_array_equal(pair.reference, read_image(plain.reference))
        np.testing.assert_array_equal(pair.target, read_image(plain.target))
        mask = pair.extra.pop("mask", None)
        assert (mask is None) == (plain.mask is None)
        if mask is not None:
            np.testing.assert_array_equal(mask, read_mask(plain.mask))
        assert pair.extra == plain.extra


def test_options_out_of_range(tmp_path):
    for wrong in ({"count": 0}, {"workers": 0}, {"engine": "dask"}, {"format": "zip"}):
        (name,) = wrong
        with pytest.raises(OptionError, match=f"option {name}="):
            draw(**{"out": tmp_path / "set", **wrong})
    with pytest.raises(InputError, match="no pictures below it"):
        draw(tmp_path / "set", options=DrawOptions(normals=tmp_path / "nowhere"))
    assert not (tmp_path / "set").exists()


def test_minutes_end_a_call_and_another_goes_on(tmp_path):
    options, out = DrawOptions(seed=4, size=48), tmp_path / "set"
    first = synthesize(options, 10_000, out, minutes=1e-6, progress=False)
    assert first.pairs == CHUNK  # the task that was under way
    unbroken = synthesize(options, 2 * CHUNK, tmp_path / "other", progress=False)
    second = synthesize(options, 2 * CHUNK, out, progress=False)
    assert (second.kept, second.drawn) == (CHUNK, CHUNK)
    assert Path(second.manifest).read_bytes() == Path(unbroken.manifest).read_bytes()
    with pytest.raises(OptionError, match="minutes=0"):
        synthesize(options, 10, out, minutes=0, progress=False)
