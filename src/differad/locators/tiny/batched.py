"""Pair features of many pairs at once with PyTorch: the computation of evidence.py, on an accelerator.

Both give the same numbers up to float32 rounding; if two reference patches are equally near within that, either may be chosen.
Convolutions and products stay in float32, since a policy must be trained on the features that it sees later. Registration is
not done here: its result, the pixel differences, comes with the pairs.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from differad.images import RGB
from differad.locators.features.efficientnet import MEAN, OUTPUTS, SCALE, Convolution, blocks
from differad.locators.features.nearest import window_mask
from differad.locators.features.weights import BACKBONE, read_safetensors
from differad.locators.tiny.evidence import (
    CELL_EXTRA,
    CHANNEL_GAIN,
    DISTANCES,
    FINE,
    QUANTILES,
    REACHES,
    SELF_REACH,
)

_NAMES = frozenset(name for name, _, _ in OUTPUTS)
Shape = tuple[int, int]
# Pixel differences (h, w) of each stride, from `evidence.cell_maxima`; None if the pair could not be aligned.
CellMaxima = tuple[NDArray[np.float32], NDArray[np.float32]] | None


class _ReferenceFeatures(NamedTuple):
    patches: Tensor
    self_distance: Tensor


class BatchedPairFeatures:
    """Computes the features of pairs of one shape on `device`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        loaded = read_safetensors(BACKBONE)
        self._weights = {name: torch.from_numpy(np.array(value)).to(device) for name, value in loaded.items()}

    @torch.inference_mode()
    def __call__(
        self, references: Sequence[RGB], targets: Sequence[RGB], pixels: Sequence[CellMaxima]
    ) -> NDArray[np.float16]:
        """Rows (N, H / 16, W / 16, WIDTH) of N pairs, all references (H', W', 3) and all targets (H, W, 3) of one shape."""
        # cuDNN plans each shape of each convolution, which takes longer than the few batches of a shape.
        with torch.backends.cudnn.flags(enabled=False):
            patches = [self._patches(np.stack(images)) for images in (references, targets)]
        strides = []
        for number, (reference, target) in enumerate(zip(*patches, strict=True)):
            differ = [None if each is None else each[number] for each in pixels]
            strides.append(
                _compare(
                    target, _ReferenceFeatures(reference, _self_distance(reference)), self._pixel_inputs(differ, target)
                )
            )
        fine, coarse = strides
        count, height, width = coarse.shape[:3]
        cells = fine[:, : 2 * height, : 2 * width].reshape(count, height, 2, width, 2, -1).transpose(2, 3)
        rows = torch.cat([cells.reshape(count, height, width, -1), coarse], dim=-1)
        return np.asarray(rows.half().cpu().numpy())

    def _patches(self, images: NDArray[np.uint8]) -> list[Tensor]:
        """Strides 8 and 16 of images (N, H, W, 3): averaged over neighbours, of length 1, (N, h, w, C)."""
        x = torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2).float()
        x = ((x - MEAN) / SCALE).contiguous(memory_format=torch.channels_last)
        outputs = []
        for block in blocks():
            block_input = x
            for convolution in block.convolutions:
                x = self._convolve(convolution, x)
            x = x + block_input if block.residual else x
            if block.name in _NAMES:
                soft = functional.avg_pool2d(functional.pad(x, (1, 1, 1, 1), mode="reflect"), 3, 1)
                length = soft.norm(dim=1, keepdim=True)
                outputs.append((soft / length.clamp(min=1e-6)).permute(0, 2, 3, 1).contiguous())
        return outputs

    def _convolve(self, convolution: Convolution, x: Tensor) -> Tensor:
        weight, bias = (self._weights[f"{convolution.name}.{part}"] for part in ("weight", "bias"))
        if convolution.kernel == convolution.stride == 1:
            out = functional.linear(x.permute(0, 2, 3, 1), weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)
        else:
            top, left, bottom, right = convolution.pads
            padded = functional.pad(x, (left, right, top, bottom)) if any(convolution.pads) else x
            groups = convolution.channels_in if convolution.depthwise else 1
            out = functional.conv2d(padded, weight, bias, stride=convolution.stride, groups=groups)
        return out.clamp_(0, 6) if convolution.clipped else out

    def _pixel_inputs(self, pixels: Sequence[NDArray[np.float32] | None], like: Tensor) -> tuple[Tensor, Tensor]:
        """Pixel differences (N, h, w), 0 for pairs that are not aligned, and the flags (N,) of those that are."""
        empty = np.zeros(like.shape[1:3], np.float32)
        values = torch.from_numpy(np.stack([empty if each is None else each for each in pixels]))
        aligned = torch.tensor([each is not None for each in pixels], dtype=torch.float32)
        return values.to(self._device), aligned.to(self._device)


def _compare(target: Tensor, reference: _ReferenceFeatures, pixels: tuple[Tensor, Tensor]) -> Tensor:
    """(N, h, w, C + CELL_EXTRA) of one stride; see `evidence._compare`."""
    count, rows, columns, channels = target.shape
    shape, other = (rows, columns), (int(reference.patches.shape[1]), int(reference.patches.shape[2]))
    patches_of_target, bank, self_distance = (
        target.flatten(1, 2),
        reference.patches.flatten(1, 2),
        reference.self_distance.flatten(1),
    )
    similarity = patches_of_target @ bank.transpose(1, 2)
    nearest, best = similarity.max(dim=2)
    distances = [_distance(nearest)]
    reverse = torch.empty(0)
    chosen = best
    for number, reach in enumerate(REACHES):
        part = similarity.masked_fill(_outside(shape, other, reach, target.device), -1.0)
        nearest_in_window, best_in_window = part.max(dim=2)
        distances.append(_distance(nearest_in_window))
        if number == 0:
            reverse = part.amax(dim=1).unflatten(1, other)
            chosen = best_in_window if channels == FINE else best
    distances.append(self_distance.gather(1, best))
    missing = functional.interpolate(_distance(reverse)[:, None], size=shape, mode="bilinear")[:, 0]
    values, aligned = pixels
    features = target.new_empty((count, rows * columns, channels + CELL_EXTRA))
    picked = bank.gather(1, chosen[..., None].expand(-1, -1, channels))
    features[..., :channels] = CHANNEL_GAIN * (patches_of_target - picked) ** 2
    stacked = torch.stack([*distances, missing.flatten(1), values.flatten(1)], dim=2)
    features[..., channels : channels + DISTANCES] = stacked
    quantiles = torch.quantile(
        self_distance, torch.tensor(QUANTILES, device=self_distance.device, dtype=self_distance.dtype), dim=1
    )
    features[..., channels + DISTANCES : -1] = quantiles.T[:, None]
    features[..., -1] = aligned[:, None]
    return features.unflatten(1, shape)


def _self_distance(patches: Tensor) -> Tensor:
    """Distance (N, h, w) of each patch to the nearest of the same image outside its surroundings."""
    shape = (int(patches.shape[1]), int(patches.shape[2]))
    flattened = patches.flatten(1, 2)
    similarity = flattened @ flattened.transpose(1, 2)
    similarity.masked_fill_(~_outside(shape, shape, SELF_REACH, patches.device), -1.0)
    return _distance(similarity.amax(dim=2)).unflatten(1, shape)


@lru_cache(maxsize=256)
def _outside(shape: Shape, other: Shape, reach: float, device: torch.device) -> Tensor:
    """Mask (hw, h'w') of the reference patches beyond `reach` of each target patch."""
    rows, columns = (torch.from_numpy(window_mask(shape[i], other[i], reach)).to(device) for i in (0, 1))
    inside = rows[:, None, :, None] & columns[None, :, None, :]
    return ~inside.flatten(2, 3).flatten(0, 1)


def _distance(similarity: Tensor) -> Tensor:
    return (2 - 2 * similarity).clamp(min=0).sqrt()
