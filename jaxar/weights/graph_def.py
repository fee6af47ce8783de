"""Constants of a frozen TensorFlow graph, such as the Inception of 2015, without TensorFlow.

A GraphDef is a protocol buffer: numbered fields, each a number or a run of bytes, which may hold
fields again. Only the fields that lead to the values are read: node, attribute "value", tensor.

Source: tensorflow/core/framework/{graph,node_def,attr_value,tensor,tensor_shape}.proto;
protobuf.dev/programming-guides/encoding.
"""

import math
import os
from collections.abc import Iterator

import numpy as np

from jaxar.weights.files import naming
from jaxar.weights.storage import AGAIN, MAX_AXES, Reader
from jaxar.weights.tables import WeightsError

MAX_GRAPH = 1 << 30
"""Largest graph in bytes; Inception's has 92 million, and the format allows 2 GiB."""
MAX_FILLED = 1 << 24
"""Largest number of elements of a tensor that stores fewer: the last one is repeated."""
MAX_VARINT = 10
"""Most bytes of a number."""

VARINT, FIXED_64, RUN, FIXED_32 = 0, 1, 2, 5
"""Wire types: encodings of the value of a field."""
NODE = 1
NAME, OP, ATTRIBUTE = 1, 2, 5
KEY, VALUE = 1, 2
TENSOR = 8
DTYPE, SHAPE, CONTENT, FLOATS, INTS = 1, 2, 4, 5, 7
AXIS, SIZE = 2, 1
DTYPES = {1: np.dtype("<f4"), 3: np.dtype("<i4")}

Value = int | memoryview


def read_constants(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns the float32 and int32 constants of a frozen GraphDef by node name.

    Raises:
      WeightsError: the file is not a GraphDef, is damaged, or is too large.
    """
    with naming(path):
        reader = Reader(path)
        try:
            if reader.size > MAX_GRAPH:
                raise WeightsError(f"has {reader.size} bytes, too many for a graph; check the path")
            graph = memoryview(reader.take(0, reader.size))
        finally:
            reader.close()
        constants = {}
        for node in _runs(graph, NODE):
            if _text(node, OP) != "Const":
                continue
            name = _text(node, NAME)
            if name in constants:
                raise WeightsError(f"holds two constants named {name[:100]!r}; {AGAIN}")
            array = _constant(node)
            if array is not None:
                constants[name] = array
    if not constants:
        raise WeightsError(f"{os.fspath(path)} holds no constants; give a frozen GraphDef.")
    return constants


def _fields(data: memoryview) -> Iterator[tuple[int, Value]]:
    """Yields the number and value of each field."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == RUN:
            size, at = _varint(data, at)
        elif wire in (FIXED_32, FIXED_64):
            size = 4 if wire == FIXED_32 else 8
        else:
            raise WeightsError("is not a GraphDef; give a frozen one")
        if not number or at + size > len(data):
            raise WeightsError(f"is not a GraphDef, or ends too early; {AGAIN}")
        yield number, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Returns the number at an offset, 7 bits a byte, and the offset after it."""
    number = 0
    for i, byte in enumerate(data[at : at + MAX_VARINT]):
        number |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return number, at + i + 1
    raise WeightsError(f"is not a GraphDef, or ends too early; {AGAIN}")


def _runs(data: memoryview, number: int) -> Iterator[memoryview]:
    """Yields the fields with this number, all of which must be runs of bytes."""
    for given, value in _fields(data):
        if given == number:
            if not isinstance(value, memoryview):
                raise WeightsError(f"is not a GraphDef; {AGAIN}")
            yield value


def _text(data: memoryview, number: int) -> str:
    """Returns a field as text; the last one if it repeats, as the format requires."""
    text = b""
    for run in _runs(data, number):
        text = bytes(run)
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise WeightsError(f"is not a GraphDef; {AGAIN}") from error


def _constant(node: memoryview) -> np.ndarray | None:
    """Returns the value of a node, or None if it has another dtype."""
    for attribute in _runs(node, ATTRIBUTE):
        if _text(attribute, KEY) == "value":
            for value in _runs(attribute, VALUE):
                for tensor in _runs(value, TENSOR):
                    return _array(tensor)
    return None


def _array(tensor: memoryview) -> np.ndarray | None:
    """Returns a TensorProto as an array, or None if it has another dtype."""
    dtype, shape = None, ()
    content: list[memoryview] = []
    values: list[np.ndarray] = []
    for number, value in _fields(tensor):
        if number == DTYPE and isinstance(value, int):
            dtype = DTYPES.get(value)
        elif number == SHAPE and isinstance(value, memoryview):
            shape = _shape(value)
        elif number == CONTENT and isinstance(value, memoryview):
            content = [value]
        elif number == FLOATS and isinstance(value, memoryview):
            values.append(_numbers(value, np.dtype("<f4")))
        elif number == INTS:
            values.append(_ints(value))
    if dtype is None:
        return None
    count = math.prod(shape)
    flat = _numbers(content[0], dtype) if content else np.concatenate([np.zeros(0, dtype), *values])
    if flat.dtype != dtype or flat.size > count or (content and flat.size != count):
        raise WeightsError(f"holds a constant of another size than it says; {AGAIN}")
    if flat.size < count:
        if count > MAX_FILLED:
            raise WeightsError(f"holds a constant of {count} elements; {AGAIN}")
        last = flat[-1:] if flat.size else np.zeros(1, dtype)
        flat = np.concatenate([flat, np.repeat(last, count - flat.size)])
    return flat.reshape(shape).copy()


def _shape(data: memoryview) -> tuple[int, ...]:
    """Returns a TensorShapeProto as a shape."""
    shape = []
    for axis in _runs(data, AXIS):
        sizes = [value for number, value in _fields(axis) if number == SIZE]
        size = sizes[-1] if sizes else 0
        if not isinstance(size, int) or size >= 1 << 31 or len(shape) == MAX_AXES:
            raise WeightsError(f"holds a constant with an invalid shape; {AGAIN}")
        shape.append(size)
    return tuple(shape)


def _numbers(data: memoryview, dtype: np.dtype) -> np.ndarray:
    """Returns a run of bytes as an array, not copied."""
    if len(data) % dtype.itemsize:
        raise WeightsError(f"holds a constant of another size than it says; {AGAIN}")
    return np.frombuffer(data, dtype)


def _ints(value: Value) -> np.ndarray:
    """Returns one number, or a packed run of numbers, as int32."""
    numbers = []
    if isinstance(value, int):
        numbers.append(value)
    else:
        at = 0
        while at < len(value):
            number, at = _varint(value, at)
            numbers.append(number)
    return (np.array(numbers, np.uint64) & np.uint64(0xFFFFFFFF)).astype("<u4").view("<i4")
