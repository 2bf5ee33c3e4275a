"""The resize rule against the published conversions and against transformers' own function."""

import json
from pathlib import Path

import numpy as np
import pytest

from differad.answers.resize import ResizeRule
from differad.errors import ImageError, OptionError

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "published_rewards.json").read_text())["conversions"]
QWEN2 = {"patch_size": 14, "merge_size": 2, "min_pixels": 3136, "max_pixels": 1003520}


def test_the_published_sizes():
    rule = ResizeRule.from_settings(QWEN2)
    for case in GOLDEN:
        assert rule.resized(case["width"], case["height"]) == tuple(case["resized_hw"][::-1])


@pytest.mark.parametrize(("factor", "low", "high"), [(28, 3136, 1003520), (32, 65536, 16777216), (4, 64, 5000)])
def test_equal_to_transformers(factor, low, high):
    module = pytest.importorskip(
        "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl", reason="needs the extra 'local'"
    )
    rule = ResizeRule(factor, low, high)
    for width, height in np.random.default_rng(0).integers(factor, 3000, (500, 2)).tolist():
        if max(width, height) <= 200 * min(width, height):
            expected = module.smart_resize(height, width, factor=factor, min_pixels=low, max_pixels=high)
            assert rule.resized(width, height) == tuple(expected)[::-1], (width, height)


@pytest.mark.parametrize(
    "settings",
    [
        QWEN2,
        {"patch_size": 14, "merge_size": 2, "size": {"min_pixels": 3136, "max_pixels": 1003520}},
        {"patch_size": 14, "merge_size": 2, "size": {"shortest_edge": 3136, "longest_edge": 1003520}},
    ],
)
def test_old_and_new_settings_mean_the_same(settings, tmp_path):
    assert ResizeRule.from_settings(settings) == ResizeRule(28, 3136, 1003520)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert ResizeRule.from_folder(tmp_path) == ResizeRule(28, 3136, 1003520)


def test_settings_inside_a_processor_config(tmp_path):
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": QWEN2, "processor_class": "x"}))
    assert ResizeRule.from_folder(tmp_path).factor == 28


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(OptionError, match="without merge_size, max_pixels"):
        ResizeRule.from_settings({"patch_size": 14, "min_pixels": 4})
    with pytest.raises(OptionError, match=r"no preprocessor_config\.json"):
        ResizeRule.from_folder(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(OptionError, match="cannot be read as JSON"):
        ResizeRule.from_folder(tmp_path)
    with pytest.raises(OptionError, match="min_pixels <= max_pixels"):
        ResizeRule(28, 100, 10)


def test_shapes_that_the_processor_refuses():
    rule = ResizeRule.from_settings(QWEN2)
    with pytest.raises(ImageError, match=r"27x500.*side under 28"):
        rule.resized(27, 500)
    with pytest.raises(ImageError, match="longer than 200:1"):
        rule.resized(28, 5601)


def test_a_processor_may_allow_smaller_images():
    rule = ResizeRule.from_settings(
        {"patch_size": 16, "merge_size": 4, "size": {"shortest_edge": 147456, "longest_edge": 147456}, "least_side": 16}
    )
    # 42 x 96 grown to 147,456 pixels of area: 254 x 581, sides up to the next multiples of 64
    assert rule.resized(42, 96) == (256, 640)
    with pytest.raises(ImageError, match="a side under 16"):
        rule.resized(15, 96)
