"""Whether two images can be compared at all: an image that shows nothing is never "normal".

Cheap checks of the pixels only: black images, over-exposed images, incomplete frames. Knows nothing of any locator.
"""

from dataclasses import replace

import cv2
import numpy as np

from differad.core import Location
from differad.images import RGB
from differad.locators.broken_frames import frame_fault

# Values this near to either end of the scale (of 256 levels) hold no structure beyond read noise ...
_END_LEVELS = 5
# ... and an image with such values on all but a thousandth of its area shows nothing: a dead pixel is no part.
_END_SHARE = 0.999


def visibility_fault(image: RGB) -> str | None:
    """Why an image (H, W, 3) shows nothing, as a predicate; None if it shows something."""
    # Shape (256, 1) before OpenCV 5, (256,) since.
    counts = np.stack([np.ravel(cv2.calcHist([image], [i], None, [256], [0, 256])) for i in range(3)])
    total = image.shape[0] * image.shape[1]
    if (counts[:, :_END_LEVELS].sum(axis=1) >= _END_SHARE * total).all():
        return "is black"
    if (counts[:, -_END_LEVELS:].sum(axis=1) >= _END_SHARE * total).all():
        return "is white (over-exposed)"
    return None


def why_incomparable(reference: RGB, target: RGB) -> str | None:
    """Why the target (H, W, 3) cannot be compared with the reference (H', W', 3); None if a comparison can be tried."""
    fault = visibility_fault(target)
    if fault is None or visibility_fault(reference) is not None:
        return None
    return f"The target {fault} while the reference is not; take the image again."


def doubt_normal(location: Location, reference: RGB, target: RGB) -> Location:
    """The location, or "not comparable" in place of "normal" if an image shows nothing or the target is an incomplete frame."""
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
