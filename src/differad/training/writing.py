"""Turns libraries' errors for failed writes into one line. Knows nothing of models or trainers."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from differad.errors import WriteError
from differad.files import write_errors

# Parts of torch's RuntimeError for a failed write: its source location; the reason itself is lost.
_TORCH_WRITES = ("inline_container", "PytorchStreamWriter", "iostream error", "cannot be opened")
_RUST_WRITE = "I/O error:"
_FULL_BELOW = 1 << 20


@contextmanager
def library_writes(folder: Path) -> Iterator[None]:
    """Raise any library's failed write below `folder` as WriteError."""
    try:
        with write_errors(folder):
            yield
    except SafetensorError as error:
        if _RUST_WRITE not in str(error):
            raise
        reason = str(error).rpartition(_RUST_WRITE)[2].partition("(os error")[0]
        raise _unwritable(folder, reason.strip()) from None
    except RuntimeError as error:
        if not any(mark in str(error) for mark in _TORCH_WRITES):
            raise
        raise _unwritable(folder, _torch_reason(folder, error)) from None


def _torch_reason(folder: Path, error: RuntimeError) -> str:
    existing = next((path for path in (folder, *folder.parents) if path.exists()), None)
    if existing is not None and shutil.disk_usage(existing).free < _FULL_BELOW:
        return "No space left on device"
    return f"torch: {str(error).splitlines()[0]}"


def _unwritable(folder: Path, reason: str) -> WriteError:
    return WriteError(f"{folder}: cannot be written ({reason}); make room there, or choose another place")
