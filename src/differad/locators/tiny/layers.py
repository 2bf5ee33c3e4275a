"""The few layers of the embedded policy in NumPy: forward only, float32, channels last.

Each takes its weights as PyTorch stores them and equals PyTorch's layer of that name up to rounding. Knows nothing of the policy.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
# PyTorch's default epsilon of norms.
_EPSILON = 1e-5
# Abramowitz and Stegun, "Handbook of Mathematical Functions", 7.1.26: the error function to 1.5e-7.
_ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
_ERF_SLOPE = 0.3275911


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """(..., in) to (..., out)."""
    product = x @ weight.T
    return product if bias is None else product + bias


def conv(x: Array, weight: Array, bias: Array, *, stride: int = 1, padding: int = 0, dilation: int = 1) -> Array:
    """(H, W, in) to (H', W', out) by a kernel (out, in, k, k); one product for each kernel position."""
    outs, ins, size, _ = weight.shape
    padded = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
    height, width = ((side - dilation * (size - 1) - 1) // stride + 1 for side in padded.shape[:2])
    result = np.tile(bias, (height * width, 1))
    for dy in range(size):
        for dx in range(size):
            rows = padded[dilation * dy :: stride][:height]
            window = rows[:, dilation * dx :: stride][:, :width]
            result += window.reshape(-1, ins) @ weight[:, :, dy, dx].T
    return result.reshape(height, width, outs)


def gelu(x: Array) -> Array:
    """Exact GELU with a polynomial for the error function, which NumPy lacks."""
    scaled = np.abs(x) * np.float32(2**-0.5)
    t = 1 / (1 + np.float32(_ERF_SLOPE) * scaled)
    series = np.zeros_like(t)
    for factor in _ERF:
        series = (series + np.float32(factor)) * t
    erf = np.sign(x) * (1 - series * np.exp(-scaled * scaled))
    return np.asarray(x * (1 + erf) / 2, dtype=np.float32)


def silu(x: Array) -> Array:
    """x times its sigmoid."""
    return np.asarray(x / (1 + np.exp(-x)), dtype=np.float32)


def group_norm(x: Array, weight: Array, bias: Array, groups: int) -> Array:
    """(H, W, C) normalised over positions and the channels of each of `groups`."""
    parts = x.reshape(*x.shape[:2], groups, -1)
    mean, spread = parts.mean(axis=(0, 1, 3), keepdims=True), parts.var(axis=(0, 1, 3), keepdims=True)
    return np.asarray(((parts - mean) / np.sqrt(spread + _EPSILON)).reshape(x.shape) * weight + bias, np.float32)


def layer_norm(x: Array, weight: Array, bias: Array) -> Array:
    """(..., C) normalised over C."""
    mean, spread = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
    return np.asarray((x - mean) / np.sqrt(spread + _EPSILON) * weight + bias, np.float32)


def rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    """(..., C) by its root mean square."""
    return np.asarray(x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + epsilon) * weight, np.float32)


def softmax(x: Array) -> Array:
    """Over the last axis."""
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True), np.float32)


def upsample_twice(x: Array) -> Array:
    """(H, W, C) at twice the size, bilinear, as PyTorch's `interpolate` with `align_corners=False`."""
    return np.asarray(cv2.resize(x, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR), np.float32)
