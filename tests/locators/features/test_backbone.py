"""The backbone: its file, its graph, and the same numbers from every runtime and from PyTorch."""

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from differad.errors import InputError, MissingExtraError
from differad.locators.features.backbone import Backbone, resize_to_area
from differad.locators.features.efficientnet import MEAN, OUTPUTS, SCALE, blocks
from differad.locators.features.weights import BACKBONE, read_safetensors
from differad.synthesis.pairs import make_pair
from tolerance import assert_as_near, assert_rounded

RUNTIMES = [
    "opencv",
    pytest.param("onnxruntime", marks=pytest.mark.skipif(not find_spec("onnxruntime"), reason="absent")),
]
# Products in the longest sum of the network: a pointwise convolution over all channels that a block has within.
LONGEST_SUM = max(convolution.weight_shape[1] for block in blocks() for convolution in block.convolutions)


def make_image(height=96, width=160):
    generated = make_pair(np.random.default_rng(1), "grain", size=448).target
    return np.ascontiguousarray(generated[:height, :width])


def test_the_file_is_the_one_that_the_model_card_names():
    card = BACKBONE.with_name("README.md").read_text()
    assert f"`{hashlib.sha256(BACKBONE.read_bytes()).hexdigest()}`" in card
    assert sum(tensor.size for tensor in read_safetensors(BACKBONE).values()) == 692_688
    assert sum(path.stat().st_size for path in BACKBONE.parent.iterdir()) < 6_000_000


def test_weights_fit_the_architecture_and_nothing_is_left_over():
    expected = {}
    for block in blocks():
        for convolution in block.convolutions:
            expected[f"{convolution.name}.weight"] = convolution.weight_shape
            expected[f"{convolution.name}.bias"] = (convolution.channels_out,)
    assert {name: tensor.shape for name, tensor in read_safetensors(BACKBONE).items()} == expected


def test_the_reader_agrees_with_the_safetensors_package():
    load_file = pytest.importorskip("safetensors.numpy").load_file
    theirs = load_file(BACKBONE)
    for name, tensor in read_safetensors(BACKBONE).items():
        np.testing.assert_array_equal(tensor, theirs[name])


def test_a_broken_file_is_named(tmp_path):
    broken = tmp_path / "model.safetensors"
    with pytest.raises(InputError, match="cannot be read"):
        read_safetensors(broken)
    broken.write_bytes(b"no header at all")
    with pytest.raises(InputError, match="no safetensors header"):
        read_safetensors(broken)
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    broken.write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    with pytest.raises(InputError, match="tensor a is F32 or cut short"):
        read_safetensors(broken)


def in_torch(pixels, dtype=np.float32):
    """The network in PyTorch, written from the same description: (H, W, 3) uint8 in, feature maps (h, w, C) out."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    weights = {name: torch.from_numpy(tensor.astype(dtype)) for name, tensor in read_safetensors(BACKBONE).items()}
    current = torch.from_numpy((pixels.astype(dtype) - MEAN) / SCALE).permute(2, 0, 1)[None]
    outputs = {}
    for block in blocks():
        entered = current
        for convolution in block.convolutions:
            top, left, bottom, right = convolution.pads
            current = functional.conv2d(
                functional.pad(current, (left, right, top, bottom)),
                weights[f"{convolution.name}.weight"],
                weights[f"{convolution.name}.bias"],
                stride=convolution.stride,
                groups=convolution.channels_in if convolution.depthwise else 1,
            )
            current = functional.relu6(current) if convolution.clipped else current
        current = current + entered if block.residual else current
        outputs[block.name] = current[0].permute(1, 2, 0).numpy()
    return [outputs[name] for name, _, _ in OUTPUTS]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("shape", [(96, 160), (32, 32), (448, 64)], ids=str)
def test_every_runtime_agrees_with_torch(runtime, shape):
    seen = make_image(*shape)
    outputs = Backbone(runtime).maps(seen)
    exact = in_torch(seen, np.float64)
    for output, other, true, (_, stride, channels) in zip(outputs, in_torch(seen), exact, OUTPUTS, strict=True):
        assert output.shape == (shape[0] // stride, shape[1] // stride, channels)
        assert_as_near(output, other, true, terms=LONGEST_SUM)


def shifted_by_a_quarter(pixels):
    """The image shifted by a quarter of a pixel to the right."""
    left = np.roll(pixels, 1, axis=1).astype(float)
    return np.clip(np.rint(0.75 * pixels + 0.25 * left), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "wrong",
    [lambda pixels: pixels[..., ::-1], lambda pixels: pixels[::-1], shifted_by_a_quarter, lambda pixels: pixels | 1],
)
def test_the_comparison_rejects_what_is_slightly_wrong(wrong):
    """Channels swapped, upside down, a quarter of a pixel off, the lowest bit lost."""
    seen = make_image()
    outputs = Backbone("opencv").maps(np.ascontiguousarray(wrong(seen)))
    for output, other, true in zip(outputs, in_torch(seen), in_torch(seen, np.float64), strict=True):
        with pytest.raises(AssertionError, match="from float64"):
            assert_as_near(output, other, true, terms=LONGEST_SUM)


def test_patches_have_length_one():
    for patches in Backbone("opencv").patches(make_image()):
        # A sum of C squares is off by C eps, its root by half of that, the quotient by one eps more.
        assert_rounded(np.linalg.norm(patches, axis=-1), np.ones(patches.shape[:2]), terms=patches.shape[-1])


@pytest.mark.parametrize("shape", [(1, 1), (3, 900), (2000, 1500), (448, 448)], ids=str)
def test_fitted_sides_are_multiples_of_16_of_about_the_same_area(shape):
    fitted = resize_to_area(np.zeros((*shape, 3), np.uint8), 448)
    height, width = fitted.shape[:2]
    assert height % 16 == width % 16 == 0
    assert min(height, width) >= 32
    if max(shape) < 100 * min(shape):
        assert 0.9 < height * width / 448**2 < 1.1


def test_a_runtime_that_is_not_installed_is_named():
    if find_spec("onnxruntime"):
        pytest.skip("it is installed")
    with pytest.raises(
        MissingExtraError, match=r"pip install 'differad\[fast\]' \(in a checkout: pip install '\.\[fast\]'\)"
    ):
        Backbone("onnxruntime")


def test_the_conversion_repeats_where_the_published_package_lies(tmp_path, monkeypatch):
    """Set the wheel's path in this variable to run it: the test downloads nothing."""
    import os
    import subprocess
    import sys

    wheel = os.environ.get("DIFFERAD_EFFICIENTNET_WHEEL")
    if not wheel:
        pytest.skip("DIFFERAD_EFFICIENTNET_WHEEL is not set")
    script = Path(__file__).parents[3] / "scripts" / "convert_efficientnet_lite0.py"
    subprocess.run([sys.executable, script, wheel, "--out", tmp_path / "model.safetensors"], check=True)
    assert (tmp_path / "model.safetensors").read_bytes() == BACKBONE.read_bytes()
