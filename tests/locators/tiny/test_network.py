"""The policy's forward pass in NumPy against the same in torch: layer by layer, and answer by answer."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from differad.errors import OptionError
from differad.locators.local import LocalLocator, LocalOptions
from differad.locators.tiny import layers, network
from differad.locators.tiny.locator import WEIGHTS, TinyLocator
from differad.locators.tiny.network import LARGEST, OPENING, DecodingState, Policy
from differad.locators.tiny.pairs import PairFeatureExtractor, resized
from differad.synthesis.draw import PairGenerator, SynthesisOptions
from tolerance import EPS, assert_as_near, assert_rounded

torch = pytest.importorskip("torch", reason="the local extra is not installed")
pytest.importorskip("transformers", reason="the local extra is not installed")


def tensor(x):
    return torch.from_numpy(np.ascontiguousarray(x))


def precise(x):
    return tensor(x).double()


def random_array(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def channels_last(found):
    return found[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("size", "how"),
    [
        (1, {}),
        (3, {"padding": 1}),
        (3, {"padding": 2, "dilation": 2}),
        (3, {"stride": 2, "padding": 1}),
        (4, {"stride": 4}),
    ],
)
@pytest.mark.parametrize("shape", [(8, 12), (16, 4)])
def test_convolution(size, how, shape):
    x, weight, bias = random_array(*shape, 5), random_array(7, 5, size, size, seed=1), random_array(7, seed=2)
    exact = torch.nn.functional.conv2d(precise(x).permute(2, 0, 1)[None], precise(weight), precise(bias), **how)
    terms = weight[0].size + 1
    assert_rounded(layers.conv(x, weight, bias, **how), channels_last(exact), terms=terms)
    wrong = (x, weight, 0.999 * bias), (x, weight.transpose(0, 1, 3, 2) if size > 1 else weight[::-1], bias)
    for spoilt in wrong:
        with pytest.raises(AssertionError):
            assert_rounded(layers.conv(*spoilt, **how), channels_last(exact), terms=terms)


def test_norms_and_activations():
    x, weight, bias = random_array(6, 4, 8), random_array(8, seed=1), random_array(8, seed=2)
    by_channel = precise(x).permute(2, 0, 1)[None]
    grouped = torch.nn.functional.group_norm(by_channel, 4, precise(weight), precise(bias))
    assert_rounded(layers.group_norm(x, weight, bias, 4), channels_last(grouped), terms=6 * 4 * 2)
    normed = torch.nn.functional.layer_norm(precise(x), (8,), precise(weight), precise(bias))
    assert_rounded(layers.layer_norm(x, weight, bias), normed, terms=8)
    assert_rounded(layers.softmax(x), precise(x).softmax(dim=-1), terms=8, scale=1.0)
    larger = torch.nn.functional.interpolate(by_channel, scale_factor=2.0, mode="bilinear")
    assert_rounded(layers.upsample_twice(x), channels_last(larger), terms=4)
    wide = np.linspace(-12, 12, 4001, dtype=np.float32)
    # The series gives the error function to 1.5e-7; four roundings of numbers up to 2 are left.
    erf_error = 1.5e-7 + 8 * EPS["float32"]
    off = np.abs(layers.gelu(wide) - torch.nn.functional.gelu(precise(wide)).numpy())
    assert (off <= np.abs(wide) / 2 * erf_error).all()
    silu = torch.nn.functional.silu(precise(wide)).numpy()
    assert (np.abs(layers.silu(wide) - silu) <= 8 * EPS["float32"] * np.abs(silu)).all()  # exp errs by four at most


@pytest.fixture(scope="module", params=["untaught", "shipped"])
def folder(request):
    return request.getfixturevalue("untaught") if request.param == "untaught" else WEIGHTS


@pytest.mark.parametrize("index", range(3))
def test_map_probabilities_and_answers_equal_those_of_torch(folder, index):
    """Map, the logits of the answer's first number, and of each further one after the numbers before it."""
    from differad.locators.tiny.processor import to_rows

    pair = PairGenerator(SynthesisOptions(seed=5, size=256, aspect=2, siblings=0.5)).generate(index)
    stock = LocalLocator(str(folder), LocalOptions(device="cpu"))
    own = TinyLocator(folder=folder)
    patches, grids, counts = stock._encode_images([pair.reference, pair.target])
    texts = stock._prompt.split(stock._image_token)
    prompt = texts[0] + "".join(
        stock._image_token * count + text for count, text in zip(counts, texts[1:], strict=True)
    )
    found = PairFeatureExtractor()(*(resized(image, own._rule) for image in (pair.reference, pair.target)))
    rows = to_rows(found)
    patches[-len(rows) :] = tensor(rows)  # the same evidence for both, to the last bit

    def logits(text, model):
        """Of the next token (V,) and of the map (h, w)."""
        ids = stock._tokenizer(prompt + text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            output = model(
                input_ids=ids,
                mm_token_type_ids=(ids == stock._config.image_token_id).int(),
                pixel_values=patches.to(model.dtype),
                image_grid_thw=grids,
            )
        return output.logits[0, -1].numpy(), model.model.visual.logits[0].numpy()

    policy, double = own._policy, copy.deepcopy(stock._model).double()
    (other, other_map), (exact, exact_map) = logits(OPENING, stock._model), logits(OPENING, double)
    changes, proposed, features = policy._encoder.tokens(found)
    terms = stock._config.get_text_config().hidden_size
    # The map as one row: its lines are short.
    assert changes.shape == exact_map.shape
    assert_as_near(changes.ravel(), other_map.ravel(), exact_map.ravel(), terms=terms)
    scores = DecodingState(policy._language).forward(*policy._prompt(proposed, features))
    assert_as_near(scores, other, exact, terms=terms)
    # Without pretraining these inputs hardly affect the scores.
    for wrong in ((1.001 * proposed, features), (proposed, features[::-1])) * (folder == WEIGHTS):
        spoilt = DecodingState(policy._language).forward(*policy._prompt(*wrong))
        with pytest.raises(AssertionError, match="from float64"):
            assert_as_near(spoilt, other, exact, terms=terms)
    # Where all logits are off by e at most, a probability is off by e / 2, and a number may win that is 2 e below another.
    slack = 2 * max(np.abs(each - exact).max() for each in (scores, other))
    output = policy.predict(found)
    zero = stock._tokenizer.convert_tokens_to_ids("0")
    assert output.normal == pytest.approx(float(torch.tensor(exact).softmax(dim=-1)[zero]), rel=0, abs=slack)
    text = OPENING
    numbers = stock._tokenizer.convert_tokens_to_ids([str(number) for number in range(LARGEST + 1)])
    for place, (number, between) in enumerate(zip(output.box, (",", "),(", ",", ""), strict=True)):
        allowed = logits(text, double)[0][numbers]
        low, high = (output.box[place - 2] + 1, LARGEST) if place >= 2 else (int(place == 0), LARGEST - 1)
        assert low <= number <= high
        assert allowed[number] >= allowed[low : high + 1].max() - 2 * slack
        text += f"{number}{between}"


@given(seed=st.integers(0, 10_000), preferred=st.none() | st.integers(0, LARGEST))
@settings(max_examples=50, deadline=None)
def test_a_box_always_has_an_area_whatever_the_weights_like(seed, preferred):
    """Random scores, or one number above all: corners are in order, and the zero box is never among them."""
    rng = np.random.default_rng(seed)

    class BiasedState:
        def __init__(self, _language):
            pass

        def forward(self, *_):
            scores = rng.normal(size=LARGEST + 100).astype(np.float32)
            if preferred is not None:
                scores[preferred + 50] = 100
            return scores

        append = forward

    policy = Policy(WEIGHTS)
    policy._numbers = np.arange(LARGEST + 1) + 50
    policy._prompt = lambda *_: (None, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "DecodingState", BiasedState)
        patch.setattr(policy._encoder, "tokens", lambda _: (np.zeros((2, 2), np.float32), None, None))
        x1, y1, x2, y2 = policy.predict(None).box
    assert 1 <= x1 < x2 <= LARGEST
    assert 0 <= y1 < y2 <= LARGEST


def test_a_folder_that_holds_no_policy_is_refused(tmp_path):
    with pytest.raises(OptionError, match=r"no config\.json"):
        Policy(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(OptionError, match="cannot be read as JSON"):
        Policy(tmp_path)
