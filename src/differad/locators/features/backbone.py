"""The frozen backbone: from an image to L2-normalised patch features at strides 8 and 16.

Runs on OpenCV, which is always installed, or on ONNX Runtime if that is installed: the same numbers within 1e-4, two to three
times as fast on one core. Knows nothing of references or defects.
"""

import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.errors import InputWarning, MissingExtraError, OptionValueError
from differad.images import RGB
from differad.locators.features.efficientnet import MEAN, MULTIPLE, OUTPUTS, SCALE, to_onnx
from differad.locators.features.weights import BACKBONE, read_safetensors

Features = NDArray[np.float32]
Runtime = Literal["auto", "opencv", "onnxruntime"]
_Forward = Callable[[NDArray[np.float32]], Sequence[Any]]
_NAMES = [name for name, _, _ in OUTPUTS]
# Each patch is averaged with its eight neighbours: PatchCore (Roth et al. 2022) calls it locally aware.
_NEIGHBOURS = 3
# Characters of a failed import's reason that are shown.
_MAX_REASON = 200


@dataclass(frozen=True)
class Backbone:
    """EfficientNet-Lite0 up to stride 16; usable from several threads at once. Raises MissingExtraError, InputError."""

    runtime: Runtime = "auto"

    def __post_init__(self) -> None:
        if self.runtime != "onnxruntime":
            return
        if not _is_installed():
            raise MissingExtraError("runtime=onnxruntime", "fast", "onnxruntime")
        reason = _import_failure()
        if reason is not None:
            expected = f"opencv, as the installed onnxruntime cannot be imported ({reason}); or reinstall it"
            raise OptionValueError("runtime", self.runtime, expected)

    def maps(self, image: RGB) -> list[Features]:
        """Raw outputs, (h, w, 40) at stride 8 and (h, w, 112) at stride 16; sides must be multiples of 16."""
        pixels = ((image.astype(np.float32) - MEAN) / SCALE).transpose(2, 0, 1)[None]
        outputs = self._forward(np.ascontiguousarray(pixels))
        return [np.ascontiguousarray(output[0].transpose(1, 2, 0)) for output in outputs]

    def patches(self, image: RGB) -> list[Features]:
        """Outputs averaged over neighbours and scaled to length 1, (h, w, C) per stride."""
        return [_normalised(_averaged(output)) for output in self.maps(image)]

    def _forward(self, pixels: NDArray[np.float32]) -> Sequence[Any]:
        if self.runtime == "onnxruntime" or (self.runtime == "auto" and _is_usable()):
            return _onnxruntime()(pixels)
        return _opencv()(pixels)


def resize_to_area(image: RGB, side: int) -> RGB:
    """The image resized to about `side` x `side` pixels in area, with sides that are multiples of 16."""
    height, width = image.shape[:2]
    factor = side / (height * width) ** 0.5
    # At least two patches of the coarser stride each way; a thinner image is stretched.
    rows, columns = (max(2, round(length * factor / MULTIPLE)) * MULTIPLE for length in (height, width))
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (columns, rows), interpolation=how), dtype=np.uint8)


@cache
def _model() -> bytes:
    return to_onnx(read_safetensors(BACKBONE))


# An OpenCV network holds the input of one call, so each thread has its own network of 3 MB.
_per_thread = threading.local()


def _opencv() -> _Forward:
    if not hasattr(_per_thread, "net"):
        _per_thread.net = cv2.dnn.readNetFromONNX(np.frombuffer(_model(), np.uint8))

    def forward(pixels: NDArray[np.float32]) -> Sequence[Any]:
        _per_thread.net.setInput(pixels)
        return list(_per_thread.net.forward(_NAMES))

    return forward


def _is_installed() -> bool:
    return find_spec("onnxruntime") is not None


_import_lock = threading.Lock()


def _is_usable() -> bool:
    """Whether ONNX Runtime is installed and can be imported; warns once if the import fails."""
    with _import_lock:
        return _is_installed() and _import_failure_warned_once() is None


@cache
def _import_failure_warned_once() -> str | None:
    reason = _import_failure()
    if reason is not None:
        warnings.warn(
            f"onnxruntime is installed and cannot be imported ({reason}); OpenCV gives the same numbers, slower. Reinstall "
            "it, or choose runtime=opencv",
            InputWarning,
            stacklevel=2,
        )
    return reason


@cache
def _import_failure() -> str | None:
    """Why importing ONNX Runtime fails, in one line; None if it works."""
    try:
        module = import_module("onnxruntime")
    except (ImportError, OSError) as error:
        # Built for another NumPy, Python or processor, or one of its libraries is missing.
        return " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__
    # A leftover folder imports as an empty package.
    return None if hasattr(module, "InferenceSession") else "it holds no InferenceSession"


@cache
def _onnxruntime() -> _Forward:
    onnxruntime: Any = import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    # Images run in parallel threads; a session with several threads of its own would compete with them.
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(_model(), options, providers=["CPUExecutionProvider"])
    return lambda pixels: list(session.run(_NAMES, {"pixels": pixels}))


def _averaged(features: Features) -> Features:
    # OpenCV filters up to four channels in one pass.
    blurred = [
        cv2.blur(np.ascontiguousarray(features[..., at : at + 4]), (_NEIGHBOURS, _NEIGHBOURS))
        for at in range(0, features.shape[-1], 4)
    ]
    return np.concatenate(blurred, axis=-1)


def _normalised(features: Features) -> Features:
    length = np.linalg.norm(features, axis=-1, keepdims=True)
    return np.asarray(features / np.maximum(length, 1e-6), dtype=np.float32)
