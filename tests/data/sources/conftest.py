"""A miniature data set from a table of paths."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIZE = (12, 8)  # width, height


def image(ending, mark=None, size=SIZE):
    """Bytes of an image; `mark` (x1, y1, x2, y2) is white on black, None a plain grey."""
    pixels = np.full(size[::-1], 120 if mark is None else 0, np.uint8)
    if mark:
        x1, y1, x2, y2 = mark
        pixels[y1:y2, x1:x2] = 255
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, {".jpg": "JPEG", ".bmp": "BMP"}.get(ending.lower(), "PNG"))
    return stream.getvalue()


@pytest.fixture
def plant(tmp_path):
    """Write files below a fresh root: text, bytes, a mark (a mask), or None (an empty file, for an image never opened)."""

    def write(files, root="data"):
        for name, content in files.items():
            path = tmp_path / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, tuple):
                content = image(path.suffix, content)
            elif isinstance(content, str):
                content = content.encode()
            path.write_bytes(content or b"")
        return tmp_path / root

    return write


@pytest.fixture
def facts():
    """Samples as comparable tuples: path below the root, category, is_normal, masks below the root."""

    def tell(samples, root):
        return [
            (str(s.image.relative_to(root)), s.category, s.is_normal, [str(m.relative_to(root)) for m in s.masks])
            for s in samples
        ]

    return tell


@pytest.fixture
def shared():
    """The folder of real pairs, or a skip."""
    path = Path(__file__).parents[4] / "shared" / "data"
    if not path.exists():
        pytest.skip(f"the real pairs are not here: {path}")
    return path
