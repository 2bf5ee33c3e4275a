"""An export can be imported again: ids, boxes, and the difference between normal and unlabelled are preserved."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from exchange_parts import (
    FORMATS,
    HEIGHT,
    MAIN_FILE,
    WIDTH,
    line,
    make_images,
    predicted,
    sample,
    there_and_back,
    truth,
    without_truth,
    write_manifest,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from differad.data.exchange.registry import ANNOTATION_FORMATS, export_pairs, import_pairs
from differad.data.exchange.shared import file_name
from differad.data.manifest import read_pairs
from differad.errors import InputError, ManifestError, OptionError

_number = st.floats(0, 1, allow_nan=False)


@st.composite
def one_box(draw):
    x, y = draw(_number) * (WIDTH - 0.1), draw(_number) * (HEIGHT - 0.1)
    return [x, y, x + 0.1 + draw(_number) * (WIDTH - 0.1 - x), y + 0.1 + draw(_number) * (HEIGHT - 0.1 - y)]


a_truth = st.none() | st.lists(one_box(), max_size=4)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=40, deadline=None)
@given(pairs=st.dictionaries(st.text(min_size=1), a_truth, min_size=1, max_size=3))
@example(pairs={"a/b": [], "A/b": None, "../a b": [[0, 0, WIDTH, HEIGHT]]})
@example(pairs={"con": [], "\n": [[0.123456, 0, 1, 1]], "名前 🙂": None})
def test_ids_and_boxes_are_preserved(name, pairs):
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        names = make_images(folder)
        lines = [line(target, *pair) for target, pair in zip(names, pairs.items(), strict=False)]
        done, back = there_and_back(name, write_manifest(folder, lines), folder)
    assert done["skipped"] == 0
    assert list(back) == list(pairs)
    for pair_id, boxes in pairs.items():
        if boxes is None:
            assert back[pair_id] is None
        else:
            assert len(back[pair_id]) == len(boxes)
            # 0.005 from hundredths of a pixel in CVAT, 0.005 from those in the manifest
            assert np.allclose(np.reshape(back[pair_id], (-1, 4)), np.reshape(boxes, (-1, 4)), atol=0.0101, rtol=0)


@pytest.mark.parametrize("name", FORMATS)
def test_unchanged_pairs_are_confirmed_and_keep_everything(name, tmp_path):
    manifest = sample(tmp_path)
    export_pairs(name, manifest, tmp_path / "sent")
    done = import_pairs(name, tmp_path / "sent" / MAIN_FILE[name], manifest, tmp_path / "new" / "pairs.jsonl")
    assert (done["pairs"], done["corrected"], done["confirmed"], done["kept"]) == (3, 0, 2, 1)
    for old, new in zip(read_pairs(manifest), read_pairs(tmp_path / "new" / "pairs.jsonl"), strict=True):
        assert (old.id, old.category, old.group, old.extra) == (new.id, new.category, new.group, new.extra)
        assert Path(new.target).resolve() == Path(old.target).resolve()
        assert (old.boxes is None) == (new.boxes is None)


@pytest.mark.parametrize("name", FORMATS)
def test_predictions_are_exported_and_never_imported_as_truth(name, tmp_path):
    manifest = sample(tmp_path)
    predictions = {
        "unseen": predicted([1, 2, 3, 4], [70, 40, 99, 99], scores=[0.9, 0.25]),  # the second reaches over the edge
        "Tile/Ü 1": predicted(),
        "nobody": predicted(),
    }
    done = export_pairs(name, manifest, tmp_path / "sent", predictions=predictions)
    assert (done["predictions"], done["unknown_predictions"], done["cut_boxes"]) == (2, 1, 1)
    sent = "".join(
        path.read_text() for path in (tmp_path / "sent").rglob("*") if path.suffix in (".json", ".xml", ".txt")
    )
    assert "0.9" in sent
    assert "0.25" in sent
    out = tmp_path / "new.jsonl"
    import_pairs(name, tmp_path / "sent" / MAIN_FILE[name], without_truth(manifest), out)
    assert truth(out)["unseen"] is None
    assert truth(out)["Tile/Ü 1"] == []


@pytest.mark.parametrize("name", FORMATS)
def test_a_mask_is_dropped_when_its_boxes_are_corrected(name, tmp_path):
    (target, *_) = make_images(tmp_path)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[5:9, 10:16] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    export_pairs(name, write_manifest(tmp_path, [line(target, "a", [[1, 1, 9, 9]])], "o.jsonl"), tmp_path / "sent")
    masked = write_manifest(tmp_path, [line(target, "a", mask="mask.png")])
    done = import_pairs(name, tmp_path / "sent" / MAIN_FILE[name], masked, tmp_path / "new.jsonl")
    (pair,) = read_pairs(tmp_path / "new.jsonl")
    assert done["corrected"] == 1
    assert pair.boxes.tolist() == [[1, 1, 9, 9]]
    assert pair.mask is None


@pytest.mark.parametrize("name", FORMATS)
def test_images_rotated_by_exif_are_measured_upright(name, tmp_path):
    make_images(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright: 80x50 on disk is 50x80
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "turned.jpg", exif=exif)
    manifest = write_manifest(tmp_path, [line("turned.jpg", "a", [[10, 60, 50, 80]])])
    assert there_and_back(name, manifest, tmp_path)[1] == {"a": [[10, 60, 50, 80]]}


@pytest.mark.parametrize("name", ["coco", "cvat"])
def test_the_manifest_and_the_option_decide_what_an_empty_image_means(name, tmp_path):
    names = make_images(tmp_path)
    empty = write_manifest(tmp_path, [line(names[0], "a"), line(names[1], "b")], "empty.jsonl")
    export_pairs(name, empty, tmp_path / "sent")
    # The tool shows both images without a box. Boxes of a labelled pair were removed (COCO says "labelled": false, so
    # that there were none to remove); of "b" nobody knows.
    manifest = write_manifest(tmp_path, [line(names[0], "a", [[1, 1, 9, 9]]), line(names[1], "b")])
    sent = tmp_path / "sent" / MAIN_FILE[name]
    import_pairs(name, sent, manifest, tmp_path / "plain.jsonl")
    assert truth(tmp_path / "plain.jsonl") == {"a": [[1, 1, 9, 9]] if name == "coco" else [], "b": None}
    import_pairs(name, sent, manifest, tmp_path / "sure.jsonl", empty_is_normal=True)
    assert truth(tmp_path / "sure.jsonl") == {"a": [], "b": []}


def labels(manifest):
    return {
        pair.id: (pair.anomalous, None if pair.boxes is None else pair.boxes.tolist()) for pair in read_pairs(manifest)
    }


UNKNOWN = {"anomalous": True, "boxes": None}


@pytest.fixture
def bad_parts(tmp_path):
    """A manifest of a pair that is abnormal at an unknown place, a normal one and an unlabelled one."""
    names = make_images(tmp_path)
    return write_manifest(
        tmp_path, [line(names[0], "bad", **UNKNOWN), line(names[1], "good", []), line(names[2], "new")]
    )


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("empty_is_normal", [False, True])
def test_abnormal_at_an_unknown_place_stays_so(name, bad_parts, tmp_path, empty_is_normal):
    done = export_pairs(name, bad_parts, tmp_path / "sent")
    assert (done["place_unknown"], done["unlabelled"], done["boxes"]) == (1, 1, 0)
    sent, options = tmp_path / "sent" / MAIN_FILE[name], {"empty_is_normal": empty_is_normal}
    done = import_pairs(name, sent, bad_parts, tmp_path / "same.jsonl", **options)
    assert done["place_unknown"] == 1
    assert done["corrected"] == (1 if empty_is_normal and name in ("coco", "cvat") else 0)  # "new", not "bad"
    assert labels(tmp_path / "same.jsonl")["bad"] == (True, None)
    # Into a manifest that knows nothing of it, as a file that comes from a colleague.
    names = [json.loads(text)["target"] for text in bad_parts.open(encoding="utf-8")]
    blank = write_manifest(
        tmp_path, [line(n, i) for n, i in zip(names, ("bad", "good", "new"), strict=True)], "blank.jsonl"
    )
    import_pairs(name, sent, blank, tmp_path / "learnt.jsonl")
    assert labels(tmp_path / "learnt.jsonl") == {"bad": (True, None), "good": (False, []), "new": (None, None)}


@pytest.mark.parametrize("name", FORMATS)
def test_boxes_on_an_abnormal_target_are_imported(name, bad_parts, tmp_path):
    names = [json.loads(text)["target"] for text in bad_parts.open(encoding="utf-8")]
    parsed = write_manifest(tmp_path, [line(names[0], "bad", [[1, 2, 30, 40]])], "drawn.jsonl")
    export_pairs(name, parsed, tmp_path / "sent")
    done = import_pairs(name, tmp_path / "sent" / MAIN_FILE[name], bad_parts, tmp_path / "out.jsonl")
    assert (done["corrected"], done["place_unknown"]) == (1, 0)
    assert labels(tmp_path / "out.jsonl")["bad"] == (True, [[1, 2, 30, 40]])


@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_label_does_not_make_an_abnormal_target_normal(name, bad_parts, tmp_path):
    names = [json.loads(text)["target"] for text in bad_parts.open(encoding="utf-8")]
    export_pairs(name, write_manifest(tmp_path, [line(names[0], "bad")], "blank.jsonl"), tmp_path / "sent")
    if name == "yolo":  # what an editor of YOLO labels leaves for an image without boxes
        (tmp_path / "sent" / "labels" / "labelled" / f"{file_name('bad')}.txt").write_text("")
    if name == "label-studio":
        tasks = json.loads((tmp_path / "sent" / "tasks.json").read_text())
        tasks[0]["annotations"] = [{"result": []}]
        (tmp_path / "sent" / "tasks.json").write_text(json.dumps(tasks))
    sent = tmp_path / "sent" / MAIN_FILE[name]
    import_pairs(name, sent, bad_parts, tmp_path / "out.jsonl", empty_is_normal=True)
    assert labels(tmp_path / "out.jsonl")["bad"] == (True, None)


@pytest.mark.parametrize("name", ["coco", "label-studio", "cvat"])
def test_an_explicit_normal_label_counts(name, bad_parts, tmp_path):
    names = [json.loads(text)["target"] for text in bad_parts.open(encoding="utf-8")]
    export_pairs(name, write_manifest(tmp_path, [line(names[0], "bad", [])], "normal.jsonl"), tmp_path / "sent")
    if name == "label-studio":
        tasks = json.loads((tmp_path / "sent" / "tasks.json").read_text())
        choice = {"type": "choices", "from_name": "state", "to_name": "image", "value": {"choices": ["normal"]}}
        tasks[0]["annotations"] = [{"result": [choice]}]
        (tmp_path / "sent" / "tasks.json").write_text(json.dumps(tasks))
    import_pairs(name, tmp_path / "sent" / MAIN_FILE[name], bad_parts, tmp_path / "out.jsonl")
    assert labels(tmp_path / "out.jsonl")["bad"] == (False, [])


@pytest.mark.parametrize("name", FORMATS)
def test_a_normal_target_that_is_relabelled_abnormal(name, tmp_path):
    names = make_images(tmp_path)
    export_pairs(name, write_manifest(tmp_path, [line(names[0], "a", **UNKNOWN)], "bad.jsonl"), tmp_path / "sent")
    manifest = write_manifest(tmp_path, [line(names[0], "a", [])])
    import_pairs(name, tmp_path / "sent" / MAIN_FILE[name], manifest, tmp_path / "out.jsonl")
    # YOLO says it in the manifest beside only, which is no annotator's word against a label.
    assert labels(tmp_path / "out.jsonl")["a"] == ((False, []) if name == "yolo" else (True, None))


@pytest.mark.parametrize("name", FORMATS)
def test_ids_unknown_to_the_manifest(name, tmp_path):
    manifest = sample(tmp_path)
    export_pairs(name, manifest, tmp_path / "sent")
    lines = manifest.read_text().splitlines()
    less = write_manifest(tmp_path, [json.loads(lines[1]), json.loads(lines[2])], "less.jsonl")
    says = r"is the target of no pair" if name == "cvat" else r"'tile/ü 1'"  # CVAT has no room for ids
    with pytest.raises(ManifestError, match=says + r".*--skip-bad"):
        import_pairs(name, tmp_path / "sent" / MAIN_FILE[name], less, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    done = import_pairs(name, tmp_path / "sent" / MAIN_FILE[name], less, tmp_path / "out.jsonl", skip_bad=True)
    assert (done["skipped"], done["confirmed"]) == (1, 1)
    assert len(done["problems"]) == 1


@pytest.mark.parametrize("name", ["coco", "label-studio", "cvat"])  # YOLO's parts of the sides fit any size
def test_boxes_of_another_image_size_are_refused(name, tmp_path):
    manifest = sample(tmp_path)
    export_pairs(name, manifest, tmp_path / "sent")
    make_images(tmp_path, size=(WIDTH // 2, HEIGHT // 2))
    with pytest.raises(ManifestError, match="labelled as 80x50 pixels, but the image is 40x25"):
        import_pairs(name, tmp_path / "sent" / MAIN_FILE[name], manifest, tmp_path / "out.jsonl")


def test_the_table_is_complete_and_names_are_checked(tmp_path):
    assert list(ANNOTATION_FORMATS) == FORMATS
    assert all(exchange.help for exchange in ANNOTATION_FORMATS.values())
    with pytest.raises(OptionError, match=r"format 'voc': expected one of coco, yolo, label-studio, cvat"):
        export_pairs("voc", tmp_path / "pairs.jsonl", tmp_path / "sent")


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_is_overwritten(name, tmp_path):
    manifest = sample(tmp_path)
    export_pairs(name, manifest, tmp_path / "sent")
    with pytest.raises(InputError, match="not empty; expected a new or empty folder"):
        export_pairs(name, manifest, tmp_path / "sent")
    with pytest.raises(InputError, match=r"pairs\.jsonl: exists"):
        import_pairs(name, tmp_path / "sent" / MAIN_FILE[name], manifest, manifest)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made a folder"):
        export_pairs(name, manifest, tmp_path / "file")


@pytest.mark.parametrize("name", FORMATS)
def test_a_true_box_outside_the_target_is_an_error(name, tmp_path):
    (target, *_) = make_images(tmp_path)
    manifest = write_manifest(tmp_path, [line(target, "a", [[90, 10, 95, 20]])])
    with pytest.raises(ManifestError, match=r"pair 'a': box \[90, 10, 95, 20\].*no area inside the 80x50 image"):
        export_pairs(name, manifest, tmp_path / "sent")


@pytest.mark.parametrize("name", ["coco", "label-studio", "cvat"])
def test_images_outside_the_root_need_another_root(name, tmp_path):
    names = make_images(tmp_path)
    deep = tmp_path / "deep"
    deep.mkdir()
    one = {"id": "a", "reference": "../good.png", "target": f"../{names[0]}", "boxes": [[1, 1, 9, 9]]}
    manifest = write_manifest(deep, [one])
    with pytest.raises(ManifestError, match=rf"pair 'a': target .* is outside {deep}; --root {tmp_path} contains"):
        export_pairs(name, manifest, tmp_path / "sent")
    export_pairs(name, manifest, tmp_path / "sent", root=tmp_path)
    done = import_pairs(name, tmp_path / "sent" / MAIN_FILE[name], manifest, tmp_path / "out.jsonl", root=tmp_path)
    assert done["confirmed"] == 1


@settings(max_examples=300, deadline=None)
@given(st.text(min_size=1), st.text(min_size=1))
def test_file_names_are_safe_and_differ(a, b):
    for name in (file_name(a), file_name(b)):
        assert name.isascii()
        assert 0 < len(name) <= 80
        assert not set(name) & set('/\\:*?"<>|\0 ')
        assert not name.startswith(".")
    if a != b:
        assert file_name(a).casefold() != file_name(b).casefold()
