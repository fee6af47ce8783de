"""What a source of records is, and the two that live in memory."""

from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxar.data.transform import pair


class BadRecord(Exception):
    """A record that cannot be read; its text names the file and why."""


@runtime_checkable
class Source(Protocol):
    """Numbered records of one shape; the loader decides their order.

    Attributes:
      shape: (h, w, c) of the data of one record.
      num_classes: Labels lie in [0, num_classes).
    """

    shape: tuple[int, int, int]
    num_classes: int

    def __len__(self) -> int:
        """Returns the number of records."""
        ...

    def labels(self) -> np.ndarray | None:
        """Returns the labels (len,) int32 without reading data; None if that is impossible."""
        ...

    def read(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Returns {"data": float32 (h, w, c), "condition": int32} of one record.

        A pure function of (index, rng), called from several threads and processes at once.

        Raises:
          BadRecord: the record cannot be read.
        """
        ...


def check_labels(labels: Any, num_classes: int, where: str) -> np.ndarray:
    """Returns the labels as int32 (n,) after checking them.

    Args:
      labels: n integers.
      num_classes: They have to lie in [0, num_classes).
      where: What holds them, for the error.

    Raises:
      ValueError: labels are not whole numbers of one dimension, or outside of the range.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or (labels.size and labels.dtype.kind not in "iu"):
        raise ValueError(
            f"{where} has labels of type {labels.dtype} and shape {labels.shape}: "
            "they have to be integers, one for each record."
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"{where} has labels from {labels.min()} to {labels.max()}, "
            f"outside of 0 to {num_classes - 1} for {num_classes} classes."
        )
    return labels.astype(np.int32)


class Arrays:
    """Records held in memory, for tests, notebooks and small data.

    Args:
      data: (b, h, w, c), images in [-1, 1] or latents; kept as float32.
      labels: (b,) integers in [0, num_classes).
      num_classes: Number of classes.

    Raises:
      ValueError: the shapes do not fit each other or a label is out of range.
    """

    def __init__(self, data: np.ndarray, labels: Any, num_classes: int):
        self._data = np.asarray(data, np.float32)
        self._labels = check_labels(labels, num_classes, "the array of labels")
        if self._data.ndim != 4 or len(self._data) != len(self._labels):
            raise ValueError(
                f"data has shape {self._data.shape} and labels {self._labels.shape}: "
                "they have to be (b, h, w, c) and (b,)."
            )
        height, width, channels = self._data.shape[1:]
        self.shape = (height, width, channels)
        self.num_classes = num_classes

    def __len__(self) -> int:
        return len(self._labels)

    def labels(self) -> np.ndarray:
        """Returns the labels (len,) int32."""
        return self._labels

    def read(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Returns one record; `rng` is not used."""
        return {"data": self._data[index], "condition": self._labels[index]}


class Digits(Arrays):
    """The 1,797 handwritten digits that come with scikit-learn, (size, size, 1) in [-1, 1].

    Needs no download. Of each class the last 20 % of a fixed permutation are held out. The 8x8
    originals are enlarged by a bicubic filter, with one pixel of background around them.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine
    Learning Repository, 1998 (CC BY 4.0), https://doi.org/10.24432/C50P49; its test part, as
    `sklearn.datasets.load_digits` holds it.

    Args:
      split: "train" (1,442 records), "held_out" (355) or "all".
      size: Height and width; 8 gives the originals, without a border.

    Raises:
      ValueError: unknown split, or size below 8.
    """

    def __init__(self, split: str = "train", size: int = 16):
        from sklearn.datasets import load_digits

        if size < 8:
            raise ValueError(f"the digits are 8x8: size must be at least 8, got {size}.")
        grey, labels = load_digits(return_X_y=True)
        chosen = _split(labels, split)
        images = grey[chosen].reshape(-1, 8, 8).astype(np.float32) / 8 - 1
        super().__init__(_enlarge(images, size)[..., None], labels[chosen], 10)


def _split(labels: np.ndarray, split: str) -> np.ndarray:
    """Returns the sorted record numbers of a split."""
    if split not in ("train", "held_out", "all"):
        raise ValueError(f"split must be 'train', 'held_out' or 'all', got {split!r}.")
    held_out = np.zeros(len(labels), bool)
    shuffle = np.random.RandomState(0)
    for label in np.unique(labels):
        members = shuffle.permutation(np.flatnonzero(labels == label))
        held_out[members[len(members) - len(members) // 5 :]] = True
    return np.flatnonzero((held_out == (split == "held_out")) | (split == "all"))


def _enlarge(images: np.ndarray, size: int) -> np.ndarray:
    """Returns images (b, 8, 8) at (b, size, size): bicubic to size - 2 and a border of -1."""
    from PIL import Image

    height, width = pair(size)
    if size == 8:
        return images
    inner = (width - 2, height - 2)
    large = [np.asarray(Image.fromarray(x).resize(inner, Image.Resampling.BICUBIC)) for x in images]
    padded = np.pad(np.stack(large), ((0, 0), (1, 1), (1, 1)), constant_values=-1)
    return np.clip(padded, -1, 1)
