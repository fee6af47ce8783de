"""Tensors inside a file: their positions, reading and checksums.

Every format is reduced to tensors over spans of bytes. A tensor is read on access into a new array;
nothing of the file stays in memory.
"""

import math
import os
import threading
import zlib
from typing import NamedTuple

import numpy as np

from jaxar.weights.tables import WeightsError

CHUNK = 1 << 20
"""Bytes read at a time: they are still in the processor's cache when their checksum is computed."""
FREE_ELEMENTS = 1 << 20
"""Most elements of a tensor whose storage has fewer, as in expanded tensors."""
MAX_AXES = 32
"""Most axes of a tensor, half of what NumPy allows."""
DEFLATE_RATIO = 1100
"""Most bytes per compressed byte: DEFLATE reaches at most 1032."""
AGAIN = "the file is damaged: fetch it again"
DISTRUST = "it is not a plain weights file: do not use it"


class Span(NamedTuple):
    """Consecutive bytes of a file.

    Attributes:
      start: Offset in the file.
      size: Number of unpacked bytes.
      crc: CRC-32 of the unpacked bytes; None if the format has none.
      packed: Number of bytes in the file if DEFLATE-compressed; None if not compressed.
    """

    start: int
    size: int
    crc: int | None = None
    packed: int | None = None


class Tensor(NamedTuple):
    """A strided view of a span.

    Attributes:
      span: Its bytes, possibly shared with other tensors.
      dtype: Dtype of an element.
      shape: Shape of the tensor.
      strides: Strides in elements.
      offset: Bytes of the span before the first element.
    """

    span: Span
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def extent(self) -> int:
        """Returns the number of elements of the span from the tensor's first to its last."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))

    def checked(self) -> "Tensor":
        """Returns the tensor itself.

        Raises:
          WeightsError: it reaches beyond its span, or has far more elements than its span.
        """
        numbers = (*self.shape, *self.strides, self.offset)
        if any(type(n) is not int or n < 0 for n in numbers):
            raise WeightsError(f"holds a tensor with an invalid size; {DISTRUST}")
        if len(self.shape) != len(self.strides) or len(self.shape) > MAX_AXES:
            raise WeightsError(f"holds a tensor of {len(self.shape)} axes; {DISTRUST}")
        if self.offset + self.extent * self.dtype.itemsize > self.span.size:
            raise WeightsError(f"holds a tensor that reaches beyond its storage; {AGAIN}")
        # Empty axes are left out, so that the other axes are bounded too.
        if math.prod(filter(None, self.shape)) > max(
            FREE_ELEMENTS, self.span.size // self.dtype.itemsize
        ):
            raise WeightsError(f"holds a tensor larger than its storage; {DISTRUST}")
        return self


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the strides, in elements, of an array whose last axis varies fastest."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


class Reader:
    """An open file. Several threads may read from it."""

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115
            self.size = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise WeightsError(f"cannot be read ({error.strerror}); check the path") from error
        self._lock = threading.Lock()
        self._verified: set[Span] = set()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def take(self, start: int, size: int) -> bytes:
        """Returns bytes of the file; raises WeightsError if it is too short."""
        if start < 0 or size < 0 or start + size > self.size:
            raise WeightsError(f"ends too early; {AGAIN}")
        out = bytearray(size)
        self._fill(start, memoryview(out))
        return bytes(out)

    def tensor(self, tensor: Tensor) -> np.ndarray:
        """Returns a tensor, read from the file.

        Raises:
          WeightsError: the checksum of its storage differs, or the file has become shorter.
        """
        flat = np.empty(tensor.extent, tensor.dtype)
        if flat.size:
            self.read(tensor.span, tensor.offset, flat.view(np.uint8).data)
        if not flat.size or tensor.strides == row_major(tensor.shape):
            return flat.reshape(tensor.shape)
        strides = [step * flat.itemsize for step in tensor.strides]
        return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides).copy()

    def read(self, span: Span, skip: int, out: memoryview) -> None:
        """Fills `out` with bytes of a span, after skipping the first `skip` bytes.

        The first read of any part of a span checks the checksum of the whole span.

        Raises:
          WeightsError: the checksum differs, or the file has become shorter.
        """
        if span.packed is not None:
            self._unpack(span, span.packed, skip, out)
        elif span.crc is None or span in self._verified:
            self._fill(span.start + skip, out)
        else:
            end = skip + len(out)
            crc = self._sum(span.start, skip, 0)
            crc = self._fill(span.start + skip, out, crc)
            self._verify(span, self._sum(span.start + end, span.size - end, crc))

    def peek(self, span: Span, out: memoryview) -> None:
        """Fills `out` with the first bytes of a span, without checking its checksum."""
        self.read(span._replace(crc=None), 0, out)

    def _verify(self, span: Span, crc: int) -> None:
        if crc != span.crc:
            raise WeightsError(f"holds a tensor whose checksum differs; {AGAIN}")
        self._verified.add(span)

    def _fill(self, start: int, out: memoryview, crc: int | None = None) -> int:
        """Returns the CRC continued from `crc`, 0 if that is None, after filling `out`."""
        for at in range(0, len(out), CHUNK):
            chunk = out[at : at + CHUNK]
            self._chunk(start + at, chunk)
            if crc is not None:
                crc = zlib.crc32(chunk, crc)
        return crc or 0

    def _chunk(self, start: int, out: memoryview) -> None:
        filled = 0
        while filled < len(out):
            try:
                with self._lock:
                    self._file.seek(start + filled)
                    count = self._file.readinto(out[filled:])
            except OSError as error:
                raise WeightsError(f"cannot be read ({error.strerror}); {AGAIN}") from error
            if not count:
                raise WeightsError(f"ends too early; {AGAIN}")
            filled += count

    def _sum(self, start: int, size: int, crc: int) -> int:
        """Returns the CRC continued from `crc` over these bytes, which are not kept."""
        scratch = memoryview(bytearray(min(size, CHUNK)))
        for at in range(0, size, CHUNK):
            crc = self._fill(start + at, scratch[: size - at], crc)
        return crc

    def _unpack(self, span: Span, packed: int, skip: int, out: memoryview) -> None:
        """Fills `out` from a compressed span; unpacks no further than `out` needs."""
        unpacker, crc, done, end = zlib.decompressobj(-zlib.MAX_WBITS), 0, 0, skip + len(out)
        for at in range(0, packed, CHUNK):
            piece = self.take(span.start + at, min(CHUNK, packed - at))
            while done < end:
                try:
                    data = unpacker.decompress(piece, CHUNK)
                except zlib.error as error:
                    raise WeightsError(f"holds a member that does not unpack; {AGAIN}") from error
                if not data:
                    break
                piece, crc = unpacker.unconsumed_tail, zlib.crc32(data, crc)
                low, high = max(done, skip), min(done + len(data), end)
                if low < high:
                    out[low - skip : high - skip] = data[low - done : high - done]
                done += len(data)
        if done < end or (end == span.size and (done > end or span.crc not in (None, crc))):
            raise WeightsError(f"holds a tensor whose checksum differs; {AGAIN}")
