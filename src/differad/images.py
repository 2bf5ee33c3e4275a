"""Pictures in, (H, W, 3) uint8 RGB arrays out, whatever a camera or an export wrote.

EXIF rotation is applied, 16-bit data is scaled to 8 bits, alpha is laid over white, palette, CMYK and grey become RGB.
A file that is truncated, empty, no image or absurdly large raises `ImageError`. Knows nothing about pairs or boxes.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from differad.errors import ImageError

RGB = NDArray[np.uint8]
Samples = NDArray[Any]
ImageSource = str | Path | Image.Image | NDArray[np.generic]

# 200 megapixels: more than any area-scan camera delivers, less than what exhausts a small machine's memory.
MAX_PIXELS = 200_000_000
_ORIENTATION = 0x0112
_TRANSPOSED = frozenset({5, 6, 7, 8})
# Pillow's decoders raise whatever their format's parser does on broken bytes.
_BROKEN = (OSError, ValueError, SyntaxError, IndexError, EOFError, OverflowError, MemoryError)
_BIT_DEPTHS = (8, 10, 12, 14, 16)


def read_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> RGB:
    """Read a path, a PIL image or an array into a contiguous (H, W, 3) uint8 RGB array.

    Samples deeper than 8 bits are scaled by the smallest of 10, 12, 14 or 16 bits that holds the brightest one: cameras
    store 12-bit data in 16-bit files without saying so. Raises ImageError.
    """
    return read_images(source, max_pixels=max_pixels)[0]


def read_images(*sources: ImageSource, max_pixels: int = MAX_PIXELS) -> list[RGB]:
    """Read pictures that are to be compared: as `read_image`, but with one depth for all deep ones.

    A dark target beside a bright reference from one camera would otherwise be brightened. Raises ImageError.
    """
    decoded = [(_decode(source, max_pixels), _name(source)) for source in sources]
    depth = max(_bit_depth(samples, name) for samples, name in decoded)
    return [_to_rgb(samples, depth) for samples, _ in decoded]


def digest(*pictures: RGB) -> bytes:
    """What pictures are known by: their content and shape."""
    found = hashlib.blake2b(digest_size=16)
    for picture in pictures:
        found.update(str(picture.shape).encode())
        found.update(np.ascontiguousarray(picture).data)
    return found.digest()


def image_size(source: ImageSource) -> tuple[int, int]:
    """(width, height) in pixels with the EXIF orientation applied, from the header alone. Raises ImageError."""
    if isinstance(source, np.ndarray):
        if source.ndim < 2:
            raise ImageError(f"array of shape {source.shape}: expected (H, W) or (H, W, C)")
        return int(source.shape[1]), int(source.shape[0])
    if isinstance(source, Image.Image):
        return _oriented_size(source, _name(source))
    with _open(Path(source)) as image:
        if image.format == "PNG" and _is_plain_png(Path(source)):
            return image.size
        return _oriented_size(image, _name(source))


def check_ending(path: str | Path) -> None:
    """Raise ImageError where the ending of a file to be written names no image format."""
    ending = Path(path).suffix
    if Image.registered_extensions().get(ending.lower()) not in Image.SAVE:
        raise ImageError(f"{path}: ending {ending!r} names no image format; expected .png or .jpg")


def write_image(path: str | Path, pixels: RGB) -> None:
    """Write (H, W, 3) uint8 RGB in the format that the file's ending names. Raises ImageError."""
    path = Path(path)
    check_ending(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
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


def _is_plain_png(path: Path) -> bool:
    """Whether a PNG is whole and has no chunk that could hold an orientation, told by its chunks' heads alone.

    Pillow decodes all pixels to find out, for the chunk may stand behind them. Format: PNG specification, section 5.
    """
    end = path.stat().st_size
    with path.open("rb") as file:
        place = 8  # the signature
        while place + 12 <= end:
            file.seek(place)
            length, kind = int.from_bytes(file.read(4), "big"), file.read(4)
            if kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                return False
            place += 12 + length
            if kind == b"IEND":
                return place <= end
    return False


def _oriented_size(image: Image.Image, name: str) -> tuple[int, int]:
    width, height = image.size
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except _BROKEN as error:
        raise ImageError(f"{name}: broken or truncated image ({error}); export it again") from None
    return (height, width) if orientation in _TRANSPOSED else (width, height)


def _name(source: ImageSource) -> str:
    if isinstance(source, np.ndarray):
        return "array"
    return "image" if isinstance(source, Image.Image) else str(source)


def _decode(source: ImageSource, max_pixels: int) -> Samples:
    """Samples of any depth, (H, W, 1) or (H, W, 3), upright and without alpha."""
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _from_pil(source, _name(source), max_pixels)
    with _open(Path(source)) as image:
        return _from_pil(image, _name(source), max_pixels)


def _from_pil(image: Image.Image, name: str, max_pixels: int) -> Samples:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {width}x{height} pixels, more than {max_pixels:,}; cut the picture into tiles or shrink it first"
        )
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
    except _BROKEN as error:
        raise ImageError(f"{name}: broken or truncated image ({error}); export it again") from None
    if upright.mode.startswith(("I", "F")):
        return np.asarray(upright)[:, :, None]
    return _without_alpha(upright)


def _without_alpha(image: Image.Image) -> Samples:
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _from_array(array: Samples) -> Samples:
    samples = array[:, :, None] if array.ndim == 2 else array
    if samples.ndim != 3 or samples.shape[2] not in (1, 3, 4) or 0 in samples.shape:
        raise ImageError(f"array: shape {array.shape}; expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    if samples.dtype == np.bool_:
        samples = samples.astype(np.uint8) * 255
    if samples.shape[2] < 4:
        return samples
    if samples.dtype != np.uint8:
        raise ImageError(f"array: four channels of type {samples.dtype}; expected uint8 RGBA, or three channels")
    return _without_alpha(Image.fromarray(samples, "RGBA"))


def _bit_depth(samples: Samples, name: str) -> int:
    """Bits that the samples use; 8 for uint8 and for floats in [0, 1]."""
    if samples.dtype == np.uint8:
        return 8
    if samples.dtype.kind not in "iuf":
        raise ImageError(f"{name}: samples of type {samples.dtype}; expected integers or floats")
    low, high = float(samples.min()), float(samples.max())
    if not (low >= 0 and np.isfinite(high)):
        raise ImageError(f"{name}: samples below 0 or not finite; expected light intensities")
    for bits in _BIT_DEPTHS:
        if high < 2**bits:
            return bits
    raise ImageError(f"{name}: sample {high:g} is deeper than 16 bits; export it with 8 or 16 bits")


def _to_rgb(samples: Samples, depth: int) -> RGB:
    if samples.dtype != np.uint8:
        values = samples.astype(np.float32)
        is_share = samples.dtype.kind == "f" and float(values.max()) <= 1.0
        values = np.rint(values * 255.0) if is_share else np.floor(values / 2.0 ** (depth - 8))
        samples = values.astype(np.uint8)
    return np.array(np.broadcast_to(samples, (*samples.shape[:2], 3)), dtype=np.uint8, order="C")
