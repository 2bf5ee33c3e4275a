"""Baselines without a model: a result that does not beat them is meaningless."""

from collections.abc import Callable

from differad.boxes import Boxes, as_boxes, no_boxes

# Maps a name to the function that predicts boxes for a target of (width, height) pixels.
BASELINES: dict[str, Callable[[int, int], Boxes]] = {
    "whole_image": lambda width, height: as_boxes([0, 0, width, height]),
    "centre_box": lambda width, height: as_boxes([width / 4, height / 4, 3 * width / 4, 3 * height / 4]),
    "always_normal": lambda _width, _height: no_boxes(),
}
