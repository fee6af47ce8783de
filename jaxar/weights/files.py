"""Weights files of other projects: safetensors, NumPy's .npz, and both formats of PyTorch.

The first bytes of a file decide its format, not its name. Nothing in it is executed, and a tensor
is read on access: memory holds only names and shapes, and what the caller keeps.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np

from jaxar.files import sha256
from jaxar.weights import torch_file
from jaxar.weights.archive import LOCAL, members
from jaxar.weights.storage import AGAIN, DISTRUST, Reader, Span, Tensor, row_major
from jaxar.weights.tables import WeightsError

__all__ = ["StateFile", "WeightsError", "naming", "read_state"]

LEVELS = ("model_ema", "ema", "state_dict", "model", "module")
"""Levels of a checkpoint that may hold the model; averaged parameters are preferred."""
WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DataParallel and torch.compile add to every key."""
MAX_HEADER = 10_000
"""Largest header of an array in bytes, as in NumPy."""
MAX_JSON = 100 << 20
"""Largest header of a safetensors file in bytes, as in its format."""

NPY = re.compile(
    rb"\x93NUMPY[\1\2]\0.{2,4}?\{'descr': '([<>|][biufc]\d{1,2})', "
    rb"'fortran_order': (True|False), 'shape': \(([\d, ]{0,600})\), ?\} *\n",
    re.DOTALL,
)
SAFETENSORS = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "C64": np.complex64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}


class StateFile(Mapping[str, Any]):
    """The tensors of a weights file by key; each access `state[key]` reads from the file.

    Attributes:
      path: Path of the file.
      level: Level of the file that holds them: "model_ema", "a.b"; "" for the top.
      shapes: Shape of each tensor.
    """

    def __init__(self, reader: Reader, tensors: Mapping[str, Tensor], level: str):
        self.path, self.level = reader.path, level
        self.shapes = {key: tensor.shape for key, tensor in tensors.items()}
        self._reader, self._tensors = reader, dict(tensors)

    def __getitem__(self, key: str) -> np.ndarray:
        tensor = self._tensors[key]
        with naming(self.path):
            return self._reader.tensor(tensor)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __enter__(self):
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; tensors can no longer be read."""
        self._reader.close()

    def sha256(self) -> str:
        """Returns the SHA-256 of the whole file in hexadecimal."""
        return sha256(self.path)


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Returns a context that puts the file's name before the message of a `WeightsError`."""
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{os.fspath(path)} {error}.") from error


def read_state(path: str | os.PathLike, level: str | None = None) -> StateFile:
    """Returns the tensors of a weights file; each is read on access.

        with read_state("checkpoint-last.pth") as state:
            params = convert(state, ROWS, template, ignore=BUFFERS)

    Values of a level that are not tensors are left out. A prefix that DataParallel or torch.compile
    added to every key is dropped.

    Args:
      path: A .safetensors or .npz file, or a file of `torch.save` (.pth, .pt, .ckpt, .bin).
      level: Name of the level of a checkpoint that holds the tensors, "a.b" for nested levels,
        "" for the top. By default the first of `LEVELS` with tensors, or else the top.

    Raises:
      WeightsError: the file is none of these, is damaged, holds more than plain data, or has no
        such level.
    """
    with naming(path):
        reader = Reader(path)
        try:
            level, tensors = _choose(_contents(reader), level)
            return StateFile(reader, _unwrapped(tensors), level)
        except BaseException:
            reader.close()
            raise


def _contents(reader: Reader) -> Any:
    """Returns the levels of a file, with unread tensors."""
    head = reader.take(0, min(reader.size, 16))
    if head.startswith(LOCAL):
        spans = members(reader, packed=True)
        if spans and all(name.endswith(".npy") for name in spans):
            return {n.removesuffix(".npy"): _array(reader, n, span) for n, span in spans.items()}
        return torch_file.read_zip(reader)
    if torch_file.is_legacy(head):
        return torch_file.read_legacy(reader)
    if head[8:9] == b"{":
        return _safetensors(reader)
    raise WeightsError(
        "is not a supported weights file; give .safetensors, .npz, or .pth of torch.save"
    )


def _array(reader: Reader, name: str, span: Span) -> Tensor:
    """Returns the unread tensor of a member of an .npz file."""
    head = bytearray(min(span.size, MAX_HEADER))
    reader.peek(span, memoryview(head))
    match = NPY.match(head)
    if match is None:
        raise WeightsError(f"holds an array of objects or text, {name[:100]!r}; {DISTRUST}")
    dtype = np.dtype(match[1].decode())
    shape = tuple(int(size) for size in re.findall(rb"\d+", match[3]))
    if match.end() + math.prod(shape) * dtype.itemsize != span.size:
        raise WeightsError(f"holds an array of another size than it says, {name[:100]!r}; {AGAIN}")
    strides = row_major(shape[::-1])[::-1] if match[2] == b"True" else row_major(shape)
    return Tensor(span, dtype, shape, strides, match.end()).checked()


def _safetensors(reader: Reader) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file."""
    import safetensors  # here, so that other formats do not need it

    size = int.from_bytes(reader.take(0, 8), "little")
    if size > min(MAX_JSON, reader.size - 8):
        raise WeightsError(f"has a header of {size} bytes; {AGAIN}")
    try:  # the library only checks the header: reading with it would memory-map the file
        with safetensors.safe_open(reader.path, framework="numpy"):
            header = json.loads(reader.take(8, size))
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise WeightsError(f"has an invalid header; {AGAIN}") from error
    header.pop("__metadata__", None)
    tensors = {}
    for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in SAFETENSORS:
            raise WeightsError(f"holds tensors of dtype {entry['dtype']}; save it in another one")
        start, end = entry["data_offsets"]
        shape, dtype = tuple(entry["shape"]), np.dtype(SAFETENSORS[entry["dtype"]])
        span = Span(8 + size + start, end - start)
        if math.prod(shape) * dtype.itemsize != span.size or span.start + span.size > reader.size:
            raise WeightsError(f"holds a tensor of another size than it says; {AGAIN}")
        tensors[key] = Tensor(span, dtype, shape, row_major(shape)).checked()
    return tensors


def _tensors(level: Any) -> dict[str, Tensor]:
    """Returns the tensors directly in a level, without nested ones."""
    if not isinstance(level, dict):
        return {}
    return {k: v for k, v in level.items() if isinstance(k, str) and isinstance(v, Tensor)}


def _choose(contents: Any, level: str | None) -> tuple[str, dict[str, Tensor]]:
    """Returns name and tensors of the given level, or of the first usual one with tensors."""
    if level is None:
        candidates = (*LEVELS, "")  # a stray tensor at the top does not make it the model
    else:
        candidates = (level,)
    for name in candidates:
        place = contents
        for part in filter(None, name.split(".")):
            place = place.get(part) if isinstance(place, dict) else None
        if tensors := _tensors(place):
            return name, tensors
    found = ", ".join(_levels(contents)) or "none"
    asked = "at its top or in a usual level" if level is None else f"in the level {level!r}"
    raise WeightsError(f"holds no tensors {asked}; name one of its levels: {found}")


def _levels(contents: Any) -> list[str]:
    """Returns the names of up to 20 levels that hold tensors, at most three deep."""
    names, seen, places = [], set(), [("", contents)]
    for _ in range(3):
        inside = []
        for name, place in places:
            if id(place) in seen or not isinstance(place, dict):
                continue
            seen.add(id(place))
            if _tensors(place):
                names.append(name or '""')
            inside += [(f"{name}.{k}".lstrip("."), v) for k, v in place.items() if type(k) is str]
        places = inside
    return names[:20]


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors with the wrapper prefixes that all keys share removed."""
    while prefix := next((p for p in WRAPPERS if all(k.startswith(p) for k in tensors)), None):
        tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return tensors
