"""Whether two images can be compared at all: "normal" is never the answer where there was nothing to see.

Cheap looks at the pixels only: a shutter that stayed shut, light that fills every pixel, a frame that broke off. Knows nothing of
any locator.
"""

from dataclasses import replace

import cv2
import numpy as np

from differad.core import Location
from differad.images import RGB
from differad.locators.broken_frames import frame_fault

# Samples this near to either end of the scale hold no structure beyond read noise (of 256 levels) ...
_END_LEVELS = 5
# ... and an image that has nothing else on all but a thousandth of its area shows nothing: a dead pixel is no part.
_END_SHARE = 0.999


def visibility_fault(image: RGB) -> str | None:
    """Why nothing can be seen in an image (H, W, 3); None where something can."""
    # Shape (256, 1) before OpenCV 5, (256,) since.
    counts = np.stack([np.ravel(cv2.calcHist([image], [i], None, [256], [0, 256])) for i in range(3)])
    total = image.shape[0] * image.shape[1]
    if (counts[:, :_END_LEVELS].sum(axis=1) >= _END_SHARE * total).all():
        return "is black"
    if (counts[:, -_END_LEVELS:].sum(axis=1) >= _END_SHARE * total).all():
        return "is white (over-exposed)"
    return None


def why_incomparable(reference: RGB, target: RGB) -> str | None:
    """Why the target (H, W, 3) cannot be compared with the reference (H', W', 3); None where it can be tried."""
    fault = visibility_fault(target)
    if fault is None or visibility_fault(reference) is not None:
        return None
    return f"The target {fault} while the reference is not; take the image again."


def doubt_normal(location: Location, reference: RGB, target: RGB) -> Location:
    """The location, or "not comparable" where it says normal of images in which nothing can be seen, or of a broken frame."""
    if location.anomalous or not location.valid:
        return location
    faults = [(name, visibility_fault(image)) for name, image in (("reference", reference), ("target", target))]
    sentence = " and ".join(f"the {name} {fault}" for name, fault in faults if fault is not None)
    if sentence:
        reason = f"{sentence[0].upper()}{sentence[1:]}: there is nothing to compare; take the image again."
    elif (broken := frame_fault(reference, target)) is not None:
        reason = f"The target {broken}; take the image again."
    else:
        return location
    return replace(location, comparable=False, confidence=None, reasoning=reason)
