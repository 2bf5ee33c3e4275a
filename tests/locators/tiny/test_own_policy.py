"""A policy of one's own in the place of the shipped one: the same answers from the same weights, and one line for a folder
that lacks something."""

import json
import pickle
import shutil
import struct
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from differad.errors import InputError, OptionError
from differad.evaluation.identity import describe_run
from differad.locators import load_locator
from differad.locators.features.weights import read_safetensors
from differad.locators.tiny import WEIGHTS, TinyLocator, TinyOptions
from differad.locators.tiny.calibration import (
    DECISION,
    DECISION_CONSTANTS,
    DecisionConstants,
    read_decision_constants,
    write_decision_constants,
)
from differad.locators.tiny.network import Policy, expected_shapes
from differad.synthesis.draw import PairGenerator, SynthesisOptions
from differad.synthesis.unaligned import generate_unaligned

NEEDED = ("config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the shipped weights, with what a training run leaves and no more."""
    place = tmp_path_factory.mktemp("runs") / "model"
    place.mkdir()
    for name in NEEDED:
        shutil.copy(WEIGHTS / name, place)
    return place


@pytest.fixture
def spoilt(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "spoilt")


@pytest.fixture(scope="module")
def synthetic_pairs():
    generator = PairGenerator(SynthesisOptions(seed=5, size=224, siblings=0.5))
    return [generator.generate(number).as_pair(str(number)) for number in range(3)]


def write_safetensors(path, tensors, kind="F32"):
    """Tensors (float32, or raw bytes of another kind with the shape of their name's array)."""
    header, content = {}, b""
    for name, (shape, data) in tensors.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(content), len(content) + len(data)]}
        content += data
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)


def raw(weights):
    return {name: (list(values.shape), values.astype("<f4").tobytes()) for name, values in weights.items()}


@pytest.mark.parametrize("spelling", ["{}", "tiny@{}", "tiny@{}/"])
def test_the_shipped_weights_answer_alike_from_a_folder(folder, synthetic_pairs, spelling):
    shipped, own = load_locator("tiny"), load_locator(spelling.format(folder))
    assert isinstance(own, TinyLocator)
    assert own.name == f"tiny@{folder}"
    for pair in synthetic_pairs:
        expected, found = shipped.locate(pair), own.locate(pair)
        assert np.array_equal(found.boxes, expected.boxes)
        assert np.array_equal(found.scores, expected.scores)
        same = ("answer", "confidence", "threshold", "reasoning", "valid")
        assert [getattr(found, name) for name in same] == [getattr(expected, name) for name in same]
        assert found.model == own.name


def test_another_process_takes_it_from_its_folder(folder, synthetic_pairs):
    own = load_locator(folder, workers=1)
    again = pickle.loads(pickle.dumps(own))
    assert (again.name, again.options) == (own.name, own.options)
    assert again.locate(synthetic_pairs[0]).answer == own.locate(synthetic_pairs[0]).answer


def test_auto_takes_a_policy_of_ones_own_where_nothing_can_be_aligned(spoilt):
    """Other numbers in its decision.json show that it is the one in the folder that answers."""
    apart = generate_unaligned(np.random.default_rng(7), True, 224).as_pair()
    write_decision_constants(spoilt, DecisionConstants(bias=-2.0, threshold=0.25))
    auto = load_locator(f"auto@{spoilt}")
    found, expected = auto.locate(apart), load_locator(spoilt).locate(apart)
    assert (found.confidence, found.answer, found.threshold) == (expected.confidence, expected.answer, 0.25)
    assert found.confidence < load_locator("tiny").locate(apart).confidence
    assert auto.name == found.model == f"auto@{spoilt}"
    assert spoilt in auto.weights


def test_options_are_those_of_tiny(folder, synthetic_pairs):
    own = load_locator(folder, threshold=1.0, closer="false", workers=1)
    assert own.options == TinyOptions(threshold=1.0, closer=False, workers=1)
    assert not own.locate(synthetic_pairs[0]).anomalous
    assert own.with_options(TinyOptions()).options.threshold == DECISION_CONSTANTS.threshold
    assert load_locator(f"auto@{folder}", **{"tiny.threshold": 0.9}).options.tiny.threshold == 0.9
    with pytest.raises(OptionError, match=r"option 'device': tiny@.* has none of that name; it takes closer, margin"):
        load_locator(folder, device="cpu")
    with pytest.raises(OptionError, match=r"family 'qwen2-vl': tiny@.*leave --family out"):
        load_locator(folder, family="qwen2-vl")


def test_a_run_knows_the_weights_by_their_content(folder, spoilt):
    (spoilt / DECISION).write_text('{"bias": 0.1}')
    runs = [describe_run(load_locator(place), [], None) for place in (folder, spoilt)]
    assert [run["model"] for run in runs] == [f"tiny@{folder}", f"tiny@{spoilt}"]
    names = [{f"{place.name}/{name}" for name in NEEDED} for place in (folder, spoilt)]
    for run, own in zip(runs, names, strict=True):
        assert own <= set(run["weights"])
        assert "efficientnet_lite0/model.safetensors" in run["weights"]
    assert f"spoilt/{DECISION}" in runs[1]["weights"]


def test_it_needs_neither_torch_nor_transformers(folder):
    program = f"""
import sys
for name in ("torch", "transformers", "safetensors"):
    sys.modules[name] = None
from differad import load_locator
print(load_locator({str(folder)!r}).name)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == f"tiny@{folder}"


@pytest.mark.parametrize("name", NEEDED)
def test_what_a_folder_lacks_is_named(spoilt, name):
    (spoilt / name).unlink()
    with pytest.raises(OptionError, match=rf"spoilt: no {name}; expected the .*folder of an embedded policy"):
        load_locator(f"tiny@{spoilt}")


def test_the_first_line_says_all_that_is_missing(spoilt):
    for name in NEEDED[1:]:
        (spoilt / name).unlink()
    with pytest.raises(
        OptionError, match=r"no model\.safetensors, tokenizer\.json, preprocessor_config\.json; expected"
    ):
        load_locator(spoilt)


def test_settings_of_the_image_processor_may_stand_in_the_processors_file(spoilt):
    settings = json.loads((spoilt / NEEDED[3]).read_text())
    (spoilt / NEEDED[3]).unlink()
    (spoilt / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert load_locator(spoilt).name == f"tiny@{spoilt}"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("tiny@", r"'tiny@': expected auto@FOLDER or tiny@FOLDER"),
        ("difference@{0}", r"'difference@.*': expected auto@FOLDER or tiny@FOLDER"),
        ("tiny@{0}/nowhere", r"nowhere: no such folder; expected the folder of an embedded policy"),
        ("tiny@~nobody-here/x", r"~nobody-here/x: no such folder"),
        ("tiny@{0}/..", r"\.\.: no config\.json; the run's policy is .*model"),
        ("{0}/..", r"no checkpoint, but a training run's folder; pass its result, .*model"),
        ("tiny@{0}/config.json", r"config\.json: no config\.json|no such folder"),
    ],
)
def test_what_is_no_policys_folder_is_refused_in_a_line(folder, model, message):
    with pytest.raises(OptionError, match=message) as error:
        load_locator(model.format(folder))
    assert "\n" not in str(error.value)


def change(path, *names, value=None):
    """Set the value at nested names of a JSON file; None takes the last name out."""
    content = json.loads(path.read_text())
    inner = content
    for name in names[:-1]:
        inner = inner[name]
    if value is None:
        del inner[names[-1]]
    else:
        inner[names[-1]] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("names", "value", "message"),
    [
        (("model_type",), "qwen2_vl", r"model type 'qwen2_vl'; expected an embedded policy .*--model"),
        (("vision_config",), None, r"config\.json: .*no 'vision_config'"),
        (("vision_config", "depth"), None, r"config\.json: .*no 'depth'"),
        (("vision_config", "depth"), "three", r"config\.json: not a file of an embedded policy"),
        (("vision_config", "depth"), 4, r"safetensors: 6 weights are missing, model\.visual\.blocks\.3"),
        (("vision_config", "embed_dim"), 64, r"fine\.weight has the shape \(32, 56, 1, 1\).* expects \(64, 56, 1, 1\)"),
        (("text_config", "num_hidden_layers"), 5, r"12 weights are missing, model\.language_model\.layers\.4"),
        (("text_config", "num_attention_heads"), 0, r"shares keys among 0 heads"),
        (("text_config", "num_key_value_heads"), 2, r"shares keys among 4 heads"),
        (("text_config", "rope_parameters"), None, r"no 'rope_parameters'"),
        (("text_config", "rope_parameters", "mrope_section"), [1, 2, 3], r"mrope_section \[1, 2, 3\] for heads of 32"),
        (("vision_start_token_id",), None, r"no 'vision_start_token_id'"),
        (("vision_config",), [], r"config\.json: not a file of an embedded policy"),
    ],
)
def test_settings_that_do_not_fit_are_named(spoilt, names, value, message):
    change(spoilt / "config.json", *names, value=value)
    with pytest.raises(OptionError, match=message):
        load_locator(f"tiny@{spoilt}")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("patch_size", 14, r"spoilt: .* multiples of 56 pixels; this policy expects 64"),
        ("merge_size", 2, r"spoilt: .* multiples of 32 pixels; this policy expects 64"),
        ("size", None, r"image processor settings without min_pixels, max_pixels"),
    ],
)
def test_an_image_processor_of_another_model_is_refused(spoilt, name, value, message):
    change(spoilt / "preprocessor_config.json", name, value=value)
    with pytest.raises(OptionError, match=message):
        load_locator(spoilt)


def test_a_tokenizer_of_another_model_is_refused(spoilt):
    path = spoilt / "tokenizer.json"
    path.write_text(json.dumps({"model": {"vocab": {"a": 0}}, "added_tokens": []}))
    with pytest.raises(OptionError, match=r"tokenizer\.json: not a file of an embedded policy \(no '<\|im_start\|>'\)"):
        load_locator(spoilt)
    path.write_text("[]")
    with pytest.raises(OptionError, match=r"tokenizer\.json: holds list"):
        load_locator(spoilt)
    path.write_text("{}")
    with pytest.raises(OptionError, match=r"tokenizer\.json: no tokens in it"):
        load_locator(spoilt)


def test_the_names_and_shapes_of_all_weights_are_known():
    weights = read_safetensors(WEIGHTS / "model.safetensors")
    settings = json.loads((WEIGHTS / "config.json").read_text())
    expected = dict(expected_shapes(settings["vision_config"], settings["text_config"]))
    assert expected == {name: values.shape for name, values in weights.items()}


def test_weights_that_are_no_numbers_are_refused(spoilt):
    weights = read_safetensors(spoilt / "model.safetensors")
    name = "model.visual.changed.bias"
    write_safetensors(spoilt / "model.safetensors", raw({**weights, name: np.full(1, np.nan, np.float32)}))
    with pytest.raises(
        OptionError, match=r"changed\.bias holds values that are not finite; take an earlier checkpoint"
    ):
        load_locator(spoilt)


def test_an_output_layer_of_its_own_is_refused(spoilt):
    """The embedded policy reads its answers off the embeddings; a copy of them is the same."""
    weights = read_safetensors(spoilt / "model.safetensors")
    table = weights["model.language_model.embed_tokens.weight"]
    write_safetensors(spoilt / "model.safetensors", raw({**weights, "lm_head.weight": table}))
    Policy(spoilt)
    write_safetensors(spoilt / "model.safetensors", raw({**weights, "lm_head.weight": 2 * table}))
    with pytest.raises(OptionError, match=r"lm_head\.weight is not embed_tokens\.weight; expected a policy with tied"):
        load_locator(spoilt)


def test_a_folder_that_is_no_checkpoint_is_said_without_any_package(tmp_path):
    program = f"""
import sys
sys.modules["torch"] = None
from differad import load_locator
try:
    load_locator({str(tmp_path)!r})
except Exception as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == f"{tmp_path}: no config.json; expected the folder of a checkpoint\n"


@pytest.mark.parametrize("kept", [0, 7, 200, 1_000_000])
def test_weights_cut_short_are_refused(spoilt, kept):
    path = spoilt / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"model\.safetensors: .*; copy the policy again, or train it again"):
        load_locator(spoilt)


@pytest.mark.parametrize("kind", ["BF16", "F16"])
def test_weights_in_half_precision_are_read(spoilt, kind):
    """As a policy trained in bfloat16 has them: the upper half of each float32, to the last bit."""
    weights = read_safetensors(spoilt / "model.safetensors")
    if kind == "BF16":
        upper = {name: values.view(np.uint32) >> 16 for name, values in weights.items()}
        data = {name: (list(values.shape), values.astype("<u2").tobytes()) for name, values in upper.items()}
        expected = {name: (values << 16).view(np.float32) for name, values in upper.items()}
    else:
        halves = {name: values.astype("<f2") for name, values in weights.items()}
        data = {name: (list(values.shape), values.tobytes()) for name, values in halves.items()}
        expected = {name: values.astype(np.float32) for name, values in halves.items()}
    write_safetensors(spoilt / "model.safetensors", data, kind)
    found = read_safetensors(spoilt / "model.safetensors")
    assert all(np.array_equal(found[name], values) for name, values in expected.items())
    assert all(values.dtype == np.float32 for values in found.values())
    Policy(spoilt)


def test_numbers_of_the_decision_stand_in_the_folder(spoilt, synthetic_pairs):
    own = DecisionConstants(bias=-1.0, answer=0.5, peak=0.25, threshold=0.6)
    assert read_decision_constants(spoilt) == DECISION_CONSTANTS
    assert write_decision_constants(spoilt, own) == spoilt / DECISION
    assert read_decision_constants(spoilt) == own
    located = load_locator(spoilt).locate(synthetic_pairs[0])
    expected = TinyLocator(folder=spoilt, deciding=own).locate(synthetic_pairs[0])
    assert (located.confidence, located.threshold) == (expected.confidence, 0.6)
    assert located.confidence != load_locator("tiny").locate(synthetic_pairs[0]).confidence
    # What the command line sets goes before it.
    assert load_locator(spoilt, threshold=0.2).locate(synthetic_pairs[0]).threshold == 0.2
    assert load_locator(f"auto@{spoilt}", workers=1).name == f"auto@{spoilt}"


def test_a_threshold_alone_leaves_the_shipped_curve(spoilt):
    (spoilt / DECISION).write_text('{"threshold": 0.7}')
    assert read_decision_constants(spoilt) == replace(DECISION_CONSTANTS, threshold=0.7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"decision\.json: cannot be read as JSON"),
        ("[1]", r"decision\.json: holds \[1\]; expected an object of bias, answer, peak, threshold"),
        ('{"tresh": 1}', r"'tresh' is none of its numbers; expected bias, answer, peak, threshold"),
        ('{"bias": "a"}', r"bias='a'; expected a number"),
        ('{"bias": true}', r"bias=True; expected a number"),
        ('{"peak": NaN}', r"peak=nan; expected a number"),
        ('{"threshold": 1.5}', r"threshold=1\.5; expected a probability in \[0, 1\]"),
    ],
)
def test_a_decision_that_cannot_be_meant_is_refused(spoilt, text, message):
    (spoilt / DECISION).write_text(text)
    with pytest.raises(OptionError, match=message):
        load_locator(spoilt)
