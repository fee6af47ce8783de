"""The contents of a `torch.save` file: plain data with unread tensors.

There are two formats. Since PyTorch 1.6 a file is a ZIP archive: `data.pkl` describes the tensors,
`data/0`, `data/1`, ... are their storages. The older format is a sequence of pickles (a magic
number, the protocol, the system, the description, the keys of the storages), then the storages,
each after its length.

Source: torch/serialization.py, `_save` and `_legacy_save`; torch/_utils.py for the globals.
"""

import io
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxar.weights.archive import members
from jaxar.weights.opcodes import MAX_PICKLE, Global, interpret
from jaxar.weights.storage import AGAIN, DISTRUST, Reader, Span, Tensor
from jaxar.weights.tables import WeightsError

LEGACY = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
"""Opcode of the magic number that follows the first two bytes of the older format."""
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
COUNT = 8
"""Bytes of the length that precedes a storage in the older format."""

DTYPES = {
    "Float": ("float32", np.float32),
    "Double": ("float64", np.float64),
    "Half": ("float16", np.float16),
    "BFloat16": ("bfloat16", ml_dtypes.bfloat16),
    "Long": ("int64", np.int64),
    "Int": ("int32", np.int32),
    "Short": ("int16", np.int16),
    "Char": ("int8", np.int8),
    "Byte": ("uint8", np.uint8),
    "Bool": ("bool", np.bool_),
    "ComplexFloat": ("complex64", np.complex64),
    "ComplexDouble": ("complex128", np.complex128),
}
"""PyTorch's dtype name and NumPy's dtype by name of storage."""


class Storage(NamedTuple):
    """A one-dimensional array that tensors are views of."""

    span: Span
    dtype: np.dtype


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    if type(storage) is not Storage or type(shape) is not tuple or type(strides) is not tuple:
        raise WeightsError(f"holds an invalid tensor; {AGAIN}")
    if type(offset) is not int:
        raise WeightsError(f"holds a tensor without an offset; {AGAIN}")
    start = offset * storage.dtype.itemsize
    return Tensor(storage.span, storage.dtype, shape, strides, start).checked()


def _typed_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> Tensor:
    if type(dtype) is not Global or not isinstance(dtype.value, np.dtype):
        raise WeightsError(f"holds a tensor without a dtype; {AGAIN}")
    return _tensor(storage._replace(dtype=dtype.value), offset, shape, strides)


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _size(axes: Any = ()) -> tuple:
    if not isinstance(axes, list | tuple):
        raise WeightsError(f"holds an invalid shape; {AGAIN}")
    return tuple(axes)


def _device(*parts: Any) -> str:
    return ":".join(str(part) for part in parts if type(part) in (str, int))


CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": _size,
    "torch.device": _device,
}
NAMES: Mapping[str, Global] = {
    **{name: Global(name, call) for name, call in CALLS.items()},
    **{
        (name := f"torch.{storage}Storage"): Global(name, value=np.dtype(dtype))
        for storage, (_, dtype) in DTYPES.items()
    },
    **{
        (name := f"torch.{torch}"): Global(name, value=np.dtype(dtype))
        for torch, dtype in DTYPES.values()
    },
    **{
        name: Global(name, value=np.dtype(np.uint8))
        for name in ("torch.storage.UntypedStorage", "torch.UntypedStorage")
    },
}
"""Globals in PyTorch's files, with their fixed meanings."""


def is_legacy(head: bytes) -> bool:
    """Returns whether a file with these first bytes has the format before PyTorch 1.6."""
    return head[2 : 2 + len(LEGACY)] == LEGACY


def read_zip(reader: Reader) -> Any:
    """Returns the plain data of a `torch.save` ZIP file.

    Raises:
      WeightsError: the file is damaged, or holds anything but tensors and plain data.
    """
    spans = members(reader, packed=False)
    roots = [name.removesuffix("data.pkl") for name in spans if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise WeightsError("is an archive, but not of torch.save or np.savez; give a weights file")
    (root,) = roots

    def member(name: str, limit: int) -> bytes:
        span = spans[root + name]
        if span.size > limit:
            raise WeightsError(f"describes its tensors in {span.size} bytes; {DISTRUST}")
        out = bytearray(span.size)
        reader.read(span, 0, memoryview(out))
        return bytes(out)

    if root + "byteorder" in spans and member("byteorder", 16) != b"little":
        raise WeightsError("was written on a big-endian machine; save it on another one")

    def storage(key: str, dtype: np.dtype, count: int) -> Storage:
        span = spans.get(f"{root}data/{key}")
        if span is None or span.size != count * dtype.itemsize:
            raise WeightsError(f"lacks the storage {key[:100]!r} or part of it; {AGAIN}")
        return Storage(span, dtype)

    return interpret(io.BytesIO(member("data.pkl", MAX_PICKLE)), NAMES, _persistent(storage))


def read_legacy(reader: Reader) -> Any:
    """Returns the plain data of a `torch.save` file from before PyTorch 1.6.

    Raises:
      WeightsError: the file is damaged, or holds anything but tensors and plain data.
    """
    sizes: dict[str, tuple[int, int]] = {}
    spans: dict[str, Span] = {}

    def sized(key: str, dtype: np.dtype, count: int) -> Storage:
        size = (count, dtype.itemsize)
        if sizes.setdefault(key, size) != size:
            raise WeightsError(f"gives the storage {key[:100]!r} two sizes; {AGAIN}")
        return Storage(Span(0, count * dtype.itemsize), dtype)

    def placed(key: str, dtype: np.dtype, count: int) -> Storage:
        return Storage(spans[key], dtype)

    with open(reader.path, "rb") as file:

        def pickle(persistent: Callable[[Any], Any] | None = None) -> Any:
            return interpret(_Limited(file), NAMES, persistent)

        if pickle() != MAGIC or pickle() != PROTOCOL:
            raise WeightsError(f"has an unknown version of PyTorch's older format; {AGAIN}")
        system = pickle()
        if type(system) is not dict or system.get("little_endian") is not True:
            raise WeightsError("was written on a big-endian machine; save it on another one")
        description = file.tell()
        pickle(_persistent(sized))
        keys, start = pickle(), file.tell()
        if type(keys) is not list or any(type(key) is not str for key in keys):
            raise WeightsError(f"has no list of its storages; {AGAIN}")
        if sorted(keys) != sorted(sizes):
            raise WeightsError(f"lists other storages than it describes; {AGAIN}")
        for key in keys:
            spans[key] = _after_count(reader, start, *sizes[key])
            start = spans[key].start + spans[key].size
        # The offsets of storages are known only after the description, so it is read again.
        file.seek(description)
        return pickle(_persistent(placed))


def _after_count(reader: Reader, start: int, count: int, itemsize: int) -> Span:
    """Returns the span of a storage, whose number of elements is stored at `start`."""
    if int.from_bytes(reader.take(start, COUNT), "little") != count:
        raise WeightsError(f"gives a storage two sizes; {AGAIN}")
    span = Span(start + COUNT, count * itemsize)
    if span.start + span.size > reader.size:
        raise WeightsError(f"ends too early; {AGAIN}")
    return span


def _persistent(storage: Callable[[str, np.dtype, int], Storage]) -> Callable[[Any], Storage]:
    """Returns load(id) -> storage, for ids ("storage", type, key, device, elements)."""

    def load(value: Any) -> Storage:
        if type(value) is not tuple or len(value) not in (5, 6) or value[0] != "storage":
            raise WeightsError(f"refers to something that is not a storage; {DISTRUST}")
        _, kind, key, _, count, *view = value
        if type(kind) is not Global or not isinstance(kind.value, np.dtype):
            raise WeightsError(f"holds a storage without a dtype; {DISTRUST}")
        if type(key) is not str or type(count) is not int or count < 0:
            raise WeightsError(f"holds a storage without a name or a size; {AGAIN}")
        if view not in ([], [None]):
            raise WeightsError("shares storages as PyTorch 0.3 did; save it with a newer one")
        return storage(key, kind.value, count)

    return load


class _Limited:
    """A file from which one pickle is read, at most `MAX_PICKLE` bytes."""

    def __init__(self, file: Any):
        self._file, self._left = file, MAX_PICKLE

    def read(self, size: int) -> bytes:
        """Returns at most `size` bytes."""
        return self._count(self._file.read(min(size, self._left)))

    def readline(self) -> bytes:
        """Returns the bytes to the end of a line."""
        return self._count(self._file.readline(self._left))

    def _count(self, data: bytes) -> bytes:
        self._left -= len(data)
        return data
