"""The image processor: the order of its rows, its caches, how it is saved and loaded."""

import json

import numpy as np
import pytest

pytest.importorskip("torch", reason="the local extra is not installed")
pytest.importorskip("transformers", reason="the local extra is not installed")
import torch
from PIL import Image

from differad.locators.checkpoints import load_image_processor
from differad.locators.features.backbone import Backbone
from differad.locators.tiny.evidence import CELL_EXTRA, FINE, WIDTH, pair_features, reference_features
from differad.locators.tiny.model import TinyConfig, unfold
from differad.locators.tiny.processor import MERGE, REFERENCE_GRID, EvidenceProcessor, to_rows

AREA = {"shortest_edge": 128 * 128, "longest_edge": 128 * 128}


def make_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def processor(**settings):
    return EvidenceProcessor(size=AREA, **settings)


def processed(own, *images):
    return own(images=list(images), return_tensors="pt", input_data_format="channels_last")


def test_rows_go_block_by_block():
    """4 x 8 patches: of the left block of 4 x 4 all rows, then of the right one."""
    found = np.arange(4 * 8).reshape(4, 8, 1)
    left = [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27]
    assert to_rows(found)[:, 0].tolist() == [*left, *(number + 4 for number in left)]


@pytest.mark.parametrize("grid", [(4, 4), (8, 4), (12, 8)])
def test_the_model_unfolds_the_rows_into_maps(grid):
    """A number for each patch and for each of its cells comes back at its place on both maps."""
    height, width = grid
    found = np.zeros((height, width, WIDTH), np.float32)
    coarse = np.arange(height * width).reshape(height, width)
    fine = np.arange(4 * height * width).reshape(2 * height, 2 * width)
    for cell in range(4):
        found[..., cell * (FINE + CELL_EXTRA) + 3] = fine[cell // 2 :: 2, cell % 2 :: 2]
    found[..., 4 * (FINE + CELL_EXTRA) + 5] = coarse
    maps = unfold(torch.from_numpy(to_rows(found))[None], grid)
    np.testing.assert_array_equal(maps[0][0, 3].numpy(), fine)
    np.testing.assert_array_equal(maps[1][0, 5].numpy(), coarse)
    for each, number in zip(maps, (3, 5), strict=True):
        assert each[0].sum() == each[0, number].sum()


def test_a_target_s_rows_are_its_pair_features_and_a_reference_s_are_zero():
    reference, target = make_image(128, 128), make_image(64, 256, seed=1)
    batch = processed(processor(), reference, target)
    assert batch["image_grid_thw"].tolist() == [list(REFERENCE_GRID), [1, 4, 16]]
    count = int(np.prod(REFERENCE_GRID))
    assert batch["pixel_values"].shape == (count + 4 * 16, WIDTH)
    assert not batch["pixel_values"][:count].any()
    own = Backbone()
    expected = to_rows(pair_features(own.patches(target), reference_features(own, reference)))
    np.testing.assert_array_equal(batch["pixel_values"][count:].numpy(), expected)


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        # A square of 128 x 128 pixels, whatever the image's size: 8 x 8 patches of 16.
        ((128, 128), (8, 8)),
        ((50, 50), (8, 8)),
        ((700, 700), (8, 8)),
        # 4 : 1 keeps to 64 x 256; 2 : 1 would be 91 x 181 and is 64 x 128 or 64 x 192, sides being multiples of 64.
        ((100, 400), (4, 16)),
        ((400, 100), (16, 4)),
    ],
)
def test_sides_are_whole_tokens(shape, grid):
    batch = processed(processor(), make_image(90, 90), make_image(*shape, seed=1))
    assert batch["image_grid_thw"][1].tolist() == [1, *grid]
    tokens = batch["image_grid_thw"].prod(dim=1) // MERGE**2
    assert tokens.tolist() == [4, grid[0] * grid[1] // 16]


def test_several_pairs_stand_one_after_another():
    images = [
        make_image(100, 100),
        make_image(60, 200, seed=1),
        make_image(128, 128, seed=2),
        make_image(128, 128, seed=3),
    ]
    own = processor()
    together = processed(own, *images)
    first, second = (processed(own, *images[start : start + 2]) for start in (0, 2))
    for name in ("pixel_values", "image_grid_thw"):
        assert torch.equal(together[name], torch.cat([first[name], second[name]]))


def test_grey_and_transparent_images_are_converted_to_rgb():
    grey = Image.fromarray(make_image(128, 128)[..., 0])
    own = processor()
    as_colour = own(images=[grey.convert("RGB"), grey.convert("RGB")], return_tensors="pt")
    as_it_is = own(images=[grey, grey.convert("RGBA")], return_tensors="pt")
    assert torch.equal(as_it_is["pixel_values"], as_colour["pixel_values"])


@pytest.mark.parametrize("count", [1, 3])
def test_an_odd_number_of_images_is_refused(count):
    with pytest.raises(ValueError, match=f"{count} images: expected pairs"):
        processed(processor(), *[make_image(64, 64)] * count)


def test_the_cache_gives_the_same_numbers_and_outlives_a_kill(tmp_path):
    pair = make_image(128, 128), make_image(128, 128, seed=1)
    plain = processed(processor(), *pair)["pixel_values"]
    results = []
    for _ in range(2):
        own = processor()  # another process has an empty cache
        own.cache = tmp_path / "evidence" / "deep"
        results.append(processed(own, *pair)["pixel_values"])
        (kept,) = own.cache.glob("*.npy")
        # What a kill leaves behind: half of a file under a name that is never read.
        (own.cache / f"{kept.name}.4711.tmp").write_bytes(kept.read_bytes()[:1000])
    assert torch.equal(*results)
    torch.testing.assert_close(results[0], plain, rtol=2**-10, atol=1e-6)  # half precision has 10 bits
    assert np.load(kept).shape == (8, 8, WIDTH)
    # The file is what is read: one that says otherwise is believed.
    np.save(kept, np.full((8, 8, WIDTH), 3, np.float16))
    own = processor()
    own.cache = kept.parent
    assert processed(own, *pair)["pixel_values"][64:].unique().tolist() == [3.0]


def test_the_cache_key_is_content_and_order(tmp_path):
    own = processor()
    own.cache = tmp_path
    one, other = make_image(128, 128), make_image(128, 128, seed=1)
    for pair in ((one, other), (other, one), (one.copy(), other.copy())):
        processed(own, *pair)
    assert len(list(tmp_path.glob("*.npy"))) == 2


def test_only_the_last_pairs_are_cached():
    own = processor()
    small = EvidenceProcessor(size={"shortest_edge": 64 * 64, "longest_edge": 64 * 64})
    for seed in range(70):
        processed(small, make_image(64, 64, seed=seed), make_image(64, 64, seed=1))
    assert len(small._pairs) == 64
    assert len(small._pair_features._reference_cache) == 8
    assert not own._pairs  # each processor its own


def test_it_is_loaded_as_a_checkpoint_s_own(tmp_path):
    own = processor()
    own.cache = tmp_path / "evidence"
    own.save_pretrained(tmp_path)
    TinyConfig().save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert settings["image_processor_type"] == "EvidenceProcessor"
    assert not {"cache", "_pair_features", "_pairs"} & settings.keys()
    loaded = load_image_processor(str(tmp_path))
    assert isinstance(loaded, EvidenceProcessor)
    assert loaded.cache is None
    pair = make_image(100, 300), make_image(90, 200, seed=1)
    for name, values in processed(own, *pair).items():
        torch.testing.assert_close(processed(loaded, *pair)[name], values, rtol=2**-10, atol=1e-6)
    smaller = load_image_processor(str(tmp_path), min_pixels=64 * 64, max_pixels=64 * 64)
    assert processed(smaller, *pair)["image_grid_thw"][1].prod() == 16
