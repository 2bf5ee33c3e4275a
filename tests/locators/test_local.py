"""A local checkpoint, run for real on tiny ones of the three classes."""

import json
import logging
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_pairs import MODEL_TYPES, SHORT, Checkpoint, cpu, line, located, make_image, pairs
from numpy.testing import assert_allclose
from PIL import Image

import differad
from differad.answers.resize import ResizeRule
from differad.cli.main import run
from differad.core import Location, Pair
from differad.errors import ImageError, InputWarning, MissingExtraError, OptionError
from differad.images import read_image, read_images
from differad.locators.checkpoints import loading
from differad.locators.local import READ_AHEAD, LocalLocator, LocalOptions
from tolerance import assert_as_near

# The target is 200x100. Thousandths: 98/1000 * 200 = 19.6, 28/1000 * 100 = 2.8, 39.2, 11.2.
# Qwen2.5-VL sees it as 196x112 (multiples of 28): 98 * 200/196 = 100, 28 * 100/112 = 25, 200, 100.
BOXES = {
    "qwen2_vl": [[19.6, 2.8, 39.2, 11.2]],
    "qwen2_5_vl": [[100, 25, 200, 100]],
    "qwen3_vl": [[19.6, 2.8, 39.2, 11.2]],
}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_boxes_are_pixels_of_the_original_target(checkpoint: Checkpoint, model_type: str) -> None:
    folder = checkpoint(model_type)
    location = LocalLocator(str(folder), cpu()).locate(Pair(make_image(140, 140), make_image(200, 100)))
    assert_allclose(location.boxes, BOXES[model_type])
    assert location.valid
    assert location.confidence is None
    assert location.reasoning == "The cap is gone."
    assert location.answer == "<think>The cap is gone.</think><answer>(98,28),(196,112)</answer>"
    assert location.model == str(folder)
    assert location.seconds > 0


def test_family_overrides_what_the_config_implies(checkpoint: Checkpoint) -> None:
    locator = LocalLocator(str(checkpoint("qwen2_vl")), cpu(family="qwen2.5-vl"))
    assert_allclose(locator.locate(Pair(make_image(140, 140), make_image(200, 100))).boxes, BOXES["qwen2_5_vl"])


@pytest.mark.parametrize(
    ("answer", "valid"), [("<answer>(0,0),(0,0)</answer>", True), ("<answer>I cannot tell.</answer>", False)]
)
def test_no_box_is_normal_or_unreadable(checkpoint: Checkpoint, answer: str, valid: bool) -> None:
    location = LocalLocator(str(checkpoint("qwen3_vl", answer)), cpu()).locate(pairs()[0])
    assert location.boxes.shape == (0, 4)
    assert location.valid is valid


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_answers_like_one_pair_at_a_time(checkpoint: Checkpoint, model_type: str, temperature: float) -> None:
    folder = str(checkpoint(model_type, None))
    batched = LocalLocator(folder, LocalOptions(**SHORT, batch_size=3, temperature=temperature))
    single = LocalLocator(folder, LocalOptions(**SHORT, batch_size=1, temperature=temperature))
    together = [located(outcome).answer for outcome in batched.locate_many(pairs())]
    assert together == [single.locate(pair).answer for pair in pairs()]
    assert len(set(together)) >= 3, "the answers must depend on the images for this test to say anything"


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("sizes", [False, True])
def test_a_cached_prefix_changes_no_answer(
    checkpoint: Checkpoint, model_type: str, temperature: float, sizes: bool
) -> None:
    folder = str(checkpoint(model_type, None))
    options = {**SHORT, "batch_size": 3, "temperature": temperature}
    whole = LocalLocator(folder, LocalOptions(**options, remember_prefixes=0))
    keeping = LocalLocator(folder, LocalOptions(**options))
    expected = [located(outcome).answer for outcome in whole.locate_many(line(9, sizes=sizes))]
    assert [located(outcome).answer for outcome in keeping.locate_many(line(9, sizes=sizes))] == expected
    assert len(set(expected)) >= 3, "the answers must depend on the images for this test to say anything"
    assert len(keeping._prefixes) == 1
    assert len(whole._prefixes) == 0


def answer_logits(locator: LocalLocator, answer: Callable[..., Any]) -> Any:
    """Logits (C, B, V) of every answer token, for targets of two sizes at once, so that one has pads in its middle."""
    import torch

    reference = make_image(200, 100, seed=99)
    batch = [locator._prepare(reference, make_image(*size, seed=i)) for i, size in enumerate([(150, 150), (96, 200)])]
    seen: list[Any] = []

    def note(_ids: Any, logits: Any) -> Any:
        seen.append(logits.clone())
        return logits

    with torch.inference_mode():
        answer(batch, [note])
    return torch.stack(seen)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_logits_after_a_cached_prefix_equal_those_of_the_whole_prompt(
    checkpoint: Checkpoint, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And those of a prefix that is slightly wrong are not: one position off, one key missing, a thousandth too large."""
    from differad.locators import transformers_hooks as hooks
    from tiny_models import HIDDEN

    locator = LocalLocator(str(checkpoint(model_type, None)), LocalOptions(**SHORT))
    kept, whole = (answer_logits(locator, way) for way in (locator._after_prefix, locator._whole))
    assert kept.shape == whole.shape == (SHORT["max_new_tokens"], 2, kept.shape[2])
    precise = LocalLocator(str(checkpoint(model_type, None)), LocalOptions(**SHORT))
    precise._model.double()
    exact = answer_logits(precise, precise._whole)
    assert_as_near(kept, whole, exact, terms=HIDDEN)

    stock = hooks.PreallocatedCacheLayer

    def loud(keys: Any, *rest: object) -> object:
        return stock(1.001 * keys, *rest)

    def forgetful(keys: Any, values: Any, *rest: object) -> object:
        values = values.clone()
        values[:, :, 5] = 0
        return stock(keys, values, *rest)

    def shifted(keys: Any, *rest: object) -> object:
        return stock(keys.roll(1, dims=2), *rest)

    for wrong in (loud, forgetful, shifted):
        monkeypatch.setattr(hooks, "PreallocatedCacheLayer", wrong)
        with pytest.raises(AssertionError, match="from float64"):
            assert_as_near(answer_logits(locator, locator._after_prefix), whole, exact, terms=HIDDEN)


def encodings(locator: LocalLocator, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the prefixes that a locator encodes from now on."""
    from differad.locators import prefix

    lengths: list[int] = []
    encode = prefix.encode_prefix

    def noted(model: object, ids: object, *rest: object) -> object:
        lengths.append(ids.shape[1])  # type: ignore[attr-defined]
        return encode(model, ids, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(prefix, "encode_prefix", noted)
    return lengths


def test_a_reference_is_encoded_once_from_its_second_sight_on(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for pairs that come one by one, as behind an HTTP service; single references are never kept."""
    locator = LocalLocator(str(checkpoint("qwen2_vl", None)), LocalOptions(**SHORT))
    lengths = encodings(locator, monkeypatch)
    list(locator.locate_many(pairs()))
    assert lengths == []
    for pair in line(4):
        locator.locate(pair)
    assert len(lengths) == 3  # the line's, and of the two that stand among it and were seen above
    for pair in line(4):
        locator.locate(pair)
    assert len(lengths) == 3


def test_the_prefix_cache_is_bounded(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    locator = LocalLocator(str(checkpoint("qwen2_vl", None)), LocalOptions(**SHORT, remember_prefixes=2))
    lengths = encodings(locator, monkeypatch)
    references = [make_image(100, 100, seed=50 + i) for i in range(3)]
    for _ in range(2):
        for reference in references:
            list(locator.locate_many([Pair(reference, make_image(64, 64, seed=i)) for i in range(2)]))
    assert len(locator._prefixes) == 2
    assert len(lengths) == 6, "the third pushes the first out, and so on"


def test_the_embedded_policy_as_a_checkpoint_keeps_no_prefix() -> None:
    """Its tokens of a reference depend on the target."""
    weights = Path(differad.__file__).parent / "weights" / "tiny"
    locator = LocalLocator(str(weights), cpu(workers=2))
    reference = make_image(128, 128)
    outcomes = list(locator.locate_many([Pair(reference, make_image(128, 128, seed=i)) for i in range(3)]))
    assert all(isinstance(outcome, Location) for outcome in outcomes)
    assert len(locator._prefixes) == 0


def test_a_draw_depends_on_the_seed_alone(checkpoint: Checkpoint) -> None:
    folder = str(checkpoint("qwen2_vl", None))

    def draw(seed: int) -> str:
        return LocalLocator(folder, LocalOptions(**SHORT, temperature=1.0, seed=seed)).locate(pairs()[0]).answer

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(4)}) > 1


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("temperature", [0.0, 1.0, 20.0])
def test_a_constrained_model_gives_no_unreadable_answer(
    checkpoint: Checkpoint, model_type: str, temperature: float
) -> None:
    """Random weights, which say nothing that can be read; at temperature 20 the noise is nearly all there is."""
    folder = str(checkpoint(model_type, None))
    options = {**SHORT, "max_new_tokens": 90, "temperature": temperature}
    free = [located(each) for each in LocalLocator(folder, LocalOptions(**options)).locate_many(pairs())]
    bound = LocalLocator(folder, LocalOptions(**options, constrain=True))
    found = [located(each) for each in bound.locate_many([*pairs(), *line(3)])]
    assert not any(location.valid for location in free), "the model must need it for this test to say anything"
    assert all(location.valid for location in found)
    assert all(location.answer.endswith("</answer>") for location in found)
    assert len({location.answer for location in found}) > 1


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_model_that_answers_in_form_says_the_same_when_constrained(checkpoint: Checkpoint, model_type: str) -> None:
    folder = str(checkpoint(model_type))
    free, bound = (LocalLocator(folder, cpu(max_new_tokens=120, constrain=value)) for value in (False, True))
    pair = Pair(make_image(140, 140), make_image(200, 100))
    assert bound.locate(pair).answer == free.locate(pair).answer


def test_too_few_tokens_for_an_answer_are_refused(checkpoint: Checkpoint) -> None:
    locator = LocalLocator(str(checkpoint("qwen2_vl")), cpu(max_new_tokens=12, constrain=True))
    with pytest.raises(OptionError, match=r"max_new_tokens=12: expected at least \d+"):
        locator.locate(pairs()[0])


def test_noise_draws_from_the_softmax() -> None:
    """Share of each token over many rows against softmax(log p) = p."""
    import torch

    from differad.locators.local import _GumbelNoise

    probabilities, rows = torch.tensor([0.5, 0.3, 0.2]), 4000
    scores = (2.0 * probabilities.log()).expand(rows, 3)  # at temperature 2 these logits have the probabilities above
    sampled = _GumbelNoise(2.0, list(range(rows)))(None, scores).argmax(dim=1)
    shares = torch.bincount(sampled, minlength=3) / rows
    # Standard error of a share is at most sqrt(0.25 / 4000) = 0.008; four of them.
    assert_allclose(shares, probabilities, atol=0.032)


def test_a_broken_image_fails_its_pair_only(checkpoint: Checkpoint, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    good = Pair(make_image(140, 140), make_image(200, 100))
    thin = Pair(make_image(140, 140), make_image(5000, 20))
    stream = [good, Pair(broken, make_image(64, 64)), good, thin, good]
    outcomes = list(LocalLocator(str(checkpoint("qwen2_vl")), cpu(batch_size=3)).locate_many(stream))
    assert [type(outcome) for outcome in outcomes] == [Location, ImageError, Location, ImageError, Location]
    for outcome in outcomes[::2]:
        assert_allclose(located(outcome).boxes, BOXES["qwen2_vl"])


def test_no_more_than_some_batches_are_read_ahead(checkpoint: Checkpoint) -> None:
    taken: list[Pair] = []
    stream = (taken.append(pair) or pair for pair in pairs())
    outcomes = LocalLocator(str(checkpoint("qwen2_vl")), cpu(batch_size=2)).locate_many(stream)
    next(outcomes)
    assert len(taken) == 2 * READ_AHEAD < len(pairs())


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("limits", [{}, {"min_pixels": 40_000, "max_pixels": 90_000}, {"max_pixels": 12_544}])
def test_the_resized_size_is_the_processors(checkpoint: Checkpoint, model_type: str, limits: dict[str, int]) -> None:
    folder = checkpoint(model_type)
    locator = LocalLocator(str(folder), cpu(**limits))
    own = ResizeRule.from_folder(folder)
    rule = ResizeRule(own.factor, limits.get("min_pixels", own.min_pixels), limits.get("max_pixels", own.max_pixels))
    for width, height in [(200, 100), (33, 900), (64, 64), (1000, 777), (56, 57)]:
        prepared = locator._prepare(make_image(100, 100), make_image(width, height))
        _, grids, _ = locator._encode_images([prepared.target])
        rows, columns = (int(cells) * locator._image_processor.patch_size for cells in grids[0, 1:])
        assert prepared.frame.resized == rule.resized(width, height) == (columns, rows)


def test_16_bit_images_of_a_pair_are_scaled_alike(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A reference that fills 12 bits and a target a quarter as bright: the target must not be brightened to match.

    At temperature 1 the draw is seeded by the pixels, so any other pixels give another answer.
    """
    levels = np.linspace(0, 4095, 100 * 100).reshape(100, 100).astype(np.uint16)
    for name, samples in (("reference.png", levels), ("target.png", levels // 4)):
        Image.fromarray(samples).save(tmp_path / name)
    locator = LocalLocator(str(checkpoint("qwen2_vl", None)), LocalOptions(**SHORT, temperature=1.0))
    deep = locator.locate(Pair(tmp_path / "reference.png", tmp_path / "target.png")).answer
    together = read_images(tmp_path / "reference.png", tmp_path / "target.png")
    assert [each.max() for each in together] == [255, 63]  # 4095 // 16 and 1023 // 16
    assert deep == locator.locate(Pair(*together)).answer
    assert deep != locator.locate(Pair(together[0], read_image(tmp_path / "target.png"))).answer


def copy_of(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "copy"))


def test_a_template_may_lie_in_a_file_of_its_own(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = copy_of(checkpoint("qwen2_vl"), tmp_path)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    location = LocalLocator(str(folder), cpu()).locate(Pair(make_image(140, 140), make_image(200, 100)))
    assert_allclose(location.boxes, BOXES["qwen2_vl"])


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def of_type(model_type: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": model_type}))

    return change


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_short(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def incomplete(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def text_only_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message['role'] }}{% endfor %}")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without("config.json"), "no config.json"),
        (without("model.safetensors"), "weights cannot be loaded"),
        (without("preprocessor_config.json"), "image processor"),
        (without("chat_template.jinja"), "tokenizer cannot be loaded"),
        (text_only_template, "has 0 image slots; expected 2"),
        (of_type("bert"), "model type 'bert'"),
        (of_type("no_such_model"), "config.json cannot be loaded"),
        (pickled, "safetensors"),
        (cut_short, "weights cannot be loaded"),
        (incomplete, "1 weights are missing, lm_head.weight first"),
    ],
)
def test_a_spoiled_checkpoint_is_refused_in_one_line(
    checkpoint: Checkpoint, tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    folder = copy_of(checkpoint("qwen2_vl"), tmp_path)
    spoil(folder)
    with pytest.raises(OptionError, match=said) as caught:
        LocalLocator(str(folder), cpu())
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_name_that_leads_nowhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "file").touch()
    for name, said in [
        (str(tmp_path / "nothing"), "no such folder"),
        (str(tmp_path / "file"), "a file"),
        ("nobody/has-made-this-model", "this machine can reach"),
    ]:
        with pytest.raises(OptionError, match=said):
            LocalLocator(name, cpu())


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package}.*differad\[local\]"):
        LocalLocator("Qwen/Qwen2-VL-2B-Instruct")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("max_new_tokens", 0),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("seed", -1),
        ("min_pixels", 0),
        ("max_pixels", 0),
        ("workers", -1),
        ("dtype", "int3"),
        ("family", "gpt"),
    ],
)
def test_options_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=name):
        LocalOptions(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["toaster", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(checkpoint: Checkpoint, device: str) -> None:
    with pytest.raises(OptionError, match=f"device='{device}'"):
        LocalLocator(str(checkpoint("qwen2_vl")), LocalOptions(device=device))


def test_limits_the_wrong_way_round_are_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(OptionError, match="min_pixels <= max_pixels"):
        LocalLocator(str(checkpoint("qwen2_vl")), cpu(min_pixels=60_000))


def test_a_pipe_gets_no_bar_of_the_libraries(checkpoint: Checkpoint, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils.logging import is_progress_bar_enabled

    image = str(Path(__file__).parents[2] / "examples" / "board_good.png")
    arguments = ["locate", image, image, "--model", str(checkpoint("qwen2_vl")), "-o", "device=cpu"]
    capfd.readouterr()  # of writing the checkpoint
    assert run(arguments) == 0
    assert capfd.readouterr().err == ""
    assert is_progress_bar_enabled()  # the libraries are left as they were


def test_tries_at_the_hub_are_summed_up_by_our_own_error() -> None:
    class Collecting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    def load() -> None:
        with loading("owner/name", "config.json", "expected a folder"):
            hub.getChild("utils").warning("'[Errno -2]' thrown while requesting HEAD https://hub/config.json")
            hub.getChild("utils").warning("Retrying in 1s [Retry 1/5].")
            hub.getChild("utils").warning("The disk is full.")
            raise OSError("no route")

    lines: list[str] = []
    hub, handler = logging.getLogger("huggingface_hub"), Collecting()
    hub.addHandler(handler)
    try:
        with pytest.raises(
            OptionError, match=r"owner/name: config\.json cannot be loaded \(no route\); expected a folder"
        ):
            load()
        hub.warning("Retrying in 2s")
    finally:
        hub.removeHandler(handler)
    assert lines == ["The disk is full.", "Retrying in 2s"]


def test_importing_the_locators_loads_no_heavy_package() -> None:
    code = (
        "import sys, differad.locators.local, differad.locators.server;"
        "print(sorted({'torch', 'transformers', 'openai', 'safetensors'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_option_says_what_it_does() -> None:
    from dataclasses import fields

    assert all(field.metadata.get("help") for field in fields(LocalOptions))


def answers_and_warnings(locator: LocalLocator) -> tuple[list[str], list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        answers = [located(outcome).answer for outcome in locator.locate_many(line(9))]
    return answers, [str(each.message) for each in caught if issubclass(each.category, InputWarning)]


def raising(*_: object, **__: object) -> None:
    raise TypeError("DynamicCache.__init__() got an unexpected keyword argument 'config'")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("empty_cache", "TypeError: DynamicCache"),
        ("PreallocatedCacheLayer", "logits of token 0"),
        ("set_rope_deltas", ""),
    ],
)
def test_where_a_release_has_moved_the_cache_prompts_are_encoded_whole(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, broken: str, reason: str
) -> None:
    from differad.locators import transformers_hooks as hooks

    folder = str(checkpoint("qwen2_vl", None))
    expected = answers_and_warnings(LocalLocator(folder, LocalOptions(**SHORT, remember_prefixes=0)))
    assert expected[1] == []
    stock = hooks.PreallocatedCacheLayer
    wrong = {
        "empty_cache": raising,
        "PreallocatedCacheLayer": lambda keys, *rest: stock(1.001 * keys, *rest),
        "set_rope_deltas": lambda model, deltas: None,
    }
    monkeypatch.setattr(hooks, broken, wrong[broken])
    locator = LocalLocator(folder, LocalOptions(**SHORT))
    lengths = encodings(locator, monkeypatch)
    answers, (warning,) = answers_and_warnings(locator)
    assert answers == expected[0]
    assert lengths == []
    assert warning.startswith("remember_prefixes: prompts are encoded whole: with transformers 5.")
    assert reason in warning
    assert answers_and_warnings(locator) == (answers, [])  # warned once


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_with_this_release_prefixes_are_cached(checkpoint: Checkpoint, model_type: str) -> None:
    import torch

    locator = LocalLocator(str(checkpoint(model_type, None)), LocalOptions(**SHORT))
    state = torch.get_rng_state()
    _, warning = answers_and_warnings(locator)
    assert warning == []
    assert len(locator._prefixes) == 1
    assert torch.equal(torch.get_rng_state(), state)
