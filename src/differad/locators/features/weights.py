"""Read a safetensors file with NumPy alone, so that a plain installation needs no further package.

Half precision becomes float32.

Format: https://github.com/huggingface/safetensors#format (8 bytes of header length, a JSON header, then raw tensors).
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from differad.errors import InputError, shortened

# Shipped inside the package.
BACKBONE = Path(__file__).parents[2] / "weights" / "efficientnet_lite0" / "model.safetensors"
_LENGTH_BYTES = 8
_REINSTALL = "install differad again"


def read_safetensors(path: Path, remedy: str = _REINSTALL) -> dict[str, NDArray[np.float32]]:
    """Every tensor of a file by name, as float32. Raises InputError, ending with `remedy`, for an unreadable one."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    try:
        header = dict(json.loads(content[_LENGTH_BYTES:start]))
    except (ValueError, TypeError):
        raise InputError(f"{path}: no safetensors header; {remedy}") from None
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        try:
            begin, end = (start + offset for offset in entry["data_offsets"])
            tensors[name] = _READERS[entry["dtype"]](content[begin:end]).reshape(entry["shape"])
        except (KeyError, TypeError, ValueError):
            kind = entry.get("dtype") if isinstance(entry, dict) else shortened(entry)
            raise InputError(
                f"{path}: tensor {name} is {kind} or cut short; expected whole tensors of F32, F16 or BF16; {remedy}"
            ) from None
    return tensors


def _bfloat16(content: bytes) -> NDArray[np.float32]:
    """bfloat16 numbers: the upper halves of float32 numbers."""
    return (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32)


_READERS: dict[str, Callable[[bytes], NDArray[np.float32]]] = {
    "F32": lambda content: np.frombuffer(content, "<f4"),
    "F16": lambda content: np.frombuffer(content, "<f2").astype(np.float32),
    "BF16": _bfloat16,
}
