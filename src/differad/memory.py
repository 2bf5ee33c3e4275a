"""Recognise out-of-memory errors of libraries: they do not mean that an image is broken, so it may be read again."""

import sys

REMEDY = "free some, use fewer workers (-o workers=1), or a smaller image"
# Texts of ImportErrors of the operating system's loader when a library does not fit into memory.
_LOADER_TEXTS = ("failed to map segment", "cannot allocate memory", "cannot create shared object descriptor")
# Texts of RuntimeErrors of torch and ONNX Runtime, and of OSErrors of Pillow and the operating system.
_ERROR_TEXTS = (
    "out of memory",
    "allocate memory",
    "failed to allocate",
    "bad allocation",
    "bad_alloc",
    "start new thread",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory did not suffice."""
    if isinstance(error, MemoryError):
        return True
    cv2 = sys.modules.get("cv2")  # not imported here, since the import itself may fail for lack of memory
    if cv2 is not None and hasattr(cv2, "error") and isinstance(error, cv2.error):
        return bool(error.code == cv2.Error.StsNoMem)
    if isinstance(error, ImportError):
        return any(text in str(error).lower() for text in _LOADER_TEXTS)
    if isinstance(error, SystemError):
        # C code that could not create its MemoryError.
        return any(text in str(error) for text in ("without exception set", "without setting an exception"))
    return isinstance(error, OSError | RuntimeError) and any(text in str(error).lower() for text in _ERROR_TEXTS)
