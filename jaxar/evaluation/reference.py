"""Reference statistics and images in .npz files, which are read as untrusted input.

An .npz is a ZIP archive with an array in each member. Those of ADM hold `mu` and `sigma` of 2,048
features, `mu_s` and `sigma_s` of the spatial features, and images in `arr_0`; those of pytorch-fid
and torch-fidelity hold `mu` and `sigma`. No objects are read, sizes are checked before memory is
allocated, and images are read in batches.
"""

import contextlib
import dataclasses
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxar.evaluation.frechet import Normal
from jaxar.files import Replacing, sha256

IMAGES = "arr_0"
MAX_FEATURES = 16_384
"""Largest dimension of features, whose covariance takes 2 GiB."""
INFLATION = 1040
"""Largest compression ratio of DEFLATE; a file that claims more is not genuine."""

DAMAGE = (
    EOFError,
    NotImplementedError,
    OSError,  # a seek to before the beginning of the file
    RuntimeError,
    SyntaxError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What Python's readers raise for archives that are damaged, encrypted or packed unusually."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """Statistics of a reference set, in float64, and whether its file has images.

    Attributes:
      mean: (d,) mean of the features; None where the file holds images only.
      covariance: (d, d) covariance of the features, or None.
      spatial_mean: Mean of ADM's spatial features, or None.
      spatial_covariance: Covariance of ADM's spatial features, or None.
      has_images: Whether `image_batches` can read images from the file.
      sha256: SHA-256 of the file, in hexadecimal.
    """

    mean: np.ndarray | None
    covariance: np.ndarray | None
    spatial_mean: np.ndarray | None
    spatial_covariance: np.ndarray | None
    has_images: bool
    sha256: str


def read_reference(path: str | Path) -> Reference:
    """Returns the reference in an .npz of ADM, torch-fidelity or pytorch-fid.

    Raises:
      OSError: the file cannot be opened.
      ValueError: an array is missing, misshapen, not finite or damaged, or the file is not an .npz.
    """
    with _opened(path) as archive:
        names = set(archive.namelist())
        mean, covariance = _statistics(archive, names, "mu", "sigma")
        spatial_mean, spatial_covariance = _statistics(archive, names, "mu_s", "sigma_s")
        has_images = f"{IMAGES}.npy" in names
        if mean is None and not has_images:
            raise ValueError(f"holds neither mu and sigma nor images ({IMAGES}).")
        if has_images:
            _images(archive)
    return Reference(
        mean, covariance, spatial_mean, spatial_covariance, has_images, sha256=sha256(path)
    )


def write_reference(path: str | Path, pool: Normal, spatial: Normal | None = None) -> None:
    """Writes statistics in ADM's layout; the file is whole or absent.

    Args:
      path: The .npz to write.
      pool: Mean and covariance of the pooled features.
      spatial: Mean and covariance of the spatial features, or None to leave them out.
    """
    arrays = {"mu": pool.mean, "sigma": pool.covariance}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean, "sigma_s": spatial.covariance}
    with Replacing(path) as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]: one of these is allow_pickle


def image_batches(path: str | Path, batch: int) -> tuple[int, Iterator[np.ndarray]]:
    """Returns the number of images in `arr_0` of an .npz, and an iterator over batches of them.

    A batch is uint8 (b, h, w, c), or (b, h, w) as the file has it; the last one may be smaller.
    Only one batch is in memory. The iterator raises ValueError where the file is damaged.

    Raises:
      OSError: the file cannot be opened.
      ValueError: the file is not an .npz, or its `arr_0` is missing or has no uint8 images.
    """
    with _opened(path) as archive:
        count = _images(archive).shape[0]
    return count, _batches(path, batch)


def _batches(path: str | Path, batch: int) -> Iterator[np.ndarray]:
    """Yields the batches of `image_batches`."""
    with _opened(path) as archive:
        images = _images(archive)
        count, *size = images.shape
        for start in range(0, count, batch):
            part = (min(batch, count - start), *size)
            yield np.frombuffer(_take(images, math.prod(part)), np.uint8).reshape(part)


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[zipfile.ZipFile]:
    """Opens an archive; all errors inside become a ValueError that names the file."""
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                yield archive
        except DAMAGE as error:
            raise ValueError(f"{path} is no .npz, or damaged: {error}") from error
        except ValueError as error:
            raise ValueError(f"{path} {error}") from error


def _statistics(
    archive: zipfile.ZipFile, names: set[str], mean: str, covariance: str
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Returns a mean and its covariance, or (None, None) where the file has neither."""
    missing = [name for name in (mean, covariance) if f"{name}.npy" not in names]
    if len(missing) == 2:
        return None, None
    if missing:
        raise ValueError(f"lacks {missing[0]}; {mean} and {covariance} belong together.")
    vector = _numbers(archive, mean, axes=1)
    return vector, _numbers(archive, covariance, axes=2, size=len(vector))


def _numbers(
    archive: zipfile.ZipFile, name: str, *, axes: int, size: int | None = None
) -> np.ndarray:
    """Returns a small array of floats as float64, (size,) or (size, size)."""
    array = _array(archive, name)
    shape, dtype = array.shape, array.dtype
    largest = MAX_FEATURES if size is None else size
    if len(shape) != axes or shape != shape[:1] * axes or max(shape) > largest:
        raise ValueError(f"holds {name} of shape {shape}, which is no {axes}-d statistics.")
    if size not in (None, shape[0]):
        raise ValueError(f"holds {name} of shape {shape} for a mean of dimension {size}.")
    if dtype.kind != "f" or dtype.itemsize not in (4, 8):
        raise ValueError(f"holds {name} as {dtype} instead of float32 or float64.")
    flat = np.frombuffer(_take(array, math.prod(shape) * dtype.itemsize), dtype)
    values = flat.reshape(shape, order="F" if array.fortran else "C").astype(np.float64, order="C")
    if not np.isfinite(values).all():
        raise ValueError(f"holds values in {name} that are not finite.")
    return values


class _Array(NamedTuple):
    """An array in an archive.

    Attributes:
      file: Binary file, positioned at the first element.
      shape: Shape of the array.
      dtype: Type of its elements.
      fortran: Whether elements are in Fortran order, with the first axis fastest.
    """

    file: Any
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool


def _images(archive: zipfile.ZipFile) -> _Array:
    """Returns the array of images; raises ValueError unless it is uint8 images in C order."""
    array = _array(archive, IMAGES)
    shape, dtype = array.shape, array.dtype
    images = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
    if dtype != np.uint8 or array.fortran or not images or min(shape) < 1:
        raise ValueError(
            f"holds {IMAGES} of shape {shape} and dtype {dtype}; images are uint8, (n, h, w, 3), "
            "(n, h, w, 1) or (n, h, w), in C order."
        )
    return array


def _array(archive: zipfile.ZipFile, name: str) -> _Array:
    """Returns an array, of which the header is read and compared with the size of the member."""
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise ValueError(f"lacks {name}.") from None
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"holds {name} packed in a way that NumPy does not use.")
    if info.file_size > INFLATION * (info.compress_size + 1):
        raise ValueError(f"claims more bytes in {name} than it can hold; do not trust this file.")
    file = archive.open(info)
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"holds {name} in version {version} of NumPy's format.")
    if dtype.hasobject:
        raise ValueError(f"holds objects in {name}, which are never read.")
    if min(shape, default=0) < 0:
        raise ValueError(f"holds {name} of shape {shape}.")
    if math.prod(shape) * dtype.itemsize != info.file_size - file.tell():
        raise ValueError(f"holds {name} of shape {shape} in {info.file_size} bytes: damaged.")
    return _Array(file, shape, dtype, fortran)


def _take(array: _Array, count: int) -> bytes:
    """Returns the next `count` bytes of an array."""
    data = array.file.read(count)
    if len(data) != count:
        raise ValueError("ends in the middle of an array.")
    return data
