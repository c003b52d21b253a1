"""An ONNX file of a text detector that calls what is green text, written without onnx."""

import struct
from pathlib import Path

import numpy as np

# Field numbers of onnx.proto.
_MODEL_IR, _MODEL_GRAPH, _MODEL_OPSET = 1, 7, 8
_GRAPH_NODE, _GRAPH_NAME, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 2, 5, 11, 12
_FLOAT = 1


def _varint(number: int) -> bytes:
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    made.append(number)
    return bytes(made)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes | str) -> bytes:
    content = value.encode() if isinstance(value, str) else value
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _tensor(name: str, values: np.ndarray) -> bytes:
    raw = struct.pack(f"<{values.size}f", *values.ravel())
    dims = b"".join(_number(1, size) for size in values.shape)
    return dims + _number(2, _FLOAT) + _bytes(8, name) + _bytes(9, raw)


def _node(kind: str, inputs: list[str], output: str) -> bytes:
    return b"".join(_bytes(1, name) for name in inputs) + _bytes(2, output) + _bytes(4, kind)


def _value(name: str, sizes: list[int | str]) -> bytes:
    dims = b"".join(
        _bytes(1, _number(1, size) if isinstance(size, int) else _bytes(2, size)) for size in sizes
    )
    tensor = _number(1, _FLOAT) + _bytes(2, dims)
    return _bytes(1, name) + _bytes(2, _bytes(1, tensor))


def save_tiny_text(folder: Path) -> Path:
    """A convolution of one pixel and a sigmoid: 4 (2 green - blue - red) - 6, normalised."""
    weight = np.array([-4, 8, -4], np.float32).reshape(1, 3, 1, 1)
    graph = (
        _bytes(_GRAPH_NODE, _node("Conv", ["x", "w", "b"], "y"))
        + _bytes(_GRAPH_NODE, _node("Sigmoid", ["y"], "z"))
        + _bytes(_GRAPH_NAME, "tiny")
        + _bytes(_GRAPH_INITIALIZER, _tensor("w", weight))
        + _bytes(_GRAPH_INITIALIZER, _tensor("b", np.array([-6], np.float32)))
        + _bytes(_GRAPH_INPUT, _value("x", [1, 3, "h", "w"]))
        + _bytes(_GRAPH_OUTPUT, _value("z", [1, 1, "h", "w"]))
    )
    model = (
        _number(_MODEL_IR, 8) + _bytes(_MODEL_GRAPH, graph) + _bytes(_MODEL_OPSET, _number(2, 13))
    )
    path = folder / "text.onnx"
    path.write_bytes(model)
    return path
