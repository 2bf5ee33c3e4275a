"""What libraries raise where memory does not suffice, which says nothing against an image: it may be read another time."""

import sys

REMEDY = "free some, use fewer workers (-o workers=1), or a smaller image"
# What the operating system's loader says, in an ImportError, where a library finds no room.
_LOADING = ("failed to map segment", "cannot allocate memory", "cannot create shared object descriptor")
# RuntimeErrors of torch and ONNX Runtime, and OSErrors of Pillow and the operating system, by what they say.
_SAYINGS = ("out of memory", "allocate memory", "failed to allocate", "bad allocation", "bad_alloc", "start new thread")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice."""
    if isinstance(error, MemoryError):
        return True
    cv2 = sys.modules.get("cv2")  # not loaded here: lack of memory may keep it from being loaded
    if cv2 is not None and hasattr(cv2, "error") and isinstance(error, cv2.error):
        return bool(error.code == cv2.Error.StsNoMem)
    if isinstance(error, ImportError):
        return any(words in str(error).lower() for words in _LOADING)
    if isinstance(error, SystemError):
        # C code that could not even make its MemoryError.
        return any(words in str(error) for words in ("without exception set", "without setting an exception"))
    return isinstance(error, OSError | RuntimeError) and any(words in str(error).lower() for words in _SAYINGS)
