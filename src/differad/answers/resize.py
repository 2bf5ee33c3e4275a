"""The resize rule of a Qwen-VL image processor, from the checkpoint's own settings.

Families that answer in resized pixels need it to convert back to original pixels. This module has no model's constants.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from differad.errors import ImageError, OptionError

# Qwen2-VL's processor refuses longer shapes (transformers, `smart_resize` of image_processing_qwen2_vl).
LARGEST_ASPECT = 200


@dataclass(frozen=True)
class ResizeRule:
    """Sides become multiples of `factor` (patch size x merge size), with a product in [min_pixels, max_pixels].

    An image with a side under `least_side` pixels is refused; the default is `factor`, as published.
    """

    factor: int
    min_pixels: int
    max_pixels: int
    least_side: int | None = None

    def __post_init__(self) -> None:
        if not (self.factor >= 1 and 1 <= self.min_pixels <= self.max_pixels):
            raise OptionError(
                f"resize rule with factor {self.factor}, {self.min_pixels} to {self.max_pixels} pixels; "
                "expected factor >= 1 and min_pixels <= max_pixels"
            )

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "ResizeRule":
        """The rule in the settings of an image processor, a `preprocessor_config.json` or its `to_dict()`.

        Older files have min_pixels and max_pixels, later ones size.shortest_edge and size.longest_edge, which are areas in
        pixels too. Raises OptionError naming what is missing.
        """
        size = settings.get("size") or {}
        values = {
            "patch_size": settings.get("patch_size"),
            "merge_size": settings.get("merge_size"),
            "min_pixels": _first(settings.get("min_pixels"), size.get("min_pixels"), size.get("shortest_edge")),
            "max_pixels": _first(settings.get("max_pixels"), size.get("max_pixels"), size.get("longest_edge")),
        }
        missing = [name for name, value in values.items() if not isinstance(value, int)]
        if missing:
            raise OptionError(
                f"image processor settings without {', '.join(missing)}; expected those of a Qwen-VL checkpoint"
            )
        factor, least_side = values["patch_size"] * values["merge_size"], settings.get("least_side")
        return cls(factor, values["min_pixels"], values["max_pixels"], least_side)

    @classmethod
    def from_folder(cls, folder: str | Path) -> "ResizeRule":
        """The rule of a checkpoint folder, from its preprocessor_config.json or processor_config.json. Raises OptionError."""
        for name, key in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
            path = Path(folder) / name
            if not path.is_file():
                continue
            try:
                settings = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise OptionError(f"{path}: cannot be read as JSON ({error}); copy it from the checkpoint") from None
            settings = settings.get(key) if key and isinstance(settings, dict) else settings
            if isinstance(settings, dict):
                return cls.from_settings(settings)
        raise OptionError(
            f"{folder}: no preprocessor_config.json; expected a checkpoint's folder or a copy of that file"
        )

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of an image after the processor's resize. Raises ImageError for a shape that it refuses."""
        least = self.factor if self.least_side is None else self.least_side
        if min(width, height) < least:
            raise ImageError(f"image of {width}x{height} pixels: a side under {least}; enlarge or pad it first")
        if max(width, height) > LARGEST_ASPECT * min(width, height):
            raise ImageError(f"image of {width}x{height} pixels: longer than {LARGEST_ASPECT}:1; cut it into tiles")
        columns, rows = (max(1, round(side / self.factor)) for side in (width, height))
        area = columns * rows * self.factor**2
        if area > self.max_pixels:
            shrink = math.sqrt(width * height / self.max_pixels)
            columns, rows = (max(1, math.floor(side / shrink / self.factor)) for side in (width, height))
        elif area < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (width * height))
            columns, rows = (math.ceil(side * grow / self.factor) for side in (width, height))
        return columns * self.factor, rows * self.factor


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
