"""EfficientNet-Lite0 up to stride 16, as a list of convolutions and as an ONNX graph.

Source of the architecture: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite (Apache-2.0).
Batch normalisation is folded into the convolutions, so each has a weight and a bias. Strided convolutions pad as
TensorFlow's SAME does for even sides: one row and column more after than before. Knows nothing of where weights come from.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from differad.locators.features.onnx import Attribute, Node, encode

Weights = Mapping[str, NDArray[np.float32]]

# (repeats, kernel, stride, expansion, channels out) of each stage; the network's later stages are not needed.
_STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112))
_STEM_CHANNELS = 32
# Outputs: the name of the block that gives each, its stride in pixels and its channels.
OUTPUTS = (("blocks.4", 8, 40), ("blocks.10", 16, 112))
# A pixel p in 0 .. 255 enters as (p - MEAN) / SCALE.
MEAN, SCALE = 127.0, 128.0
# Sides of the input must be multiples of this.
MULTIPLE = 16


@dataclass(frozen=True)
class Convolution:
    """One convolution (weight (out, in / groups, kernel, kernel), bias (out,)), and ReLU6 after it if `clipped`."""

    name: str
    channels_in: int
    channels_out: int
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False
    clipped: bool = True

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Shape of the weight."""
        return self.channels_out, 1 if self.depthwise else self.channels_in, self.kernel, self.kernel

    @property
    def pads(self) -> tuple[int, int, int, int]:
        """Rows and columns of zeros: top, left, bottom, right."""
        total = self.kernel - self.stride
        return total // 2, total // 2, total - total // 2, total - total // 2


@dataclass(frozen=True)
class Block:
    """A sequence of convolutions; with `residual` the input is added to the output."""

    name: str
    convolutions: tuple[Convolution, ...]
    residual: bool = False


def blocks() -> Iterator[Block]:
    """All blocks in order, the stem first."""
    yield Block("stem", (Convolution("stem", 3, _STEM_CHANNELS, 3, 2),))
    channels, index = _STEM_CHANNELS, 0
    for repeats, kernel, stage_stride, expansion, out in _STAGES:
        for repeat in range(repeats):
            stride = stage_stride if repeat == 0 else 1
            yield _inverted_residual(f"blocks.{index}", channels, out, kernel, stride, expansion)
            channels, index = out, index + 1


def _inverted_residual(name: str, channels: int, out: int, kernel: int, stride: int, expansion: int) -> Block:
    expanded = channels * expansion
    expand = (Convolution(f"{name}.expand", channels, expanded),) if expansion > 1 else ()
    depthwise = Convolution(f"{name}.depthwise", expanded, expanded, kernel, stride, depthwise=True)
    project = Convolution(f"{name}.project", expanded, out, clipped=False)
    return Block(name, (*expand, depthwise, project), residual=stride == 1 and channels == out)


def to_onnx(weights: Weights) -> bytes:
    """The network as an ONNX model: (N, 3, H, W) RGB after MEAN and SCALE in, one feature map per OUTPUTS out."""
    nodes: list[Node] = []
    tensors: dict[str, NDArray[np.float32]] = {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}
    current = "pixels"
    for block in blocks():
        block_input = current
        for convolution in block.convolutions:
            nodes += _convolve(convolution, current)
            current = nodes[-1].output
            for part in ("weight", "bias"):
                tensors[f"{convolution.name}.{part}"] = weights[f"{convolution.name}.{part}"]
        if block.residual:
            nodes.append(Node("Add", [current, block_input], f"{block.name}.sum"))
            current = nodes[-1].output
        nodes.append(Node("Identity", [current], block.name)) if block.name in _OUTPUT_NAMES else None
    inputs: dict[str, tuple[int | str, ...]] = {"pixels": ("n", 3, "height", "width")}
    return encode(nodes, tensors, inputs, {name: ("n", channels, "h", "w") for name, _, channels in OUTPUTS})


_OUTPUT_NAMES = frozenset(name for name, _, _ in OUTPUTS)


def _convolve(convolution: Convolution, source: str) -> list[Node]:
    name = convolution.name
    attributes: dict[str, Attribute] = {
        "kernel_shape": [convolution.kernel] * 2,
        "strides": [convolution.stride] * 2,
        "pads": convolution.pads,
        "group": convolution.channels_in if convolution.depthwise else 1,
    }
    nodes = [Node("Conv", [source, f"{name}.weight", f"{name}.bias"], f"{name}.out", attributes)]
    if convolution.clipped:
        nodes.append(Node("Clip", [f"{name}.out", "low", "high"], f"{name}.clipped"))
    return nodes
