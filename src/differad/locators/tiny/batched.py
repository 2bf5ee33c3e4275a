"""The evidence of many pairs at once, by PyTorch: what evidence.py computes for one, on an accelerator.

Both give the same numbers to float32 rounding; where two reference patches are equally near to within it, either may be
chosen. Convolutions and products stay in float32, for what a policy is trained on must be what it sees later. The search for a
motion is not here: its result, how far pixels differ, comes with the pairs.
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
from differad.locators.features.nearest import near
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
# How far pixels differ, (h, w) per stride, as `evidence.steepest` gives it; None where nothing could be aligned.
Steepest = tuple[NDArray[np.float32], NDArray[np.float32]] | None


class _Reference(NamedTuple):
    patches: Tensor
    rarity: Tensor


class BatchedEvidence:
    """Evidence of pairs of one shape, computed on `device`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        loaded = read_safetensors(BACKBONE)
        self._weights = {name: torch.from_numpy(np.array(value)).to(device) for name, value in loaded.items()}

    @torch.inference_mode()
    def __call__(
        self, references: Sequence[RGB], targets: Sequence[RGB], pixels: Sequence[Steepest]
    ) -> NDArray[np.float16]:
        """Rows (N, H / 16, W / 16, WIDTH) of N pairs, all references (H', W', 3) and all targets (H, W, 3) of one shape."""
        # cuDNN makes a plan for each shape of each convolution, which takes longer than the few batches of a shape do.
        with torch.backends.cudnn.flags(enabled=False):
            patches = [self._patches(np.stack(images)) for images in (references, targets)]
        strides = []
        for number, (reference, target) in enumerate(zip(*patches, strict=True)):
            differ = [None if each is None else each[number] for each in pixels]
            strides.append(_compare(target, _Reference(reference, _rarity(reference)), self._told(differ, target)))
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
            entered = x
            for convolution in block.convolutions:
                x = self._convolve(convolution, x)
            x = x + entered if block.residual else x
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

    def _told(self, pixels: Sequence[NDArray[np.float32] | None], like: Tensor) -> tuple[Tensor, Tensor]:
        """How far pixels differ (N, h, w), 0 where that is not known, and whether it is (N,)."""
        empty = np.zeros(like.shape[1:3], np.float32)
        values = torch.from_numpy(np.stack([empty if each is None else each for each in pixels]))
        known = torch.tensor([each is not None for each in pixels], dtype=torch.float32)
        return values.to(self._device), known.to(self._device)


def _compare(target: Tensor, reference: _Reference, pixels: tuple[Tensor, Tensor]) -> Tensor:
    """(N, h, w, C + CELL_EXTRA) of one stride; see `evidence._compare`."""
    count, rows, columns, channels = target.shape
    shape, other = (rows, columns), (int(reference.patches.shape[1]), int(reference.patches.shape[2]))
    own, bank, rarity = target.flatten(1, 2), reference.patches.flatten(1, 2), reference.rarity.flatten(1)
    similar = own @ bank.transpose(1, 2)
    nearest, best = similar.max(dim=2)
    distances = [_distance(nearest)]
    reverse = torch.empty(0)
    chosen = best
    for number, reach in enumerate(REACHES):
        part = similar.masked_fill(_outside(shape, other, reach, target.device), -1.0)
        within, place = part.max(dim=2)
        distances.append(_distance(within))
        if number == 0:
            reverse = part.amax(dim=1).unflatten(1, other)
            chosen = place if channels == FINE else best
    distances.append(rarity.gather(1, best))
    missing = functional.interpolate(_distance(reverse)[:, None], size=shape, mode="bilinear")[:, 0]
    values, known = pixels
    found = target.new_empty((count, rows * columns, channels + CELL_EXTRA))
    picked = bank.gather(1, chosen[..., None].expand(-1, -1, channels))
    found[..., :channels] = CHANNEL_GAIN * (own - picked) ** 2
    told = torch.stack([*distances, missing.flatten(1), values.flatten(1)], dim=2)
    found[..., channels : channels + DISTANCES] = told
    quantiles = torch.quantile(rarity, torch.tensor(QUANTILES, device=rarity.device, dtype=rarity.dtype), dim=1)
    found[..., channels + DISTANCES : -1] = quantiles.T[:, None]
    found[..., -1] = known[:, None]
    return found.unflatten(1, shape)


def _rarity(patches: Tensor) -> Tensor:
    """Distance (N, h, w) of each patch to the nearest of the same image outside its own surroundings."""
    shape = (int(patches.shape[1]), int(patches.shape[2]))
    own = patches.flatten(1, 2)
    similar = own @ own.transpose(1, 2)
    similar.masked_fill_(~_outside(shape, shape, SELF_REACH, patches.device), -1.0)
    return _distance(similar.amax(dim=2)).unflatten(1, shape)


@lru_cache(maxsize=256)
def _outside(shape: Shape, other: Shape, reach: float, device: torch.device) -> Tensor:
    """Which of a reference's patches lie beyond `reach` of each target patch: (hw, h'w')."""
    rows, columns = (torch.from_numpy(near(shape[i], other[i], reach)).to(device) for i in (0, 1))
    inside = rows[:, None, :, None] & columns[None, :, None, :]
    return ~inside.flatten(2, 3).flatten(0, 1)


def _distance(similarity: Tensor) -> Tensor:
    return (2 - 2 * similarity).clamp(min=0).sqrt()
