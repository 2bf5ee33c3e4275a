"""Runs over many pairs: streamed, resumable, killed, with bad pairs among them."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from parts import PlainDifference, make_pairs

from differad.core import Location
from differad.data.manifest import read_pairs
from differad.errors import InputError, InputWarning, ManifestError
from differad.evaluation.run import evaluate, locate_to_file, score


def ids(path):
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


def test_a_run_from_end_to_end(tmp_path):
    manifest = make_pairs(tmp_path / "data", 12)
    metrics = evaluate([manifest], PlainDifference(), tmp_path / "out")
    overall = metrics["overall"]
    assert (overall["pairs"], overall["anomalous"], overall["normal"]) == (12, 8, 4)
    assert (overall["miou"], overall["acc_0.7"], overall["normal_accuracy"], overall["auroc"]) == (1, 1, 1, 1)
    assert list(metrics["categories"]) == ["a", "b"]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics
    assert ids(tmp_path / "out" / "predictions.jsonl") == [f"p{n}" for n in range(12)]
    stored = score([manifest], tmp_path / "out" / "predictions.jsonl")
    assert stored == {key: value for key, value in metrics.items() if key != "model"}


def test_the_baselines_by_hand(tmp_path):
    manifest = make_pairs(tmp_path / "data", 3)
    baselines = evaluate([manifest], PlainDifference(), tmp_path / "out")["baselines"]
    whole, normal = baselines["whole_image"]["overall"], baselines["always_normal"]["overall"]
    assert whole["miou"] == pytest.approx(16 * 12 / 64**2)  # the defect's share of the image
    assert (whole["normal_accuracy"], whole["detection_f1"]) == (0, pytest.approx(2 * 2 / (2 * 2 + 1)))
    assert (normal["miou"], normal["normal_accuracy"]) == (0, 1)
    assert set(baselines) == {"whole_image", "centre_box", "always_normal"}


def test_a_bad_pair_is_recorded_and_the_run_goes_on(tmp_path):
    manifest = make_pairs(tmp_path / "data", 9, p4={"target": "nowhere.png"})
    (tmp_path / "data" / "5.png").write_bytes(b"broken")
    metrics = evaluate([manifest], PlainDifference(), tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [(line["id"], "error" in line) for line in lines if "error" in line] == [("p4", True), ("p5", True)]
    assert "nowhere.png: no such file" in lines[4]["error"]
    assert metrics["errors"] == 2
    assert metrics["overall"]["valid"] == pytest.approx(7 / 9)
    assert metrics["overall"]["miou"] == pytest.approx(4 / 6)  # two of six anomalous pairs failed
    assert metrics["without_image"] == 2


def test_a_failed_pair_is_tried_again(tmp_path):
    manifest = make_pairs(tmp_path / "data", 6)
    target = tmp_path / "data" / "4.png"
    whole = target.read_bytes()
    target.write_bytes(whole[:50])
    assert evaluate([manifest], PlainDifference(), tmp_path / "out")["errors"] == 1
    target.write_bytes(whole)
    again = evaluate([manifest], PlainDifference(), tmp_path / "out")
    assert (again["errors"], again["overall"]["miou"]) == (0, 1)
    assert sorted(ids(tmp_path / "out" / "predictions.jsonl")) == sorted(f"p{n}" for n in range(6))


SLOW_RUN = """
import sys
sys.path.insert(0, {folder!r})
from parts import PlainDifference
from differad.evaluation.run import evaluate
evaluate([{manifest!r}], PlainDifference(pause={pause}), {out!r}, progress=False)
"""


def test_killed_and_continued_is_as_if_unbroken(tmp_path):
    manifest, out = make_pairs(tmp_path / "data", 40), tmp_path / "out"
    code = SLOW_RUN.format(folder=str(Path(__file__).parent), manifest=str(manifest), out=str(out), pause=0.02)
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    predictions = out / "predictions.jsonl"
    deadline = time.monotonic() + 60
    while (
        not (predictions.exists() and len(predictions.read_bytes().splitlines()) >= 5) and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with predictions.open("a") as file:
        file.write('{"id": "p39", "bo')  # what a kill in the middle of a line leaves
    finished = predictions.read_text().splitlines()[:-1]
    assert 5 <= len(finished) < 40

    evaluate([manifest], PlainDifference(pause=0.02), out)
    assert predictions.read_text().splitlines()[: len(finished)] == finished  # kept, not done again
    assert ids(predictions) == [f"p{n}" for n in range(40)]
    unbroken = evaluate([manifest], PlainDifference(), tmp_path / "unbroken")
    resumed = json.loads((out / "metrics.json").read_text())
    assert {**resumed, "median_seconds": 0} == {**unbroken, "median_seconds": 0}


def test_a_folder_of_another_run_is_refused(tmp_path):
    manifest = make_pairs(tmp_path / "data", 3)
    evaluate([manifest], PlainDifference(), tmp_path / "out")
    with pytest.raises(InputError, match="other options; choose another --out"):
        evaluate([manifest], PlainDifference(pause=0.001), tmp_path / "out")
    changed = make_pairs(tmp_path / "data", 4)
    with pytest.raises(InputError, match="other manifests"):
        evaluate([changed], PlainDifference(), tmp_path / "out")


def test_manifests_are_checked_before_any_work(tmp_path):
    manifest = make_pairs(tmp_path / "data", 6)
    manifest.write_text(manifest.read_text() + "{broken\n")
    with pytest.raises(ManifestError, match=r"pairs\.jsonl:7"):
        evaluate([manifest], PlainDifference(), tmp_path / "out")
    assert not (tmp_path / "out").exists()

    one, two = make_pairs(tmp_path / "one", 2), make_pairs(tmp_path / "two", 2)
    with pytest.raises(ManifestError, match=r"id 'p0' is also in .*one"):
        evaluate([one, two], PlainDifference(), tmp_path / "out")
    unlabelled = make_pairs(tmp_path / "bare", 1, p0={"boxes": None})
    with pytest.raises(ManifestError, match="no labelled pair"):
        evaluate([unlabelled], PlainDifference(), tmp_path / "out")


def test_unlabelled_pairs_and_a_limit(tmp_path):
    manifest = make_pairs(tmp_path / "data", 9, p1={"boxes": None})
    with pytest.warns(InputWarning, match="1 of 9 pairs are unlabelled and left out"):
        metrics = evaluate([manifest], PlainDifference(), tmp_path / "out", limit=4)
    assert (metrics["unlabelled"], metrics["overall"]["pairs"]) == (1, 4)
    # Of 8 labelled pairs 3 are normal (p0, p3, p6): round(4 * 5 / 8) = 2 abnormal of p2, p4, p5, p7, p8; 2 normal.
    assert ids(tmp_path / "out" / "predictions.jsonl") == ["p0", "p2", "p6", "p8"]
    assert (metrics["unpredicted"], metrics["unknown_predictions"]) == (0, 0)
    more = evaluate([manifest], PlainDifference(), tmp_path / "out", limit=6)
    assert (more["overall"]["pairs"], more["unknown_predictions"]) == (6, 0)
    with pytest.warns(InputWarning, match="1 of 9 pairs are unlabelled"):
        assert score([manifest], tmp_path / "out" / "predictions.jsonl")["unlabelled"] == 1


def test_scoring_needs_neither_images_nor_all_predictions(tmp_path):
    manifest = make_pairs(tmp_path / "data", 6)
    for image in (tmp_path / "data").glob("*.png"):
        image.unlink()
    predictions = tmp_path / "p.jsonl"
    truth = [json.loads(line) for line in manifest.read_text().splitlines()]
    kept = [{"id": pair["id"], "boxes": pair["boxes"]} for pair in truth[:3]] + [{"id": "stranger", "boxes": []}]
    predictions.write_text("\n".join(map(json.dumps, kept)) + "\n")
    metrics = score([manifest], predictions)
    assert metrics["overall"]["miou"] == pytest.approx(2 / 4)  # p1, p2 right; p4, p5 missing: IoU 0
    assert metrics["overall"]["normal_accuracy"] == pytest.approx(1 / 2)  # p3 has no prediction: wrong
    assert metrics["overall"]["valid"] == pytest.approx(3 / 6)
    counts = {key: metrics[key] for key in ("unpredicted", "unknown_predictions", "without_image")}
    assert counts == {"unpredicted": 3, "unknown_predictions": 1, "without_image": 6}
    assert metrics["baselines"] == {}


def test_locate_to_file_streams(tmp_path):
    manifest = make_pairs(tmp_path / "data", 5)
    taken = []

    def pairs():
        for pair in read_pairs(manifest):
            taken.append(pair.id)
            yield pair

    class Watching(PlainDifference):
        def locate(self, pair):
            assert len(taken) <= int(pair.id[1:]) + 1  # nothing is read ahead of what the locator asks for
            return super().locate(pair)

    assert locate_to_file(pairs(), Watching(), tmp_path / "p.jsonl") == {"located": 5, "kept": 0, "failed": 0}
    assert locate_to_file(pairs(), Watching(), tmp_path / "p.jsonl") == {"located": 0, "kept": 5, "failed": 0}


class Untouched(PlainDifference):
    def locate(self, pair):
        raise AssertionError("located before the boxes were checked")


UNKNOWN = {"boxes": None, "anomalous": True}


def test_pairs_at_an_unknown_place_are_located_and_counted_apart(tmp_path):
    manifest = make_pairs(
        tmp_path / "data", 9, p1=UNKNOWN, p4=UNKNOWN, p7=UNKNOWN | {"target": "0.png"}, p5={"boxes": None}
    )
    metrics = evaluate([manifest], PlainDifference(), tmp_path / "out")
    overall = metrics["overall"]
    assert (overall["pairs"], overall["anomalous"], overall["normal"], overall["place_unknown"]) == (8, 5, 3, 3)
    assert (overall["miou"], overall["acc_0.7"], overall["f1_0.3"]) == (1, 1, 1)
    assert overall["detection_f1"] == pytest.approx(2 * 4 / (2 * 4 + 0 + 1))  # p7 shows the good part
    assert overall["auroc"] == pytest.approx((4 + 0.5) / 5)  # p7 ties with the normal pairs
    assert metrics["unlabelled"] == 1
    whole = metrics["baselines"]["whole_image"]["overall"]
    assert (whole["anomalous"], whole["place_unknown"]) == (5, 3)
    assert whole["detection_f1"] == pytest.approx(2 * 5 / (2 * 5 + 3))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "3 abnormal, place unknown" in page
    assert "Overlooked pairs" in page
    assert sum(metrics["sizes"][name]["pairs"] for name in metrics["sizes"]) == 2


def test_without_any_box_there_is_no_localisation_metric(tmp_path):
    manifest = make_pairs(tmp_path / "data", 3, p1=UNKNOWN, p2=UNKNOWN)
    metrics = evaluate([manifest], PlainDifference(), tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "metrics.json").read_text())
    for part in (stored["overall"], stored["overall"]["macro"], *stored["categories"].values()):
        assert (part["miou"], part["miou_ci95"], part["acc_0.3"], part["f1_0.3"]) == (None, None, None, None)
    assert (stored["overall"]["anomalous"], stored["overall"]["detection_f1"]) == (2, 1)
    assert score([manifest], tmp_path / "out" / "predictions.jsonl")["overall"] == metrics["overall"]


@pytest.mark.parametrize(
    ("boxes", "reason"),
    [
        ([[0.58, 0.22, 0.66, 0.3]], r"box \[0.58, 0.22, 0.66, 0.3\] is within 0..1.*pixels of the target of 64x64"),
        ([[0, 0, 0.5, 1]], r".* within 0\.\.1"),
        ([[3, 3, 9, 9], [0.1, 0.1, 1, 1]], r"box \[0.1, 0.1, 1, 1\]"),
        ([[188, 72, 210, 94]], r"box \[188, 72, 210, 94\].* outside the target of 64x64"),
        ([[64, 0, 70, 10]], ".* outside the target"),
        ([[3, 3, 9, 9], [10, 10, 300, 300]], r"box \[10, 10, 300, 300\].* outside the target"),
    ],
)
def test_boxes_of_another_frame_are_refused_before_any_work(tmp_path, boxes, reason):
    manifest = make_pairs(tmp_path / "data", 3, p2={"boxes": boxes})
    with pytest.raises(ManifestError, match=rf"pairs.jsonl: pair 'p2' \(.*2.png\): {reason}"):
        evaluate([manifest], Untouched(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    predictions = tmp_path / "p.jsonl"
    predictions.write_text("")
    with pytest.raises(ManifestError, match=reason):
        score([manifest], predictions)
    # p0 is normal and p1 comes first of the others: what is not evaluated is not looked at.
    assert evaluate([manifest], PlainDifference(), tmp_path / "first", limit=2)["overall"]["pairs"] == 2


def test_a_box_over_the_edge_is_cut_off_and_counted(tmp_path):
    manifest = make_pairs(
        tmp_path / "data", 3, p1={"boxes": [[60, 60, 65, 66]]}, p2={"boxes": [[0, 0, 1, 1], [0, 0, 64, 64]]}
    )
    predictions = tmp_path / "p.jsonl"
    lines = [{"id": "p1", "boxes": [[60, 60, 64, 64]]}, {"id": "p2", "boxes": [[0, 0, 64, 64]]}]
    predictions.write_text("\n".join(map(json.dumps, lines)))
    metrics = score([manifest], predictions)
    assert (metrics["boxes_cut"], metrics["overall"]["miou"], metrics["predictions_outside"]) == (1, 1, 0)


def test_fractions_are_noticed_without_the_image(tmp_path):
    manifest = make_pairs(tmp_path / "data", 3, p1={"boxes": [[0.5, 0.5, 0.75, 1]], "target": "nowhere.png"})
    with pytest.raises(ManifestError, match=r"within 0\.\.1"):
        evaluate([manifest], Untouched(), tmp_path / "out")


@pytest.mark.parametrize("boxes", [None, [[0, 0, 8, 8]]])
def test_a_mask_of_another_size_is_refused_before_any_work(tmp_path, boxes):
    manifest = make_pairs(tmp_path / "data", 3, p1={"boxes": boxes, "mask": "m.png"})
    mask = np.zeros((32, 32), np.uint8)
    mask[:8, :8] = 255  # inside the target, at half its place
    Image.fromarray(mask).save(tmp_path / "data" / "m.png")
    with pytest.raises(InputError, match=r"m.png( is|: mask of) 32x32.*; expected 64x64"):
        evaluate([manifest], Untouched(), tmp_path / "out")


@pytest.mark.parametrize("box", [[0.2, 0.2, 0.7, 0.7], [640, 640, 700, 700]])
def test_predictions_of_another_frame_are_reported(tmp_path, box):
    manifest = make_pairs(tmp_path / "data", 3)
    predictions = tmp_path / "p.jsonl"
    predictions.write_text(json.dumps({"id": "p1", "boxes": [box]}) + "\n")
    with pytest.warns(InputWarning, match="1 of 3 pairs: the predicted box is outside.*the first: pair 'p1'"):
        assert score([manifest], predictions)["predictions_outside"] == 1


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_pairs_make_valid_json(tmp_path, count):
    manifest = make_pairs(tmp_path / "data", count)
    evaluate([manifest], PlainDifference(), tmp_path / "out")

    def refuse(constant):
        raise AssertionError(constant)

    json.loads((tmp_path / "out" / "metrics.json").read_text(), parse_constant=refuse)


def test_a_manifest_is_not_scored_as_predictions(tmp_path):
    manifest = make_pairs(tmp_path / "data", 3)
    (tmp_path / "copy.jsonl").write_bytes(manifest.read_bytes())
    for predictions in (manifest, tmp_path / "copy.jsonl"):
        with pytest.raises(ManifestError, match=r"jsonl:1: .*pair 'p0' of a manifest"):
            score([manifest], predictions)


@pytest.mark.parametrize("far", [1e300, 1.7e308, 2.0**31, 10_000_001])
@pytest.mark.parametrize("target", ["1.png", "nowhere.png"])
@pytest.mark.filterwarnings("error")
def test_a_true_box_larger_than_any_image_is_refused_before_any_work(tmp_path, target, far):
    manifest = make_pairs(tmp_path / "data", 3, p1={"target": target, "boxes": [[0, 0, far, far]]})
    (tmp_path / "p.jsonl").write_text('{"id": "p1", "boxes": [[0, 0, 9, 9]]}\n')
    for work in (
        lambda: evaluate([manifest], PlainDifference(), tmp_path / "out"),
        lambda: score([manifest], tmp_path / "p.jsonl"),
    ):
        with pytest.raises(
            ManifestError, match=r"pairs\.jsonl:2: .*pair 'p1': box \[.*no image does; expected pixels"
        ) as caught:
            work()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("box", [[0, 0, 1e300, 1e300], [-1.7e308, 0, 1.7e308, 1e300], [1e300, 1e300, 1.1e300, 1.1e300]])
def test_a_predicted_box_beyond_all_images_is_a_miss(tmp_path, box):
    """Odd text of a model is no error of the user: the pair counts, and the report shows the rest."""

    class Far(PlainDifference):
        def locate(self, pair):
            return Location([box], [1.0], 1.0, model=self.name)

    manifest = make_pairs(tmp_path / "data", 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", InputWarning)
        metrics = evaluate([manifest], Far(), tmp_path / "out", progress=False)
    # A box of such a size may cover the whole target; it is compared as it was said.
    assert metrics["overall"]["miou"] == 0
    assert (tmp_path / "out" / "report.html").stat().st_size
