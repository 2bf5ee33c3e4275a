"""Split patches that a processor packs end to end over all prompts into one row per prompt, and pack them again.

MiniCPM-V's processor gives one strip of patches (1, 3, P, W) and the size of each slice (S, 2) in patches. A trainer that splits
a batch into rows cannot tell whose patches they are, unless every prompt has its own row. The model reads strips.
"""

from typing import Any

import torch
from torch import Tensor

STRIP, SIZES = "pixel_values", "target_sizes"
# An input name that TRL splits row by row beside the pixels.
ROW_SIZES = "pixel_attention_mask"


def is_packed(image_processor: Any) -> bool:
    """Whether an image processor packs the patches of all prompts end to end."""
    return SIZES in image_processor.model_input_names


def into_rows(strips: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Pixels (B, 1, 3, P, W) and sizes (B, S, 2), zero behind the end, of each prompt's strip (1, 3, P, w) and sizes (s, 2)."""
    pixels = [strip[0].movedim(-1, 0) for strip, _ in strips]
    rows = torch.nn.utils.rnn.pad_sequence(pixels, batch_first=True).movedim(1, -1)
    sizes = torch.nn.utils.rnn.pad_sequence([sizes for _, sizes in strips], batch_first=True)
    return {STRIP: rows[:, None], ROW_SIZES: sizes}


def into_strip(inputs: dict[str, Any]) -> dict[str, Any]:
    """A model's inputs with the rows of `into_rows` as one strip; inputs without images, and strips, are returned unchanged."""
    if ROW_SIZES not in inputs:
        return inputs
    rows, row_sizes = inputs[STRIP], inputs[ROW_SIZES]
    sizes = [each[each.any(dim=-1)] for each in row_sizes]
    widths = [int(each.prod(dim=-1).sum()) * rows.shape[-2] for each in sizes]
    strip = torch.cat([row[..., :width] for row, width in zip(rows, widths, strict=True)], dim=-1)
    others = {name: value for name, value in inputs.items() if name != ROW_SIZES}
    return {**others, STRIP: strip, SIZES: torch.cat(sizes)}


def read_rows(model: Any) -> None:
    """Let a model's forward pass take rows as well as strips."""
    model.register_forward_pre_hook(lambda _, args, inputs: (args, into_strip(inputs)), with_kwargs=True)
