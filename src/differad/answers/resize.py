"""What a Qwen-VL image processor makes of a picture's size: the rule, with the checkpoint's own numbers.

Models that speak pixels speak pixels of the picture *after* this resize. The numbers come from the settings of the
checkpoint's image processor, never from constants here. Knows nothing of pixels themselves.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from differad.errors import ImageError, OptionError

MAX_ASPECT_RATIO = 200
_SETTINGS_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class ResizeRule:
    """Sides to multiples of `factor` pixels, their product within [min_pixels, max_pixels], by one common scale."""

    factor: int
    min_pixels: int
    max_pixels: int

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "ResizeRule":
        """The rule in the settings of an image processor (preprocessor_config.json, or its attributes).

        Reads patch_size, merge_size and min_pixels/max_pixels, or size.shortest_edge/longest_edge, as transformers 5
        writes them: these hold numbers of pixels too. Raises OptionError naming what is missing.
        """
        nested = settings.get("image_processor")
        if isinstance(nested, Mapping):
            settings = nested
        size = settings.get("size") or {}
        return cls(
            factor=_whole(settings, "patch_size") * _whole(settings, "merge_size"),
            min_pixels=_pixels(settings, "min_pixels", size, "shortest_edge"),
            max_pixels=_pixels(settings, "max_pixels", size, "longest_edge"),
        )

    @classmethod
    def from_folder(cls, path: str | Path) -> "ResizeRule":
        """The rule of a checkpoint's folder. Raises OptionError where its settings cannot be read."""
        for name in _SETTINGS_FILES:
            file = Path(path) / name
            if file.is_file():
                try:
                    settings = json.loads(file.read_text(encoding="utf-8"))
                except (OSError, ValueError) as error:
                    raise OptionError(
                        f"{file}: cannot be read ({error}); expected the image processor's JSON"
                    ) from None
                if not isinstance(settings, dict):
                    raise OptionError(f"{file}: holds no JSON object; expected the image processor's settings")
                return cls.from_settings(settings)
        raise OptionError(f"{path}: none of {', '.join(_SETTINGS_FILES)}; expected the checkpoint's image processor")

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) after the resize. Raises ImageError for a side under `factor` or an aspect ratio over 200.

        Source of the rule: `smart_resize` of Qwen2-VL (arXiv 2409.12191, section 2.1, and its image processor).
        """
        self._check(width, height)
        new_width, new_height = self._multiple(width, round), self._multiple(height, round)
        if new_width * new_height > self.max_pixels:
            shrink = math.sqrt(width * height / self.max_pixels)
            new_width = max(self.factor, self._multiple(width / shrink, math.floor))
            new_height = max(self.factor, self._multiple(height / shrink, math.floor))
        elif new_width * new_height < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (width * height))
            new_width, new_height = self._multiple(width * grow, math.ceil), self._multiple(height * grow, math.ceil)
        return new_width, new_height

    def _multiple(self, side: float, to_whole: Any) -> int:
        return int(to_whole(side / self.factor)) * self.factor

    def _check(self, width: int, height: int) -> None:
        if min(width, height) < self.factor:
            raise ImageError(f"picture of {width}x{height}: a side is under {self.factor} pixels; enlarge it first")
        if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
            raise ImageError(
                f"picture of {width}x{height}: one side is over {MAX_ASPECT_RATIO} times the other; cut it into tiles"
            )


def _pixels(settings: Mapping[str, Any], key: str, size: Any, edge: str) -> int:
    if settings.get(key) is not None:
        return _whole(settings, key)
    value = size.get(edge) if isinstance(size, Mapping) else getattr(size, edge, None)
    return _whole({f"{key} (or size.{edge})": value}, f"{key} (or size.{edge})")


def _whole(settings: Mapping[str, Any], key: str) -> int:
    value = settings.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 1 or value != int(value):
        raise OptionError(f"image processor's {key} is {value!r}: expected a whole number of at least 1")
    return int(value)
