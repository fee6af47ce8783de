"""Folders of class folders: the layout of torchvision's ImageFolder and of most downloads."""

import os
from typing import Any

import numpy as np

from jaxar.data import transform
from jaxar.data.source import BadRecord

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def list_classes(root: str, endings: tuple[str, ...]) -> tuple[list[str], list[str], np.ndarray]:
    """Returns (classes, files, labels) of the layout root/class_name/file.

    Classes are sorted by name and numbered from 0, files are sorted within their class and named
    relative to the root, labels are int32. Names that start with a dot are passed over.

    Args:
      root: Folder of class folders.
      endings: Lower-case endings of the files that count.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: it has no class folders, or one of them holds no such file.
    """
    if not os.path.isdir(root):
        raise FileNotFoundError(
            f"There is no folder {root!r}: set the path to the folder that holds one folder for "
            "each class."
        )
    with os.scandir(root) as entries:
        classes = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if not classes:
        raise ValueError(
            f"{root} has no class folders: arrange its files as {root}/class_name/file{endings[0]}."
        )
    files, counts = [], []
    for name in classes:
        found = sorted(
            file
            for file in os.listdir(os.path.join(root, name))
            if file.lower().endswith(endings) and not file.startswith(".")
        )
        files += [os.path.join(name, file) for file in found]
        counts.append(len(found))
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        raise ValueError(
            f"{len(empty)} of {len(classes)} class folders of {root} hold no file that ends in "
            f"{', '.join(endings)}, the first is {empty[0]!r}: remove or fill them."
        )
    return classes, files, np.repeat(np.arange(len(classes), dtype=np.int32), counts)


class ImageFolder:
    """Images of path/[split/]class_name/file as (h, w, channels) in [-1, 1].

    Centre-cropped as in ADM (`transform.center_crop`) and mirrored half of the time.

    Args:
      path: Folder of the data; ~ stands for the home folder.
      size: Side of the square, or (height, width).
      channels: 1 for greyscale, 3 for colour.
      flip: Whether to mirror at random.
      split: Folder below `path`, such as "train"; empty for none.

    Raises:
      FileNotFoundError: the folder does not exist.
      ValueError: no class folders, an empty class, or a wrong size or number of channels.
    """

    def __init__(
        self,
        path: str,
        size: int | tuple[int, ...],
        channels: int = 3,
        flip: bool = True,
        split: str = "",
    ):
        transform.mode_of(channels)
        self.shape = (*transform.pair(size), channels)
        self.flip = flip
        self.root = os.path.join(os.path.expanduser(path), split)
        self.classes, self._files, self._labels = list_classes(self.root, IMAGES)
        self.num_classes = len(self.classes)

    def __len__(self) -> int:
        return len(self._files)

    def labels(self) -> np.ndarray:
        """Returns the labels (len,) int32."""
        return self._labels

    def read(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Returns one image and its label; `rng` decides about the mirror.

        Raises:
          BadRecord: the file is missing, damaged or too large.
        """
        path = os.path.join(self.root, self._files[index])
        data = read_image(path, path, self.shape)
        return {
            "data": transform.flip(data, rng) if self.flip else data,
            "condition": self._labels[index],
        }


def read_image(file: Any, name: str, shape: tuple[int, int, int]) -> np.ndarray:
    """Returns the centre crop of an image file, float32 of `shape` = (h, w, c) in [-1, 1].

    Args:
      file: Path or open binary file.
      name: What to call it in the error.
      shape: Height, width and channels of the result.

    Raises:
      BadRecord: the file is missing, damaged or too large.
    """
    try:
        image = transform.decode(file, shape[2])
        return transform.to_array(transform.center_crop(image, shape[:2]), shape[2])
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises nearly anything for a damaged file
        raise BadRecord(f"{name}: {type(error).__name__}: {error}") from error
