"""Write the few ONNX messages that a feed-forward convolutional network needs, straight to bytes.

OpenCV reads networks from ONNX only; writing one takes a page, so that neither the `onnx` package nor a second copy of
the weights has to be shipped. Field numbers: https://github.com/onnx/onnx/blob/v1.16.0/onnx/onnx.proto (Apache-2.0).
Knows nothing of any network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

# Operators are used as opset 13 defines them; intermediate representation 7 goes with it.
_IR_VERSION, _OPSET = 7, 13
_FLOAT = 1
_ATTRIBUTE_INT, _ATTRIBUTE_INTS = 2, 7
_VARINT, _BYTES = 0, 2

Attribute = int | Sequence[int]


@dataclass(frozen=True)
class Node:
    """One operation: the names of its inputs and of its one output, and integer attributes."""

    operator: str
    inputs: Sequence[str]
    output: str
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


def encode(
    nodes: Sequence[Node],
    tensors: Mapping[str, NDArray[np.float32]],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Mapping[str, Sequence[int | str]],
) -> bytes:
    """An ONNX model as bytes. `inputs` and `outputs` map names to shapes; a string is a free dimension."""
    graph = b"".join(
        [
            *(_message(1, _node(node)) for node in nodes),
            _text(2, "differad"),
            *(_message(5, _tensor(name, values)) for name, values in tensors.items()),
            *(_message(11, _value(name, shape)) for name, shape in inputs.items()),
            *(_message(12, _value(name, shape)) for name, shape in outputs.items()),
        ]
    )
    return _number(1, _IR_VERSION) + _message(7, graph) + _message(8, _text(1, "") + _number(2, _OPSET))


def _node(node: Node) -> bytes:
    return b"".join(
        [
            *(_text(1, name) for name in node.inputs),
            _text(2, node.output),
            _text(3, node.output),
            _text(4, node.operator),
            *(_message(5, _attribute(name, value)) for name, value in node.attributes.items()),
        ]
    )


def _attribute(name: str, value: Attribute) -> bytes:
    if isinstance(value, int):
        return _text(1, name) + _number(3, value) + _number(20, _ATTRIBUTE_INT)
    return _text(1, name) + b"".join(_number(8, v) for v in value) + _number(20, _ATTRIBUTE_INTS)


def _tensor(name: str, values: NDArray[np.float32]) -> bytes:
    raw = np.ascontiguousarray(values, dtype="<f4").tobytes()
    return b"".join(_number(1, side) for side in values.shape) + _number(2, _FLOAT) + _text(8, name) + _message(9, raw)


def _value(name: str, shape: Sequence[int | str]) -> bytes:
    sides = b"".join(_message(1, _number(1, s) if isinstance(s, int) else _text(2, s)) for s in shape)
    return _text(1, name) + _message(2, _message(1, _number(1, _FLOAT) + _message(2, sides)))


def _number(field_number: int, value: int) -> bytes:
    return _varint(field_number << 3 | _VARINT) + _varint(value)


def _text(field_number: int, value: str) -> bytes:
    return _message(field_number, value.encode())


def _message(field_number: int, body: bytes) -> bytes:
    return _varint(field_number << 3 | _BYTES) + _varint(len(body)) + body


def _varint(value: int) -> bytes:
    """A number at or above 0, seven bits a byte, lowest first."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
