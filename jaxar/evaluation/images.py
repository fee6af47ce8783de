"""Images to evaluate, from a folder, an .npz or a data source, which are read in chunks."""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxar.config import ConfigError
from jaxar.data import transform
from jaxar.data.ahead import batches_ahead
from jaxar.data.folder import IMAGES, read_image
from jaxar.data.source import BadRecord
from jaxar.evaluation.reference import image_batches
from jaxar.runs import picture


@dataclasses.dataclass(frozen=True)
class Images:
    """Images in a fixed order.

    Attributes:
      name: Name for the result file.
      count: Number of images.
      stamp: A value that changes with the images: names, sizes and times of files.
      chunks: chunks(size, first) yields uint8 (n, h, w, 3) arrays of `size` images from chunk
        number `first` on; the last may be shorter.
    """

    name: str
    count: int
    stamp: Any
    chunks: Callable[[int, int], Iterator[np.ndarray]]


def open_images(path: str | Path, *, size: tuple[int, int] | None = None) -> Images:
    """Returns the images of a folder and its subfolders, or of `arr_0` in an .npz.

    Args:
      path: Folder or .npz.
      size: (height, width) to which images of a folder are resized by ADM's centre crop; None where
        all have one size already.

    Raises:
      ConfigError: the path does not exist, or it has no images.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path, size)
    if path.suffix == ".npz" and path.is_file():
        return _array(path)
    raise ConfigError(f"{path} is neither a folder of images nor an .npz with arr_0.")


def from_source(source: Any, name: str) -> Images:
    """Returns the images of a data source, in its order, at 8 bits."""

    def read(number: int) -> np.ndarray:
        data = source.read(number, np.random.default_rng(number))["data"]
        return coloured(picture.to_uint8(data))

    def chunks(size: int, first: int) -> Iterator[np.ndarray]:
        for images in batches_ahead(read, range(first * size, len(source)), size):
            yield np.stack(images)

    return Images(name, len(source), [name, len(source)], chunks)


def coloured(images: np.ndarray) -> np.ndarray:
    """Returns uint8 images (..., h, w, 3); grey ones, (..., h, w, 1), repeat their channel."""
    return np.broadcast_to(images, (*images.shape[:-1], 3)) if images.shape[-1] == 1 else images


def _folder(path: Path, size: tuple[int, int] | None) -> Images:
    """Returns the images of a folder; see `open_images`."""
    files = sorted(
        os.path.join(folder, file)
        for folder, _, names in os.walk(path)
        for file in names
        if file.lower().endswith(IMAGES) and not file.startswith(".")
    )
    if not files:
        raise ConfigError(f"{path} holds no images ({', '.join(IMAGES)}).")

    def read(file: str) -> np.ndarray:
        if size is not None:
            return picture.to_uint8(read_image(file, file, (*size, 3)))
        try:
            return np.asarray(transform.decode(file, 3))
        except Exception as error:  # Pillow raises nearly anything for a damaged file
            raise BadRecord(f"{file}: {type(error).__name__}: {error}") from error

    def chunks(count: int, first: int) -> Iterator[np.ndarray]:
        for images in batches_ahead(read, files[first * count :], count):
            sizes = {image.shape[:2] for image in images}
            if len(sizes) > 1:
                raise ConfigError(
                    f"{path} holds images of several sizes, such as {sorted(sizes)[:2]}: all "
                    "samples must have one size."
                )
            yield np.stack(images)

    facts = [(file, os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in files]
    return Images(path.name, len(files), facts, chunks)


def _array(path: Path) -> Images:
    """Returns the images of an .npz; see `open_images`."""
    try:
        count, _ = image_batches(path, 1)
    except ValueError as error:
        raise ConfigError(str(error)) from error

    def chunks(size: int, first: int) -> Iterator[np.ndarray]:
        for images in itertools.islice(image_batches(path, size)[1], first, None):
            yield coloured(images if images.ndim == 4 else images[..., None])

    facts = [path.name, path.stat().st_size, path.stat().st_mtime_ns]
    return Images(path.name, count, facts, chunks)
