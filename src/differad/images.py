"""Pictures in, (H, W, 3) uint8 RGB arrays out, whatever a camera or an export wrote.

EXIF rotation is applied, 16-bit data is scaled to 8 bits, alpha is laid over white, palette, CMYK and grey become RGB.
A file that is truncated, empty, no image or absurdly large raises `ImageError`. Knows nothing about pairs or boxes.
"""

from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from differad.errors import ImageError

RGB = NDArray[np.uint8]
ImageSource = str | Path | Image.Image | NDArray[np.generic]

# 200 megapixels: more than any area-scan camera delivers, less than what exhausts a small machine's memory.
MAX_PIXELS = 200_000_000
_ORIENTATION = 0x0112
_TRANSPOSED = frozenset({5, 6, 7, 8})
_BIT_DEPTHS = (8, 10, 12, 14, 16)


def read_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> RGB:
    """Read a path, a PIL image or an array into a contiguous (H, W, 3) uint8 RGB array.

    Samples deeper than 8 bits are scaled by the smallest of 10, 12, 14 or 16 bits that holds the brightest one: cameras
    store 12-bit data in 16-bit files without saying so. Raises ImageError.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, "array")
    if isinstance(source, Image.Image):
        return _from_pil(source, "image", max_pixels)
    path = Path(source)
    with _open(path) as image:
        return _from_pil(image, str(path), max_pixels)


def image_size(source: ImageSource) -> tuple[int, int]:
    """(width, height) in pixels with the EXIF orientation applied, from the header alone. Raises ImageError."""
    if isinstance(source, np.ndarray):
        if source.ndim < 2:
            raise ImageError(f"array of shape {source.shape}: expected (H, W) or (H, W, C)")
        return int(source.shape[1]), int(source.shape[0])
    if isinstance(source, Image.Image):
        return _oriented_size(source)
    with _open(Path(source)) as image:
        return _oriented_size(image)


def write_image(path: str | Path, pixels: RGB) -> None:
    """Write (H, W, 3) uint8 RGB in the format that the file's ending names. Raises ImageError."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    except ValueError:
        raise ImageError(f"{path}: ending {path.suffix!r} names no image format; expected .png or .jpg") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be written ({error.strerror or error}); choose another place") from None


def _open(path: Path) -> Image.Image:
    try:
        if path.stat().st_size == 0:
            raise ImageError(f"{path}: empty file; expected an image")
        return Image.open(path)
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file; expected an image") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path}: not an image that can be read; expected PNG, JPEG, TIFF, BMP or WebP") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: {error}; cut the picture into tiles or shrink it first") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageError(f"{path}: cannot be opened ({error}); expected an image") from None


def _oriented_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    return (height, width) if image.getexif().get(_ORIENTATION) in _TRANSPOSED else (width, height)


def _from_pil(image: Image.Image, name: str, max_pixels: int) -> RGB:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {width}x{height} pixels, more than {max_pixels:,}; cut the picture into tiles or shrink it first"
        )
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
    # Pillow's decoders raise whatever their format's parser does on broken bytes.
    except (OSError, ValueError, SyntaxError, IndexError, EOFError, OverflowError, MemoryError) as error:
        raise ImageError(f"{name}: broken or truncated image ({error}); export it again") from None
    return _to_rgb(upright, name)


def _to_rgb(image: Image.Image, name: str) -> RGB:
    if image.mode.startswith(("I", "F")):
        return _from_array(np.asarray(image), name)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.ascontiguousarray(image.convert("RGB"), dtype=np.uint8)


def _from_array(array: NDArray[np.generic], name: str) -> RGB:
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise ImageError(f"{name}: shape {array.shape}; expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    samples = _to_8_bits(array, name)
    if samples.shape[2] == 4:
        return _to_rgb(Image.fromarray(samples, "RGBA"), name)
    return np.ascontiguousarray(np.broadcast_to(samples, (*samples.shape[:2], 3)))


def _to_8_bits(array: NDArray[np.generic], name: str) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return cast(NDArray[np.uint8], array)
    if array.dtype.kind not in "iuf":
        raise ImageError(f"{name}: samples of type {array.dtype}; expected integers or floats")
    values = array.astype(np.float32)
    if not np.isfinite(values).all() or values.min() < 0:
        raise ImageError(f"{name}: samples below 0 or not finite; expected light intensities")
    brightest = float(values.max())
    if array.dtype.kind == "f" and brightest <= 1.0:
        return cast(NDArray[np.uint8], np.rint(values * 255.0).astype(np.uint8))
    depth = next((bits for bits in _BIT_DEPTHS if brightest < 2**bits), None)
    if depth is None:
        raise ImageError(f"{name}: sample {brightest:g} is deeper than 16 bits; export it with 8 or 16 bits")
    return cast(NDArray[np.uint8], np.floor(values / 2.0 ** (depth - 8)).astype(np.uint8))
