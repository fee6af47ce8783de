"""What samples are compared with: statistics and images in .npz files, read with distrust.

An .npz is a ZIP archive of arrays, one a member. ADM's hold `mu` and `sigma` of 2,048 features,
`mu_s` and `sigma_s` of the spatial ones, and images in `arr_0`; pytorch-fid's and torch-fidelity's
hold `mu` and `sigma`. No objects are read, sizes are compared before memory is taken, and images
are never in memory together.
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
"""Numbers of a feature: their covariance then takes 2 GiB."""
INFLATION = 1040
"""No more bytes than this can come of one compressed by DEFLATE; a file that says so lies."""

DAMAGE = (
    EOFError,
    NotImplementedError,
    OSError,  # a place before the beginning of the file
    RuntimeError,
    SyntaxError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What Python's readers raise for a damaged, encrypted or strangely packed archive."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """Statistics and images of a reference set; the arrays are float64.

    Attributes:
      mean: (d,) of the features, or None where the file holds images only.
      covariance: (d, d), or None.
      spatial_mean: The same of ADM's spatial features, or None.
      spatial_covariance: The same.
      has_images: Whether `image_batches` can read images from the file.
      sha256: Of the file, in hexadecimal.
    """

    mean: np.ndarray | None
    covariance: np.ndarray | None
    spatial_mean: np.ndarray | None
    spatial_covariance: np.ndarray | None
    has_images: bool
    sha256: str


def read_reference(path: str | Path) -> Reference:
    """Returns what an .npz of ADM, torch-fidelity or pytorch-fid holds.

    Raises:
      OSError: the file cannot be opened.
      ValueError: an array is missing, misshapen, not finite or damaged, or it is no .npz.
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
      path: Of the .npz.
      pool: Mean and covariance of the pooled features.
      spatial: The same of the spatial features.
    """
    arrays = {"mu": pool.mean, "sigma": pool.covariance}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean, "sigma_s": spatial.covariance}
    with Replacing(path) as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]: one of these is allow_pickle


def image_batches(path: str | Path, batch: int) -> tuple[int, Iterator[np.ndarray]]:
    """Returns how many images `arr_0` of an .npz holds, and an iterator over batches of them.

    A batch is a uint8 array (b, h, w, c) or, if the file has it so, (b, h, w); the last is smaller.
    Only one is in memory. The iterator raises ValueError where the file is damaged.

    Raises:
      OSError: the file cannot be opened.
      ValueError: it is no .npz, has no `arr_0`, or that holds no uint8 images.
    """
    with _opened(path) as archive:
        count = _images(archive).shape[0]
    return count, _batches(path, batch)


def _batches(path: str | Path, batch: int) -> Iterator[np.ndarray]:
    with _opened(path) as archive:
        images = _images(archive)
        count, *size = images.shape
        for start in range(0, count, batch):
            part = (min(batch, count - start), *size)
            yield np.frombuffer(_take(images, math.prod(part)), np.uint8).reshape(part)


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[zipfile.ZipFile]:
    """Opens an archive; everything wrong inside becomes a ValueError that names the file."""
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
    """Returns a mean and its covariance, or None twice where there is neither."""
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
        raise ValueError(f"holds {name} of shape {shape} for a mean of {size} numbers.")
    if dtype.kind != "f" or dtype.itemsize not in (4, 8):
        raise ValueError(f"holds {name} as {dtype} instead of float32 or float64.")
    flat = np.frombuffer(_take(array, math.prod(shape) * dtype.itemsize), dtype)
    values = flat.reshape(shape, order="F" if array.fortran else "C").astype(np.float64, order="C")
    if not np.isfinite(values).all():
        raise ValueError(f"holds numbers in {name} that are not finite.")
    return values


class _Array(NamedTuple):
    """An array in an archive.

    Attributes:
      file: Binary file that stands at the first element.
      shape: Of the array.
      dtype: Of its elements.
      fortran: Whether the first axis runs fastest.
    """

    file: Any
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool


def _images(archive: zipfile.ZipFile) -> _Array:
    """Returns the array of the images, which is one of uint8 images in C order."""
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
    """Returns an array whose header and size agree, before anything of it is read."""
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
