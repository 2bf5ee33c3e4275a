"""The embedded policy: a small Qwen2-VL whose vision tower compares two images.

`ChangeEncoder` takes the place of Qwen2-VL's `visual`: pair features (evidence.py) in, one token per MERGE x MERGE patches out.
A small convolutional network turns them into a change map of the target; its features become the target's tokens, and the boxes
around the map's peaks become the reference's tokens. The language model, generate and TRL are stock.

Sizes come from Qwen2-VL's own configuration: `vision_config.embed_dim` channels, `vision_config.depth` residual blocks.
Knows nothing of images, text formats or training. network.py computes the same without torch.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from differad.answers.formats import TINY_MODEL_TYPE
from differad.locators.tiny.evidence import CELL_EXTRA, COARSE, DISTANCES, FINE
from differad.locators.tiny.network import GROUPS, LEAST_SPREAD, OCTAVES, PROPOSAL
from differad.locators.tiny.processor import MERGE, EvidenceProcessor
from differad.locators.tiny.proposals import PROPOSALS, proposals

# Cells of stride 8 along a token's side.
CELLS = 2 * MERGE
# The modules that compute the change map; the others turn map and features into tokens.
COMPARISON = ("fine", "coarse", "enter", "down", "blocks", "context", "leave", "changed")
# Weight of the dense loss beside the text loss: box and text depend on the change map.
DENSE_WEIGHT = 5.0
# A cell of 8 x 8 pixels counts as changed if an eighth of it has changed.
_FULL_AT = 8.0


class TinyConfig(Qwen2VLConfig):
    """Qwen2-VL's configuration under a name of its own, so that the right classes are loaded."""

    model_type = TINY_MODEL_TYPE
    # TRL looks here for the Auto class of an architecture that is none of transformers' own; no code is loaded by it.
    auto_map = {"AutoModelForImageTextToText": "differad.locators.tiny.model.TinyPolicy"}  # noqa: RUF012 - as read there


class _Residual(nn.Module):
    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(nn.functional.gelu(self.norm(self.first(x))))


class ChangeEncoder(nn.Module):
    """From pair features (P, WIDTH) to tokens (T, hidden size); `logits` holds the maps of the last call."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        channels, hidden = config.embed_dim, config.hidden_size
        wide = 2 * channels
        self.spatial_merge_size = config.spatial_merge_size
        self.fine = nn.Conv2d(FINE + CELL_EXTRA + DISTANCES, channels, 1)
        self.coarse = nn.Conv2d(COARSE + CELL_EXTRA + DISTANCES, channels, 1)
        self.enter = nn.Conv2d(channels, channels, 3, padding=1)
        self.down = nn.Conv2d(channels, wide, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(_Residual(wide, 1 + block % 2) for block in range(config.depth))
        self.context = nn.Linear(2 * wide, wide)
        self.leave = nn.Conv2d(channels + wide, channels, 3, padding=1)
        self.changed = nn.Conv2d(channels, 1, 1)
        self.merge = nn.Conv2d(channels + 1, hidden, CELLS, stride=CELLS)
        self.place = nn.Linear(4 * OCTAVES, hidden)
        self.propose = nn.Linear(8 * OCTAVES + PROPOSAL, hidden)
        # Residual layers add to the tokens: tokens of another scale than the text's would dominate the sum.
        self.merge_norm, self.place_norm, self.propose_norm = (nn.LayerNorm(hidden) for _ in range(3))
        self.rank = nn.Embedding(PROPOSALS, hidden)
        self.logits: list[Tensor] = []

    @property
    def dtype(self) -> torch.dtype:
        """The type to which pair features are cast."""
        return self.changed.weight.dtype

    def forward(self, hidden_states: Tensor, grid_thw: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Tokens as `pooler_output`; images come in pairs, reference first."""
        targets = torch.split(hidden_states, grid_thw.prod(dim=1).tolist())[1::2]
        grids = [(height, width) for _, height, width in grid_thw[1::2].tolist()]
        tokens: list[Tensor] = [hidden_states] * len(targets)
        self.logits = [hidden_states] * len(targets)
        # Convolutions run once for all images of one shape.
        for grid in sorted(set(grids)):
            members = [number for number, other in enumerate(grids) if other == grid]
            maps, grid_tokens = self._compare(torch.stack([targets[number] for number in members]), grid)
            for number, logits, rows in zip(members, maps, grid_tokens, strict=True):
                self.logits[number], tokens[number] = logits, rows
        joined = torch.cat(tokens)
        return BaseModelOutputWithPooling(last_hidden_state=joined, pooler_output=joined)

    def _compare(self, rows: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Maps (N, 2h, 2w) and tokens (N, PROPOSALS + hw / MERGE^2, hidden) of N targets of (h, w) patches."""
        fine, coarse = unfold(rows, grid)
        merged_strides = self.fine(_append_standardised(fine, FINE)) + nn.functional.interpolate(
            self.coarse(_append_standardised(coarse, COARSE)), scale_factor=2.0, mode="bilinear"
        )
        near = nn.functional.gelu(self.enter(nn.functional.gelu(merged_strides)))
        far = self.down(near)
        for block in self.blocks:
            far = block(far)
        whole = self.context(torch.cat([far.mean(dim=(2, 3)), far.amax(dim=(2, 3))], dim=1))
        far = nn.functional.gelu(far + whole[..., None, None])
        far = nn.functional.interpolate(far, scale_factor=2.0, mode="bilinear")
        features = nn.functional.gelu(self.leave(torch.cat([near, far], dim=1)))
        logits = self.changed(features)
        merged = self.merge(torch.cat([features, logits], dim=1))
        target = self.merge_norm(merged.flatten(2).transpose(1, 2)) + self.placed(merged)
        maps = logits[:, 0].detach().float().cpu().numpy()
        boxes = torch.from_numpy(np.stack([proposals(each) for each in maps])).to(merged)
        return logits[:, 0], torch.cat([self.proposed(boxes), target], dim=1)

    def proposed(self, boxes: Tensor) -> Tensor:
        """Tokens (N, PROPOSALS, hidden) of proposals (N, PROPOSALS, 6)."""
        encoded = torch.cat([fourier_features(boxes[..., :4]).flatten(2), boxes], dim=-1)
        return self.propose_norm(self.propose(encoded)) + self.rank.weight

    def placed(self, like: Tensor) -> Tensor:
        """Position embeddings (hw, hidden) of the tokens of a map (N, C, h, w)."""
        return self.place_norm(self.place(fourier_features(_token_centers(like)).flatten(1)))


class TinyPolicy(Qwen2VLForConditionalGeneration):
    """Qwen2-VL with a `ChangeEncoder` as its vision tower."""

    config_class = TinyConfig

    def __init__(self, config: TinyConfig) -> None:
        super().__init__(config)
        self.model.visual = ChangeEncoder(config.vision_config)
        self.model.get_rope_index = partial(_rope_index_on_cpu, self.model)
        self.post_init()


def _rope_index_on_cpu(model: Any, *arguments: Any, **named: Any) -> tuple[Tensor, Tensor]:
    """Qwen2-VL's rope index, computed on the CPU: its dozens of tiny steps per row would each wait for a GPU."""

    def to_cpu(value: Any) -> Any:
        return value.cpu() if isinstance(value, Tensor) else value

    device = next(value.device for value in (*arguments, *named.values()) if isinstance(value, Tensor))
    moved = {name: to_cpu(value) for name, value in named.items()}
    positions, deltas = Qwen2VLModel.get_rope_index(model, *map(to_cpu, arguments), **moved)
    return positions.to(device), deltas.to(device)


def dense_loss(logits: Sequence[Tensor], coverage: Tensor, grid_thw: Tensor) -> Tensor:
    """Mean binary cross-entropy, plus a fifth of the Dice loss if anything changed (Milletari et al. 2016)."""
    shares = torch.split(coverage, grid_thw.prod(dim=1).tolist())[1::2]
    grids = [(height, width) for _, height, width in grid_thw[1::2].tolist()]
    losses = []
    for grid in sorted(set(grids)):
        members = [number for number, other in enumerate(grids) if other == grid]
        predicted = torch.stack([logits[number] for number in members])
        parts = torch.stack([shares[number] for number in members])
        truth = (_FULL_AT * _cells(parts[..., None], grid)[:, 0]).clamp(max=1.0).to(predicted.dtype)
        loss = nn.functional.binary_cross_entropy_with_logits(predicted, truth, reduction="none").mean(dim=(1, 2))
        probability, marked = predicted.sigmoid(), truth.sum(dim=(1, 2))
        overlap = (2 * (probability * truth).sum(dim=(1, 2)) + 1) / (probability.sum(dim=(1, 2)) + marked + 1)
        losses.append(loss + torch.where(marked > 0, 0.2 * (1 - overlap), 0.0))
    return torch.cat(losses).mean()


def unfold(rows: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Rows (N, hw, WIDTH) as maps (N, C, 2h, 2w) of stride 8 and (N, C, h, w) of stride 16."""
    count = 4 * (FINE + CELL_EXTRA)
    fine = _cells(rows[..., :count].unflatten(-1, (4, FINE + CELL_EXTRA)), grid)
    coarse = _patches(rows[..., count:], grid)
    return fine, coarse.permute(0, 3, 1, 2)


def _patches(rows: Tensor, grid: tuple[int, int]) -> Tensor:
    """(N, hw, ...) in blocks of MERGE x MERGE as (N, h, w, ...)."""
    height, width = grid
    blocks = rows.unflatten(1, (height // MERGE, width // MERGE, MERGE, MERGE))
    return blocks.transpose(2, 3).flatten(1, 2).flatten(2, 3)


def _cells(rows: Tensor, grid: tuple[int, int]) -> Tensor:
    """(N, hw, 4, C) as (N, C, 2h, 2w): the four cells of each patch in their places."""
    maps = _patches(rows, grid).unflatten(3, (2, 2))
    return maps.permute(0, 5, 1, 3, 2, 4).flatten(2, 3).flatten(3, 4)


def _append_standardised(cells: Tensor, channels: int) -> Tensor:
    """Append the distance channels standardised per image: (N, C + DISTANCES, h, w)."""
    distances = cells[:, channels : channels + DISTANCES]
    mean = distances.mean(dim=(2, 3), keepdim=True)
    spread = distances.std(dim=(2, 3), keepdim=True)
    return torch.cat([cells, (distances - mean) / (spread + LEAST_SPREAD) / 4], dim=1)


def fourier_features(values: Tensor) -> Tensor:
    """Fourier features (..., 2 * OCTAVES) of values in [0, 1]: similar for near values, different for far ones."""
    angles = values[..., None] * torch.pi * 2.0 ** torch.arange(OCTAVES, device=values.device, dtype=values.dtype)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _token_centers(like: Tensor) -> Tensor:
    """Centres (hw, 2) of the tokens of a map (N, C, h, w), x then y, as shares."""
    height, width = like.shape[2:]
    y = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) / height
    x = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) / width
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=1)


def register() -> None:
    """Register the policy with transformers' Auto classes; may be called again."""
    AutoConfig.register(TINY_MODEL_TYPE, TinyConfig, exist_ok=True)
    AutoModelForImageTextToText.register(TinyConfig, TinyPolicy, exist_ok=True)
    AutoImageProcessor.register(TinyConfig, slow_image_processor_class=EvidenceProcessor, exist_ok=True)


register()
