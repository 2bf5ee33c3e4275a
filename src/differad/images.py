"""Read and write images: files of any camera or program become (H, W, 3) uint8 RGB arrays.

Orientation is applied, deep samples are scaled to 8 bits, alpha is composited over white, palette, CMYK and grey become RGB.
`image.tif[2]` names the second page of a file. A file that is truncated, empty, no image, too large or holds several images
raises `ImageError`. Knows nothing about pairs or boxes.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from differad import scaling
from differad.decoding import load, load_deep, opened, split_page, to_array, upright
from differad.errors import ImageError, InputError, shortened
from differad.files import make_folder, write_bytes
from differad.headers import BROKEN, ORIENTATION, Header, check_pixels, pixel_limit, unreadable
from differad.memory import is_out_of_memory
from differad.scaling import Decoded

RGB = NDArray[np.uint8]
Samples = NDArray[Any]
# A path, the bytes of an image file (an upload), a PIL image, or an array in the order RGB.
ImageSource = str | Path | bytes | Image.Image | NDArray[np.generic]
_MEMORY_NAME = "image bytes"
_SOFTWARE, _MADE_BY = 0x0131, "differad"  # EXIF's tag for the program that wrote an image


def read_image(source: ImageSource, *, max_pixels: int | None = None) -> RGB:
    """Read a path, the bytes of a file, a PIL image or an array (RGB) into a contiguous (H, W, 3) uint8 RGB array.

    Deeper samples are scaled by the smallest of 8, 10, 12, 14 or 16 bits that holds all but one in a thousand of them, unless
    the file states its depth: cameras store 12-bit data in 16-bit files without stating it. Floats are shares of 1, or levels
    like integers. A contiguous (H, W, 3) uint8 array is returned itself, not copied. `max_pixels`: see `headers.pixel_limit`.
    Raises ImageError.
    """
    return read_images(source, max_pixels=max_pixels)[0]


def read_images(*sources: ImageSource, max_pixels: int | None = None) -> list[RGB]:
    """Read images for a comparison: as `read_image`, but with one scale for all deep ones.

    A dark target beside a bright reference from one camera would otherwise be brightened. Raises ImageError.
    """
    decode = partial(decode_image, max_pixels=max_pixels)
    if len(sources) < 2 or not all(isinstance(source, str | Path) for source in sources):
        return scaling.to_rgb([decode(source) for source in sources])
    # Decoders release the GIL, and decoding files of many megapixels takes most of the time of an answer.
    with ThreadPoolExecutor(len(sources)) as pool:
        return scaling.to_rgb(list(pool.map(decode, sources)))


def decode_image(source: ImageSource, *, max_pixels: int | None = None) -> Decoded:
    """One image's samples in their original depth, for `scaling.to_rgb` of all compared images. Raises ImageError."""
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _from_pil(source, pixel_limit(max_pixels))
    content, name = _file_or_bytes(source)
    with opened(content, name, max_pixels) as (file, header):
        return _from_file(file, header, name)


def decode_images(*files: tuple[bytes, str]) -> list[RGB]:
    """As `read_images`, from the bytes of files, each with its name for errors. Raises ImageError."""
    decoded = []
    for content, name in files:
        with opened(content, name) as (file, header):
            decoded.append(_from_file(file, header, name))
    return scaling.to_rgb(decoded)


def read_reduced(source: str | Path, at_least: int) -> RGB:
    """As `read_image`, but a JPEG is decoded at 1/2, 1/4 or 1/8 of its size if `at_least` pixels a side are left."""
    name = str(source)
    with opened(source, name) as (file, header):
        if header.format != "JPEG":
            return scaling.to_rgb([_from_file(file, header, name)])[0]
        values = to_array(load(file, header, name, at_least=at_least), header.orientation)
        return scaling.to_rgb([Decoded(values, name)])[0]


def read_header(source: str | Path) -> Header:
    """Format, size, orientation, depth, channels and pages of an image file, no pixel decoded. Raises ImageError."""
    with opened(source, str(source)) as (_, header):
        return header


def image_file(source: str | Path) -> Path:
    """The file of a path: `image.tif` for `image.tif[2]`."""
    return split_page(source)[0]


def digest(*images: RGB) -> bytes:
    """BLAKE2b-128 of the images' shapes and pixels."""
    content_hash = hashlib.blake2b(digest_size=16)
    for image in images:
        content_hash.update(str(image.shape).encode())
        content_hash.update(np.ascontiguousarray(image).data)
    return content_hash.digest()


def image_size(source: ImageSource, *, max_pixels: int | None = None) -> tuple[int, int]:
    """(width, height) in pixels of the result of `read_image`, from the header alone. Raises ImageError."""
    if isinstance(source, np.ndarray):
        if source.ndim < 2:
            raise ImageError(f"array of shape {source.shape}: expected (H, W) or (H, W, C)")
        return int(source.shape[1]), int(source.shape[0])
    if isinstance(source, Image.Image):
        image, orientation = _loaded(source, pixel_limit(max_pixels))
        return (image.height, image.width) if orientation >= 5 else image.size
    with opened(*_file_or_bytes(source), max_pixels) as (_, header):
        return header.size


def _file_or_bytes(source: object) -> tuple[str | Path | bytes, str]:
    """The argument for `opened`, and its name in messages. Raises ImageError for any other type, such as None."""
    if isinstance(source, str | Path):
        return source, str(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source), _MEMORY_NAME
    raise ImageError(
        f"{shortened(source)}: is no image; expected a path, the bytes of an image file, a PIL image or an array (RGB)"
    )


def check_ending(path: str | Path) -> None:
    """Raise ImageError if the ending of an output file is that of no image format."""
    ending = Path(path).suffix
    if Image.registered_extensions().get(ending.lower()) not in Image.SAVE:
        raise ImageError(f"{path}: ending {ending!r} names no image format; expected .png or .jpg")


def check_drawn(path: str | Path) -> None:
    """Check that an output file does not exist or was written by `write_drawn`. Raises InputError."""
    path = Path(path)
    if path.exists() and not (path.is_file() and _is_drawn(path)):
        raise InputError(f"{path}: exists, and is no image that differad drew; choose another name or remove it")


def _is_drawn(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.getexif().get(_SOFTWARE) == _MADE_BY
    except BROKEN:
        return False


def write_drawn(path: str | Path, pixels: RGB) -> None:
    """As `write_image`, for an image that differad drew: its EXIF marks it, so that it may be overwritten later.

    Raises InputError if any other file exists at `path`.
    """
    check_drawn(path)
    exif = Image.Exif()
    exif[_SOFTWARE] = _MADE_BY
    _write(Path(path), pixels, exif)


def write_image(path: str | Path, pixels: RGB) -> None:
    """Write (H, W, 3) uint8 RGB atomically in the format of the file's ending.

    Raises ImageError for an ending of no image format, or a format that cannot hold the image, and WriteError.
    """
    _write(Path(path), pixels, None)


def _write(path: Path, pixels: RGB, exif: Image.Exif | None) -> None:
    check_ending(path)
    content = BytesIO()
    arguments = {} if exif is None else {"exif": exif}
    try:
        Image.fromarray(pixels).save(content, Image.registered_extensions()[path.suffix.lower()], **arguments)
    except (OSError, ValueError) as error:  # too large for the format, for instance
        raise ImageError(f"{path}: cannot be encoded ({error}); choose another ending, as .png") from None
    make_folder(path.parent)
    write_bytes(path, content.getvalue())


def _from_file(file: Any, header: Header, name: str) -> Decoded:
    if not header.is_deep:
        image = load(file, header, name)
        return _from_pillow(image, header.orientation, name)
    samples = load_deep(file, header, name)
    alpha = None
    if header.format == "PNG" and header.has_alpha and header.channels == 1:
        alpha = (samples[:, :, 0] != header.key[0]).astype(np.uint8) * 255
    elif header.has_alpha and samples.shape[2] in (2, 4):
        alpha = samples[:, :, -1]
    return Decoded(
        upright(samples[:, :, : 3 if samples.shape[2] >= 3 else 1], header.orientation),
        name,
        header.stated_bits,
        None if alpha is None else upright(alpha, header.orientation),
        header.is_premultiplied,
        header.is_inverted,
    )


def _from_pillow(image: Image.Image, orientation: int, name: str) -> Decoded:
    try:
        if image.mode.startswith(("I", "F")):
            return Decoded(upright(np.asarray(image)[:, :, None], orientation), name)
        return Decoded(to_array(image, orientation), name)
    except BROKEN as error:
        if is_out_of_memory(error):
            raise unreadable(name, error) from None
        raise ImageError(f"{name}: mode {image.mode} cannot be shown as RGB ({error}); export it as RGB") from None


def _from_pil(source: Image.Image, limit: int) -> Decoded:
    image, orientation = _loaded(source, limit)
    return _from_pillow(image, orientation, "image")


def _loaded(image: Image.Image, limit: int) -> tuple[Image.Image, int]:
    """A PIL image with its pixels, and the orientation still to apply: Pillow applies a TIFF's while loading it."""
    check_pixels(*image.size, "image", limit)
    narrowed = [str(tile[3]) for tile in getattr(image, "tile", []) if ";16" in str(tile[3])]
    if narrowed and not image.mode.startswith("I"):
        raise ImageError(
            f"image: Pillow keeps 8 of the 16 bits of its samples ({image.mode}); give the path of the file"
        )
    try:
        image.load()
        orientation = image.getexif().get(ORIENTATION)
    except BROKEN as error:
        raise unreadable("image", error) from None
    return image, orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _from_array(array: Samples) -> Decoded:
    samples = array[:, :, None] if array.ndim == 2 else array
    if samples.ndim != 3 or samples.shape[2] not in (1, 3, 4) or 0 in samples.shape:
        raise ImageError(f"array: shape {array.shape}; expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    if samples.dtype == np.bool_:
        samples = samples.astype(np.uint8) * 255
    if samples.shape[2] < 4:
        return Decoded(samples, "array")
    if samples.dtype != np.uint8:
        raise ImageError(f"array: four channels of type {samples.dtype}; expected uint8 RGBA, or three channels")
    return Decoded(to_array(Image.fromarray(samples, "RGBA"), 1), "array")
