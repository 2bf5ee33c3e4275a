"""Pair features ahead of training: the same files as training itself writes, in CPU processes and in batches."""

import json
import os
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("trl", reason="the train extra is not installed")
import torch

from differad.answers.formats import answer_format
from differad.answers.resize import ResizeRule
from differad.cli.main import run
from differad.data.manifest import read_pairs
from differad.errors import InputError, WriteError
from differad.images import read_images
from differad.locators.tiny.batched import BatchedPairFeatures
from differad.locators.tiny.evidence import CELL_EXTRA, COARSE, DISTANCES, FINE, WIDTH, aligned_difference, cell_maxima
from differad.locators.tiny.known import INDEX, key_image, read_key
from differad.locators.tiny.pairs import PairFeatureExtractor, resized
from differad.synthesis.draw import SynthesisOptions
from differad.synthesis.run import synthesize
from differad.training.data import AnswerConvention, build_rows
from differad.training.evidence import compute_pair_features
from differad.training.policy import open_checkpoint
from differad.training.recipe import SftRecipe
from differad.training.sft import build_trainer
from tolerance import distance_rounding

SMALL = {"hidden_size": 32, "heads": 2, "layers": 1, "channels": 8, "blocks": 1}
AREA = 128 * 128
RULE = ResizeRule(64, AREA, AREA, least_side=16)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    out = tmp_path_factory.mktemp("drawn") / "set"
    options = SynthesisOptions(seed=3, size=128, siblings=0.5, aspect=1.5)
    return synthesize(options, 8, out, progress=False).manifest


def recipe(manifest, folder, **model):
    chosen = model or {"tiny": SMALL, "min_pixels": AREA, "max_pixels": AREA}
    data = {"pairs": [str(manifest)], "evidence": str(folder)}
    return SftRecipe.model_validate({"phase": "sft", "out": str(folder / "run"), "model": chosen, "data": data})


def stored(folder):
    return {path.name: np.load(path).astype(np.float32) for path in folder.glob("*.npy")}


def as_trained(manifest, folder):
    """What the image processor of a run makes of the pairs, and keeps."""
    own = recipe(manifest, folder)
    processor = open_checkpoint(own.model, own.out, 0).processor.image_processor
    processor.cache = folder
    for pair in read_pairs(manifest):
        processor([torch.from_numpy(image).permute(2, 0, 1) for image in read_images(pair.reference, pair.target)])
    return stored(folder)


@pytest.fixture(scope="module")
def expected(manifest, tmp_path_factory):
    return as_trained(manifest, tmp_path_factory.mktemp("as_trained"))


def assert_alike(found, expected):
    """Squares of differences and distances within what half precision and COARSE products in float32 leave of them."""
    assert found.keys() == expected.keys()
    for name, rows in found.items():
        error = np.abs(rows - expected[name])
        half = 2.0**-10 * np.abs(expected[name]) + 2.0**-24
        near = error <= half + np.asarray(distance_rounding(COARSE, expected[name]), np.float32)
        # Of two reference patches that are equally near, one or the other is taken.
        assert near.mean() > 0.999, name


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_files_are_those_that_training_writes(manifest, expected, tmp_path, device):
    folder = tmp_path / "evidence"
    found = compute_pair_features(recipe(manifest, folder), workers=2, device=device)
    assert (found.pairs, found.computed, found.kept) == (8, 8, 0)
    assert_alike(stored(folder), expected)
    again = compute_pair_features(recipe(manifest, folder), workers=2, device=device)
    assert (again.computed, again.kept) == (0, 8)


def test_a_batch_is_what_each_of_its_pairs_is_alone(manifest):
    images = [[resized(image, RULE) for image in read_images(p.reference, p.target)] for p in read_pairs(manifest)]
    shape = images[0][1].shape
    batch = [both for both in images if both[0].shape == both[1].shape == shape]
    pair_features, alone = BatchedPairFeatures(torch.device("cpu")), PairFeatureExtractor()
    pixels_of = []
    for reference, target in batch:
        pixels = aligned_difference(reference, target)
        strides = [(shape[0] // side, shape[1] // side) for side in (8, 16)]
        pixels_of.append(None if pixels is None else tuple(cell_maxima(pixels, each) for each in strides))
    rows = pair_features([r for r, _ in batch], [t for _, t in batch], pixels_of).astype(np.float32)
    assert_alike(dict(enumerate(rows)), {n: alone(*both) for n, both in enumerate(batch)})


def test_shapes_of_reference_and_target_may_differ():
    rng = np.random.default_rng(0)
    reference, target = (rng.integers(0, 256, (*shape, 3), np.uint8) for shape in ((128, 64), (64, 128)))
    rows = BatchedPairFeatures(torch.device("cpu"))([reference], [target], [None]).astype(np.float32)
    assert rows.shape == (1, 4, 8, 4 * (FINE + CELL_EXTRA) + COARSE + CELL_EXTRA)
    assert_alike({0: rows[0]}, {0: PairFeatureExtractor()(reference, target, align=False)})
    assert (rows[..., FINE + DISTANCES - 1] == 0).all()  # no pixels were aligned


def collated(own, count):
    """What the trainer is given of the first pairs."""
    source = open_checkpoint(own.model, own.out, 0)
    source.processor.image_processor.cache = own.data.evidence
    trainer = build_trainer(own, source, [])
    return trainer.data_collator([trainer.train_dataset[number] for number in range(count)])


def test_training_sees_the_same_without_opening_an_image(manifest, tmp_path):
    own = recipe(manifest, tmp_path / "evidence")
    as_read = collated(own, 8)
    assert len(stored(tmp_path / "evidence")) == 8
    found = compute_pair_features(own, workers=1, device="cpu")
    assert (found.computed, found.kept) == (0, 8)
    rows = list(build_rows(read_pairs(manifest), own.data, open_checkpoint(own.model, own.out, 0).convention))
    assert all(row["evidence"] for row in rows)
    known = collated(own, 8)
    assert as_read.keys() == known.keys()
    for name, value in as_read.items():
        assert torch.equal(value, known[name]), name


def test_a_changed_file_is_not_in_the_index(manifest, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(Path(manifest).parent, folder)
    own = recipe(folder / "pairs.jsonl", tmp_path / "evidence")
    compute_pair_features(own, workers=1, device="cpu")
    convention = open_checkpoint(own.model, own.out, 0).convention
    pairs = list(read_pairs(folder / "pairs.jsonl"))
    os.utime(pairs[0].target, ns=(1, 1))  # another file in its place
    Path(pairs[1].reference).write_bytes(Path(pairs[2].reference).read_bytes() + b"\0")
    (key,) = [row["evidence"] for row in build_rows([pairs[2]], own.data, convention)]
    (tmp_path / "evidence" / f"{key}.npy").unlink()
    known = [bool(row["evidence"]) for row in build_rows(pairs, own.data, convention)]
    assert known == [False, False, False, *[True] * 5]


def test_a_line_that_was_cut_off_is_passed_over(manifest, tmp_path):
    own = recipe(manifest, tmp_path / "evidence")
    compute_pair_features(own, workers=1, device="cpu")
    index = tmp_path / "evidence" / INDEX
    index.write_text(index.read_text() + '["[[64, 163')
    rows = list(build_rows(read_pairs(manifest), own.data, open_checkpoint(own.model, own.out, 0).convention))
    assert all(row["evidence"] for row in rows)


def test_no_image_is_taken_for_a_key():
    key = bytes(range(16))
    assert read_key(key_image(key)) == key
    assert read_key(np.zeros((2, 6, 3), np.uint8)) is None
    assert read_key(np.zeros((64, 64, 3), np.uint8)) is None


def test_time_that_is_up_leaves_the_rest(manifest, tmp_path):
    folder = tmp_path / "evidence"
    found = compute_pair_features(recipe(manifest, folder), workers=1, minutes=1e-6, device="cpu")
    # Four tasks were under way for the only worker.
    assert found.computed == len(stored(folder)) == 4


def test_batches_beyond_the_time_limit_are_left_out_of_files_and_index(manifest, tmp_path):
    folder = tmp_path / "evidence"
    found = compute_pair_features(recipe(manifest, folder), workers=1, minutes=1e-6, device="cpu:0")
    assert found.computed == len(stored(folder)) == 0  # four pairs were prepared, too few for a batch
    assert (folder / INDEX).read_text() == ""


def test_the_command_says_what_it_did(manifest, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe(manifest, tmp_path / "evidence").model_dump_json())
    assert run(["train", "evidence", str(path), "--workers", "1", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["computed"] == 8
    for arguments, text in (
        (["--minutes", "0"], "minutes=0"),
        (["--workers", "0"], "workers=0"),
        (["--device", "moon"], "moon"),
        (["data.evidence=null"], "data.evidence: missing"),
        (["model={checkpoint: nowhere}"], "no embedded policy"),
    ):
        assert run(["train", "evidence", str(path), *arguments]) != 0
        assert text in capsys.readouterr().err


def broken(content, kind):
    """What may stand in place of a file of evidence."""
    if kind == "empty":
        return b""
    if kind == "cut":
        return content[: len(content) // 2]
    if kind == "zeros":
        return bytes(len(content))
    buffer = BytesIO()
    shape = {"flat": (64,), "small": (4, 4, WIDTH), "wide": (8, 8, WIDTH + 1)}[kind]
    np.save(buffer, np.zeros(shape, np.float16))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["empty", "cut", "zeros", "flat", "small", "wide"])
def test_an_incomplete_feature_file_is_computed_again(manifest, tmp_path, kind):
    own = recipe(manifest, tmp_path)
    compute_pair_features(own, workers=1, device="cpu")
    whole = {path.name: path.read_bytes() for path in tmp_path.glob("*.npy")}
    spoilt = sorted(whole)[:3]
    for name in spoilt:
        (tmp_path / name).write_bytes(broken(whole[name], kind))
    # Training takes the images of these pairs, whose evidence is not known, and computes it.
    rows = list(build_rows(read_pairs(manifest), own.data, AnswerConvention(answer_format("qwen2-vl"), RULE)))
    known = {row["evidence"] for row in rows} - {""}
    assert known == {name.removesuffix(".npy") for name in whole if name not in spoilt}
    assert as_trained(manifest, tmp_path).keys() == whole.keys()
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.npy")} == whole
    (tmp_path / spoilt[0]).write_bytes(broken(whole[spoilt[0]], kind))
    summary = compute_pair_features(own, workers=1, device="cpu")
    assert (summary.computed, summary.kept) == (1, len(rows) - 1)
    assert (tmp_path / spoilt[0]).read_bytes() == whole[spoilt[0]]


def test_a_broken_feature_file_in_training_is_named(manifest, tmp_path):
    own = recipe(manifest, tmp_path)
    compute_pair_features(own, workers=1, device="cpu")
    lost = sorted(tmp_path.glob("*.npy"))[0]
    processor = open_checkpoint(own.model, own.out, 0).processor.image_processor
    processor.cache = tmp_path
    lost.write_bytes(b"")
    standing = torch.from_numpy(key_image(bytes.fromhex(lost.stem))).permute(2, 0, 1)
    with pytest.raises(InputError, match=rf"{lost.name}: missing or incomplete; expected a pair's features"):
        processor([standing, standing])


def test_unwritable_features_give_one_line(manifest, tmp_path):
    own = recipe(manifest, tmp_path / "evidence")
    (tmp_path / "evidence").write_text("a file")
    with pytest.raises(WriteError, match=r"evidence: cannot be made a folder \(File exists\); choose another place"):
        compute_pair_features(own, workers=1, device="cpu")
