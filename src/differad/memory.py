"""What libraries raise where memory does not suffice, which says nothing against an image: it may be read another time."""

import cv2

REMEDY = "free some, use fewer workers (-o workers=1), or a smaller image"
# RuntimeErrors of torch and ONNX Runtime, and OSErrors of Pillow and the operating system, by what they say.
_SAYINGS = ("out of memory", "allocate memory", "failed to allocate", "bad allocation", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, cv2.error):
        return bool(error.code == cv2.Error.StsNoMem)
    return isinstance(error, OSError | RuntimeError) and any(words in str(error).lower() for words in _SAYINGS)
