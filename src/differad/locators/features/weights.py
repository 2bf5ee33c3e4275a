"""Read a safetensors file with NumPy alone, so that a plain installation needs no further package.

Format: https://github.com/huggingface/safetensors#format (8 bytes of header length, a JSON header, then raw tensors).
"""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from differad.errors import InputError

# The folder that is shipped inside the package.
BACKBONE = Path(__file__).parents[2] / "weights" / "efficientnet_lite0" / "model.safetensors"
_LENGTH_BYTES = 8


def read_safetensors(path: Path) -> dict[str, NDArray[np.float32]]:
    """Every float32 tensor of a file by name. Raises InputError for a file that is absent, cut short or of another type."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); install differad again") from None
    start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    try:
        header = json.loads(content[_LENGTH_BYTES:start])
    except ValueError:
        raise InputError(f"{path}: no safetensors header; install differad again") from None
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (start + offset for offset in entry["data_offsets"])
        if entry["dtype"] != "F32" or end > len(content):
            raise InputError(f"{path}: tensor {name} is {entry['dtype']} or cut short; expected whole F32 tensors")
        tensors[name] = np.frombuffer(content[begin:end], "<f4").reshape(entry["shape"])
    return tensors
