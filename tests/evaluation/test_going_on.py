"""Continuing a run: only if nothing has changed, one run at a time, and never over a file of another run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from parts import PlainDifference, make_pairs

from differad import Location
from differad.cli.main import run
from differad.core import Pair
from differad.data.manifest import read_pairs
from differad.data.stamps import file_of
from differad.errors import InputError, InputWarning, LocatorError, ManifestError
from differad.evaluation.identity import describe_run
from differad.evaluation.inspection import inspect_pairs
from differad.evaluation.predictions import IMAGES_AFTER_ID, PREDICTION_AFTER_ID, is_cut_off
from differad.evaluation.run import discard_evaluation, evaluate, locate_to_file
from differad.images import read_image, write_image
from differad.locators import load_locator
from differad.locators.server import ServerLocator, ServerOptions


class Other(PlainDifference):
    name = "other"


class Weighty(PlainDifference):
    def __init__(self, *weights):
        super().__init__()
        self.weights = weights


class Failing(PlainDifference):
    """Fails like a server that is down."""

    def locate(self, pair):
        raise LocatorError(f"pair {pair.id!r}: no connection")


class Refusing(PlainDifference):
    def locate(self, pair):
        return Location(valid=False, reasoning="does not register")


@pytest.fixture
def manifest(tmp_path):
    return make_pairs(tmp_path / "data", 6)


@pytest.fixture(params=["evaluate", "locate"])
def go(request, tmp_path, manifest):
    """Locate the manifest's pairs repeatedly to the same output, by either function; `go.predictions` is the file."""

    def start(locator=None, manifests=(manifest,)):
        locator = locator or PlainDifference()
        if request.param == "evaluate":
            return evaluate(manifests, locator, tmp_path / "out", progress=False)
        pairs = (pair for path in manifests for pair in read_pairs(path))
        return locate_to_file(pairs, locator, tmp_path / "p.jsonl", manifests=manifests, progress=False)

    start.predictions = tmp_path / ("p.jsonl" if request.param == "locate" else "out/predictions.jsonl")
    start.record = tmp_path / ("p.jsonl.run.json" if request.param == "locate" else "out/run.json")
    start.images = tmp_path / ("p.jsonl.images.jsonl" if request.param == "locate" else "out/images.jsonl")
    return start


def refused(go, message, **arguments):
    """The run cannot be continued, and no byte of its files has changed."""
    before = {path: path.read_bytes() for path in go.predictions.parent.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=message):
        go(**arguments)
    assert {path: path.read_bytes() for path in go.predictions.parent.rglob("*") if path.is_file()} == before


def replace_image(path, *, same_size=False):
    """Other content under the same name; with `same_size` of as many bytes and with the old modification time."""
    if same_size:
        status = path.stat()
        content = bytearray(path.read_bytes())
        content[-20] ^= 1
        time.sleep(0.02)  # a file system counts time in ticks of some milliseconds
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        write_image(path, 255 - read_image(path))


def test_another_model(go):
    go()
    refused(
        go, r"holds a run with other model \(plain, now other\); choose another --out or remove it", locator=Other()
    )


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"threshold": 0.5}, {"threshold": 0.6}, r"other options \(threshold 0\.5, now 0\.6\)"),
        ({}, {"max_boxes": 3, "tolerance": 2}, r"other options \(tolerance \d+, now 2, max_boxes 20, now 3\)"),
        ({}, {"on_refusal": "overlay"}, r"other options \(on_refusal\)"),  # no value of an option that is text
        ({"workers": 1}, {"workers": 2}, None),  # changes the speed alone
    ],
)
def test_other_options(go, first, second, message):
    go(load_locator("difference", **first))
    if message is None:
        go(load_locator("difference", **second))
    else:
        refused(go, message, locator=load_locator("difference", **second))


@pytest.mark.parametrize("model", ["auto", "features"])
def test_other_options_of_a_part(go, model):
    go(load_locator(model))
    later = load_locator(model, **{"difference.tolerance": 3, "workers": 1})
    refused(go, r"other options \(difference\.tolerance 1, now 3\)", locator=later)


def test_other_weights(go, tmp_path):
    folder = tmp_path / "weights" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"one")
    go(Weighty(folder))
    os.utime(folder / "model.safetensors", ns=(0, 0))
    shutil.copytree(folder, tmp_path / "elsewhere" / "model")
    go(Weighty(tmp_path / "elsewhere" / "model"))  # a copy is the same
    (folder / "model.safetensors").write_bytes(b"two")
    refused(go, r"other weights \(model/model\.safetensors\)", locator=Weighty(folder))
    (folder / "model.safetensors").write_bytes(b"one")
    (folder / "model-2.safetensors").write_bytes(b"")
    refused(go, r"other weights \(model/model-2\.safetensors\)", locator=Weighty(folder))


@pytest.mark.parametrize("model", ["auto", "features", "tiny"])
def test_the_shipped_weights_are_recorded(model):
    recorded = describe_run(load_locator(model), [], None)["weights"]
    assert "efficientnet_lite0/model.safetensors" in recorded
    assert ("tiny/model.safetensors" in recorded) == (model != "features")


def test_two_manifests_of_one_name(go, tmp_path):
    one, two = make_pairs(tmp_path / "one", 3), make_pairs(tmp_path / "two", 3)
    two.write_text(two.read_text().replace('"id": "p', '"id": "q'))
    go(manifests=[one, two])
    one.write_text(one.read_text().replace('"category": "a"', '"category": "c"'))
    refused(go, r"other manifests \(.*one/pairs\.jsonl\)", manifests=[one, two])
    refused(go, r"other manifests \(.*one/pairs\.jsonl\)", manifests=[two])


def test_an_id_that_means_other_images(tmp_path, manifest):
    """Pairs that come from no file are distinguished too."""
    pairs = list(read_pairs(manifest))
    locate_to_file(pairs, PlainDifference(), tmp_path / "p.jsonl", progress=False)
    swapped = [Pair(pairs[0].reference, pairs[1].target, id="p0")]
    with pytest.raises(InputError, match=r"an answer to other images for pair 'p0'"):
        locate_to_file(swapped, PlainDifference(), tmp_path / "p.jsonl", progress=False)
    in_memory = Pair(read_image(pairs[0].reference), read_image(pairs[1].target), id="m")
    for kept in (0, 1):
        counts = locate_to_file([in_memory], PlainDifference(), tmp_path / "m.jsonl", progress=False)
        assert counts == {"located": 1 - kept, "kept": kept, "failed": 0}
    with pytest.raises(InputError, match="other images for pair 'm'"):
        locate_to_file(
            [Pair(255 - in_memory.reference, in_memory.target, id="m")], PlainDifference(), tmp_path / "m.jsonl"
        )


@pytest.mark.parametrize("name", ["good.png", "4.png"])
@pytest.mark.parametrize("same_size", [False, True])
def test_a_replaced_image(go, manifest, name, same_size):
    go()
    replace_image(manifest.parent / name, same_size=same_size)
    refused(go, rf"holds answers to an earlier content of .*{name}; choose another --out or remove it")


def test_copied_and_touched_images_are_the_same(go, manifest, tmp_path):
    go()
    lines = go.predictions.read_text()
    shutil.copytree(manifest.parent, tmp_path / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(manifest.parent)
    shutil.move(tmp_path / "copy", manifest.parent)
    (manifest.parent / "5.png").unlink()  # what is gone contradicts nothing
    go()
    assert go.predictions.read_text() == lines
    # The new times are kept: no byte is read another time.
    recorded = [json.loads(line)["files"] for line in go.images.read_text().splitlines()]
    assert recorded[0][str(manifest.parent / "0.png")][1] == (manifest.parent / "0.png").stat().st_mtime_ns


def test_an_image_that_changes_while_the_run_is_at_work(tmp_path, manifest):
    class Swapping(PlainDifference):
        def locate(self, pair):
            if pair.id == "p3":
                replace_image(Path(pair.reference))
            return super().locate(pair)

    with pytest.raises(InputError, match=r"good\.png: changed during the run"):
        evaluate([manifest], Swapping(), tmp_path / "out", progress=False)


def test_pages_are_in_their_file(tmp_path):
    assert file_of(tmp_path / "a.tif[2]") == tmp_path / "a.tif"
    (tmp_path / "b[1].tif").write_bytes(b"")
    (tmp_path / "c.tif[1]").write_bytes(b"")
    assert file_of(tmp_path / "b[1].tif") == tmp_path / "b[1].tif"
    assert file_of(str(tmp_path / "c.tif[1]")) == tmp_path / "c.tif[1]"


@pytest.mark.parametrize("content", ["{broken\n", "[]", '{"model": "plain"}\n', ""])
def test_a_record_that_is_none(go, content):
    go()
    go.record.write_text(content)
    refused(go, r"not a record of a run that this version can continue")


def test_predictions_without_a_record(go):
    go()
    go.record.unlink()
    refused(go, r"jsonl: exists without the .*run\.json of its run")


def test_an_image_log_that_is_cut_or_gone(go, manifest):
    go()
    whole = go.images.read_text()
    for left in (whole[: whole.rindex("{") + 9], whole[: whole.rindex('{"id"')] + "\0\0\n", ""):  # a power cut
        go.images.write_text(left)
        go()
        assert go.images.read_text() == whole
        ids = [json.loads(line)["id"] for line in go.predictions.read_text().splitlines()]
        assert ids == [f"p{number}" for number in range(6)]
    go.images.write_text("3\n" + whole)
    refused(go, r"images\.jsonl:1: not a line of an image log")
    go.images.unlink()
    refused(go, "has no line with the images of pair 'p")
    go.images.write_text(whole + '{"id": "p')  # a kill before the prediction that it stands for
    go()
    assert go.images.read_text() == whole


def test_a_run_without_finished_pairs_may_change(go, manifest):
    """After a first run that failed entirely, another model may be used."""
    with pytest.raises(LocatorError, match="all 6 pairs failed, the first: pair 'p0': no connection"):
        go(Failing(pause=0.001))
    go()
    assert len(go.predictions.read_text().splitlines()) == 6


def test_a_cut_off_line(go):
    go()
    whole = go.predictions.read_text()
    first = whole[: whole.index("\n") + 1]
    for left, kept in ((first[:-9], 0), (first[:-1], 1), (first + "\0\0\0", 1), (first + '{"id": "\xc3', 1)):
        go.predictions.write_bytes(left.encode("latin-1"))
        go()
        ids = [json.loads(line)["id"] for line in go.predictions.read_text().splitlines()]
        assert ids == [f"p{number}" for number in range(6)], (left, kept)


def test_a_line_that_is_cut_off_anywhere(go, manifest):
    """The id holds what JSON escapes, so that the cut may be within an escape or a letter of two bytes."""
    manifest.write_text(manifest.read_text().replace('"p0"', r'"p\\0 \"ä"'))
    go()
    for path, after_id in ((go.predictions, PREDICTION_AFTER_ID), (go.images, IMAGES_AFTER_ID)):
        first = path.read_bytes().splitlines(keepends=True)[0]
        assert json.loads(first)["id"] == 'p\\0 "ä'
        assert all(is_cut_off(first[:length], 1, after_id) for length in range(len(first) - 1))
        assert all(is_cut_off(first[:length] + bytes(9), 1, after_id) for length in range(len(first) - 1))
        assert not is_cut_off(first, 1, after_id)
        assert not is_cut_off(first[:-1], 1, after_id)


FOREIGN = {
    "one line": b'{"labels": [1, 2, 3]}',
    "lines": b'{"labels": []}\n{"labels": []}\n',
    "like ours": b'{"id": "x", "error": "theirs"}\n',
    "like ours, finished": b'{"id": "x", "boxes": []}\n',
    "binary": b"\x89PNG\r\n\x1a\n\xff\xfe",
    "blank": b"\n",
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_file_of_another_is_left_alone(go, content):
    go.predictions.parent.mkdir(exist_ok=True)
    go.predictions.write_bytes(content)
    refused(go, "exists without the .*run.json of its run")


FOREIGN_BESIDE_A_RECORD = {
    **{name: FOREIGN[name] for name in ("one line", "lines", "binary")},
    "a list": b"[]",
    "one line of text": b"to do: buy lamps",
    "a whole document with an id": b'{"id": 3}',
    "zeros, then more": b"\0\0PK",
    "a pair": b'{"id": "p0", "reference": "good.png", "target": "0.png", "boxes": []}\n',
    "unfinished, with an id": b'{"id": "p0", "labels": [1, 2',
    "unfinished, with an id and boxes": b'{"id": "p\\"0", "boxes": [[1, 2',
    "unfinished, with a number for an id": b'{"id": 3, "ima',
    "a pair, its line unfinished": b'{"id": "p0", "reference": "good.png", "target": "0.png", "boxes": []}',
}


@pytest.mark.parametrize("content", FOREIGN_BESIDE_A_RECORD.values(), ids=FOREIGN_BESIDE_A_RECORD.keys())
@pytest.mark.parametrize("which", ["predictions", "images"])
def test_a_file_of_another_beside_a_record_is_left_alone(go, which, content):
    go()
    getattr(go, which).write_bytes(content)
    refused(go, r"jsonl:1: .*; choose another --out or remove it|jsonl:1: .*, so choose another --out or remove it")


@pytest.mark.parametrize("name", ["metrics.json", "report.html"])
def test_a_result_that_was_replaced_by_another_file(tmp_path, manifest, name):
    evaluate([manifest], PlainDifference(), tmp_path / "out", progress=False)
    (tmp_path / "out" / name).write_text('{"overall": "theirs"}')
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for work in (
        lambda: evaluate([manifest], PlainDifference(), tmp_path / "out", progress=False),
        lambda: discard_evaluation(tmp_path / "out"),
    ):
        with pytest.raises(InputError, match=rf"{name}: was not written by differad; choose another --out"):
            work()
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_the_manifest_of_a_run_that_failed_is_left_alone(tmp_path, manifest):
    """Nothing is finished, so another run may start in the same folder; the manifest in it is not one of its files."""
    with pytest.raises(LocatorError, match="all 6 pairs failed"):
        evaluate([manifest], Failing(), manifest.parent, progress=False)
    before = manifest.read_bytes()
    other = make_pairs(tmp_path / "other", 2)
    with pytest.raises(InputError, match=r"pairs\.jsonl: is a manifest of this or an earlier run"):
        inspect_pairs(other, PlainDifference(), manifest.parent, progress=False)
    assert manifest.read_bytes() == before


@pytest.mark.parametrize("name", ["results.csv", "pairs.jsonl", "report.html", "overlays/mine.jpg", "overlays"])
def test_an_inspection_leaves_the_files_of_another_alone(tmp_path, manifest, name):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("theirs")
    with pytest.raises(InputError, match=r"choose another --out or remove it"):
        inspect_pairs(manifest, PlainDifference(), tmp_path / "out", progress=False)
    assert [one.read_text() for one in (tmp_path / "out").rglob("*") if one.is_file()] == ["theirs"]


@pytest.mark.parametrize("name", ["results.csv", "pairs.jsonl", "report.html"])
def test_an_inspection_continues_only_with_its_own_files(tmp_path, manifest, name):
    inspect_pairs(manifest, PlainDifference(), tmp_path / "out", progress=False)
    inspect_pairs(manifest, PlainDifference(), tmp_path / "out", progress=False)
    (tmp_path / "out" / name).write_text("theirs")
    with pytest.raises(InputError, match=rf"{name}: was not written by differad"):
        inspect_pairs(manifest, PlainDifference(), tmp_path / "out", progress=False)
    assert (tmp_path / "out" / name).read_text() == "theirs"


def test_the_manifest_is_no_place_for_predictions(tmp_path, manifest):
    before = manifest.read_bytes()
    (tmp_path / "linked").mkdir()
    os.link(manifest, tmp_path / "linked" / "predictions.jsonl")
    (tmp_path / "copy.jsonl").write_bytes(before)
    pairs = list(read_pairs(manifest))
    for out in (manifest, tmp_path / "linked" / "predictions.jsonl"):
        with pytest.raises(InputError, match="is a manifest of this or an earlier run"):
            locate_to_file(pairs, PlainDifference(), out, manifests=[manifest])
    with pytest.raises(InputError, match="is a manifest of this or an earlier run"):
        evaluate([manifest], PlainDifference(), tmp_path / "linked")
    with pytest.raises(InputError, match="exists without the"):
        locate_to_file(pairs, PlainDifference(), tmp_path / "copy.jsonl", manifests=[manifest])
    with pytest.raises(InputError, match="data: a folder; expected the file"):
        locate_to_file(pairs, PlainDifference(), manifest.parent, manifests=[manifest])
    assert manifest.read_bytes() == before == (tmp_path / "copy.jsonl").read_bytes()
    assert not list(tmp_path.rglob("*.lock"))


@pytest.mark.parametrize("name", ["metrics.json", "report.html", "images.jsonl"])
def test_results_of_another_are_left_alone(tmp_path, manifest, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("theirs")
    with pytest.raises(InputError, match=rf"{name}: exists without the run\.json of its run"):
        evaluate([manifest], PlainDifference(), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


def test_a_manifest_that_can_be_read_once(tmp_path, manifest):
    os.mkfifo(tmp_path / "pipe")
    for start in (
        lambda: evaluate([tmp_path / "pipe"], PlainDifference(), tmp_path / "out"),
        lambda: locate_to_file([], PlainDifference(), tmp_path / "p.jsonl", manifests=[tmp_path / "pipe"]),
    ):
        with pytest.raises(ManifestError, match="pipe: can be read only once; save it to a file"):
            start()


def test_secrets_are_in_no_file(tmp_path, manifest):
    locator = ServerLocator("qwen2-vl-2b", "http://ann:PASSWORD@localhost:9/v1", ServerOptions(api_key_env="PASSWORD"))
    run = describe_run(locator, [manifest], None)
    assert run["model"] == "openai:qwen2-vl-2b@http://localhost:9/v1"
    assert "PASSWORD" not in json.dumps(run)
    assert "ann" not in json.dumps(run["model"])


SLOW = """
import sys
sys.path.insert(0, {folder!r})
from parts import PlainDifference
from differad.data.manifest import read_pairs
from differad.evaluation.inspection import inspect_pairs
from differad.evaluation.run import discard_evaluation, evaluate, locate_to_file
if {way!r} == "evaluate":
    evaluate([{manifest!r}], PlainDifference(), {out!r}, progress=False)
else:
    locate_to_file(read_pairs({manifest!r}), PlainDifference(pause=0.05), {out!r}, manifests=[{manifest!r}], progress=False)
"""


def test_a_second_run_waits_its_turn(go, manifest, tmp_path):
    manifest = make_pairs(manifest.parent, 60)
    way = "locate" if go.predictions.name == "p.jsonl" else "evaluate"
    out = go.predictions if way == "locate" else go.predictions.parent
    code = SLOW.format(folder=str(Path(__file__).parent), way=way, manifest=str(manifest), out=str(out))
    code = code.replace("PlainDifference(),", "PlainDifference(pause=0.05),")
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not (go.predictions.exists() and go.predictions.stat().st_size) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    with pytest.raises(InputError, match="another run writes to it; wait for it"):
        go(PlainDifference(pause=0.05))
    assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    finished = go.predictions.read_text().splitlines()
    assert 1 <= len(finished) < 60
    go(PlainDifference(pause=0.05))
    lines = go.predictions.read_text().splitlines()
    assert lines[: len(finished) - 1] == finished[:-1]
    assert [json.loads(line)["id"] for line in lines] == [f"p{number}" for number in range(60)]
    assert not list(tmp_path.rglob("*.lock"))


def test_all_pairs_failing_is_an_error(go, manifest):
    kept = {path: path.read_bytes() for path in manifest.parent.glob("*.png")}
    for path in kept:
        path.unlink()
    with pytest.raises(InputError, match=r"all 6 pairs failed, the first: .*good\.png: no such file") as caught:
        go()
    assert caught.value.exit_code == 2
    assert all("error" in json.loads(line) for line in go.predictions.read_text().splitlines())
    assert not (go.predictions.parent / "metrics.json").exists()
    with pytest.raises(LocatorError, match="all 6 pairs failed, the first: pair 'p0': no connection") as down:
        go(Failing())
    assert down.value.exit_code == 1
    for path, content in kept.items():
        path.write_bytes(content)
    (manifest.parent / "2.png").write_bytes(b"")
    with pytest.warns(InputWarning, match=r"1 of 6 pairs failed, the first: .*2\.png: empty file"):
        go()
    with pytest.warns(InputWarning, match=r"1 of 1 pairs failed, the first: .*2\.png: empty file"):
        go()  # the others are kept


def test_no_answer_at_all_is_reported(go):
    with pytest.warns(InputWarning, match="none of 6 pairs got an answer that counts"):
        go(Refusing())


def test_on_the_command_line(tmp_path, manifest, capsys):
    command = ["locate", "--pairs", str(manifest), "--out", str(tmp_path / "p.jsonl"), "--model"]
    assert run([*command, "difference"]) == 0
    assert run([*command, "tiny"]) == 2
    assert "holds a run with other model (difference, now tiny)" in capsys.readouterr().err
    assert run(["locate", "--pairs", str(manifest), "--out", str(manifest), "--model", "difference"]) == 2
    shutil.rmtree(manifest.parent, ignore_errors=True)
    empty = make_pairs(tmp_path / "data", 2)
    for path in empty.parent.glob("*.png"):
        path.unlink()
    assert run(["locate", "--pairs", str(empty), "--out", str(tmp_path / "q.jsonl"), "--model", "difference"]) == 2
    assert "all 2 pairs failed, the first: " in capsys.readouterr().err
