"""Masks of all tools: the marked pixels are read from every format, or the file is refused."""

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from differad.data.masks import read_mask
from differad.errors import ImageError

pytestmark = pytest.mark.filterwarnings("ignore::differad.errors.InputWarning")
BOUNDED = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@st.composite
def drawings(draw, least=1, most=24):
    """A drawing (H, W) of which at least one pixel is marked and one is not, and a generator for its values."""
    width, height = draw(st.integers(2, most)), draw(st.integers(least, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    marked = rng.random((height, width)) < draw(st.sampled_from([0.05, 0.3, 0.7]))
    marked[0, :2] = [True, False]
    return marked, rng


def written(folder, image, kind="png", **options):
    path = folder / f"mask.{kind}"
    image.save(path, **options)
    return path


@BOUNDED
@given(
    drawings(),
    st.sampled_from(["u1", "u2", "i2", "u4", "i4", "f4", "f8"]),
    st.sampled_from("<>"),
    st.sampled_from([1, 3]),
)
def test_any_sample_that_is_not_zero_marks(tmp_path, drawing, kind, order, channels):
    marked, rng = drawing
    high = {"u1": 256, "i2": 2**15}.get(kind, 2**16)
    ids = rng.integers(1, high, (*marked.shape, channels)) * marked[..., None]
    if kind[0] == "f":
        ids = ids / high
    ids[..., 1:] *= rng.random((*marked.shape, channels - 1)) < 0.5  # one channel of several is enough
    path = tmp_path / "mask.tif"
    photometric = "rgb" if channels == 3 else "minisblack"
    tifffile.imwrite(
        path, (ids if channels == 3 else ids[..., 0]).astype(kind), byteorder=order, photometric=photometric
    )
    assert np.array_equal(read_mask(path), marked)


@BOUNDED
@given(drawings(), st.sampled_from(["1", "L", "I;16", "RGB"]), st.sampled_from(["png", "tif", "bmp", "webp"]))
def test_lossless_files(tmp_path, drawing, mode, kind):
    marked, rng = drawing
    grey = marked * rng.integers(1, 256, marked.shape)
    image = Image.fromarray(grey.astype(np.uint16 if mode == "I;16" else np.uint8))
    if mode in ("1", "RGB"):
        image = Image.fromarray(marked) if mode == "1" else image.convert("RGB")
    if (mode, kind) in {("I;16", "bmp"), ("I;16", "webp")}:
        return
    path = written(tmp_path, image, kind, **({"lossless": True, "exact": True} if kind == "webp" else {}))
    assert np.array_equal(read_mask(path, marked.shape[::-1]), marked)


@BOUNDED
@given(drawings(), st.sampled_from(["png", "tif"]), st.integers(0, 255), st.integers(0, 2))
def test_palette_masks_go_by_index(tmp_path, drawing, kind, seed, transparent):
    """Colours are random, as they do not matter. A transparent index 3 is background too."""
    marked, rng = drawing
    indices = np.where(marked, rng.integers(1, 3, marked.shape), 0).astype(np.uint8)
    image = Image.fromarray(indices, "L").convert("L")
    image = Image.frombytes("P", image.size, indices.tobytes())
    image.putpalette(np.random.default_rng(seed).integers(0, 256, 768).tolist())
    options = {}
    if kind == "png" and transparent:
        hidden = (~marked) & (rng.random(marked.shape) < 0.5)
        indices[hidden] = 3
        image.frombytes(indices.tobytes())
        options = {"transparency": 3 if transparent == 1 else bytes([255, 255, 255, 0])}
    assert np.array_equal(read_mask(written(tmp_path, image, kind, **options)), marked)


@BOUNDED
@given(drawings(), st.sampled_from(["RGBA", "LA"]), st.booleans(), st.integers(1, 255))
def test_alpha_marks_where_it_differs(tmp_path, drawing, mode, constant, opacity):
    marked, rng = drawing
    colour = rng.integers(0, 256, (*marked.shape, 3 if mode == "RGBA" else 1))
    if constant:  # alpha says nothing, so colour has to
        colour = np.where(marked[..., None], np.maximum(colour, 1), 0)
    alpha = np.where(marked | constant, opacity, 0)
    samples = np.concatenate([colour, alpha[..., None]], axis=2).astype(np.uint8)
    assert np.array_equal(read_mask(written(tmp_path, Image.fromarray(samples, mode))), marked)


@BOUNDED
@given(st.integers(0, 2**32 - 1), st.integers(40, 95), st.sampled_from(["jpg", "webp"]))
def test_lossy_masks_are_thresholded_at_half(tmp_path, seed, quality, kind):
    """A box of whole blocks: compression moves its edges by a pixel at most, and its ringing marks nothing."""
    rng = np.random.default_rng(seed)
    marked = np.zeros((64, 80), bool)
    x, y = rng.integers(4, 40, 2)
    marked[y : y + 16, x : x + 20] = True
    image = Image.fromarray(marked.astype(np.uint8) * 255)
    ys, xs = np.nonzero(read_mask(written(tmp_path, image, kind, quality=quality)))
    found = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    assert np.abs(found - [x, y, x + 20, y + 16]).max() <= 1


@BOUNDED
@given(st.integers(40, 110), st.integers(8, 30), st.sampled_from(["jpg", "webp"]))
def test_grey_areas_of_a_lossy_mask_are_refused(tmp_path, level, side, kind):
    """Ids or soft levels below half would be dropped silently."""
    pixels = np.zeros((64, 64), np.uint8)
    pixels[8 : 8 + side, 8 : 8 + side] = level
    with pytest.raises(ImageError, match="lossy mask with grey areas"):
        read_mask(written(tmp_path, Image.fromarray(pixels), kind, quality=90))


@BOUNDED
@given(drawings(most=9), st.integers(1, 9), st.integers(1, 9))
def test_a_mask_of_another_size_is_refused(tmp_path, drawing, width, height):
    marked, _ = drawing
    path = written(tmp_path, Image.fromarray(marked))
    if (height, width) == marked.shape:
        assert np.array_equal(read_mask(path, (width, height)), marked)
    else:
        with pytest.raises(ImageError, match=rf"mask\.png: mask of .* expected {width}x{height}"):
            read_mask(path, (width, height))
