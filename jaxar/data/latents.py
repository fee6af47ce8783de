"""Latents computed once and kept on disk: the moments that an autoencoder gives for each image.

A record holds the moments of an image and, mostly, those of its mirror image; which of the two is
read is drawn at random. Moments are mean and log-variance, stacked along the channels.
"""

import os
from typing import Any

import numpy as np

from jaxar.data.folder import list_classes
from jaxar.data.records import LABELS, RecordLayout, read_labels, read_manifest
from jaxar.data.source import BadRecord
from jaxar.data.transform import coin

_MAX_MEMBER = 1 << 28  # bytes of one array; more is no latent but a trap
_ATTEMPTS = 100  # files that may be unreadable before a folder counts as no cache


class LatentFolder:
    """The latent cache of the official MAR and xAR code, read as it is; data is (h, w, 2c).

    The layout is path/class_name/name.npz with the arrays `moments` and `moments_flip`, both
    (2c, h, w) float32. Shape and classes are found in the folder.
    Source: https://github.com/LTH14/mar, `main_cache.py`.

    Args:
      path: Folder of class folders; ~ stands for the home folder.
      flip: Whether to read `moments_flip` half of the time.

    Raises:
      FileNotFoundError: the folder does not exist.
      ValueError: no class folders, an empty class, or none of the first files can be read.
    """

    def __init__(self, path: str, flip: bool = True):
        self.root = os.path.expanduser(path)
        self.flip = flip
        self.classes, self._files, self._labels = list_classes(self.root, (".npz",))
        self.num_classes = len(self.classes)
        self.shape = self._first_shape()

    def __len__(self) -> int:
        return len(self._files)

    def labels(self) -> np.ndarray:
        """Returns the labels (len,) int32."""
        return self._labels

    def read(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Returns one latent and its label; `rng` chooses the image or its mirror.

        Raises:
          BadRecord: the file is missing or damaged, lacks an array, or holds another shape.
        """
        key = "moments_flip" if self.flip and coin(rng) else "moments"
        path = os.path.join(self.root, self._files[index])
        data = _read_npz(path, key)
        if data.shape != self.shape:
            raise BadRecord(f"{path}: {key} has shape {data.shape}, not {self.shape}")
        return {"data": _finite(data, path), "condition": self._labels[index]}

    def _first_shape(self) -> tuple[int, int, int]:
        error = None
        for file in self._files[:_ATTEMPTS]:
            try:
                height, width, channels = _read_npz(os.path.join(self.root, file), "moments").shape
                return height, width, channels
            except BadRecord as bad:
                error = error or bad
        raise ValueError(f"None of the first files of {self.root} is a latent: {error}")


def _read_npz(path: str, key: str) -> np.ndarray:
    """Returns one array of a file, (2c, h, w) on disk, as float32 (h, w, 2c)."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            size = arrays.zip.getinfo(f"{key}.npy").file_size
            if size > _MAX_MEMBER:
                raise ValueError(f"{key} takes {size} bytes, the limit is {_MAX_MEMBER}")
            array = arrays[key]
        if array.ndim != 3 or array.dtype.kind != "f":
            raise ValueError(f"{key} is {array.dtype} {array.shape}, not float (2c, h, w)")
    except MemoryError:
        raise
    except Exception as error:  # zip, zlib, header and key errors have no common type
        raise BadRecord(f"{path}: {type(error).__name__}: {error}") from error
    return np.ascontiguousarray(array.transpose(1, 2, 0), np.float32)


class LatentRecords:
    """Latents in ArrayRecord shards, (h, w, 2c): a few large files that name what they hold.

    The folder holds `*.array_record` shards, `labels.npy` and `manifest.json`, see `records.py`.
    The manifest stands in the attribute `manifest`, with everything that was added to it.

    Args:
      path: The folder; ~ stands for the home folder.
      flip: Whether to read the mirror image half of the time, where the records have it.

    Raises:
      ValueError: the manifest is missing or does not fit this program or the files beside it.
    """

    def __init__(self, path: str, flip: bool = True):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.root = os.path.expanduser(path)
        self.manifest = read_manifest(self.root)
        self.shape = tuple(self.manifest["shape"])
        self.num_classes = self.manifest["num_classes"]
        self.flip = flip and self.manifest["flip"]
        self._layout = RecordLayout(self.shape, self.manifest["dtype"], self.manifest["flip"])
        self._labels = read_labels(self.root, self.manifest)
        shards = self.manifest["shards"]
        self._paths = [os.path.join(self.root, shard["name"]) for shard in shards]
        self._starts = np.cumsum([0] + [shard["count"] for shard in shards])
        # With the counts of the manifest no shard is opened before it is read.
        self._records = ArrayRecordDataSource(
            [f"{p}[0:{shard['count']}]" for p, shard in zip(self._paths, shards, strict=True)]
        )

    def __len__(self) -> int:
        return len(self._labels)

    def labels(self) -> np.ndarray:
        """Returns the labels (len,) int32."""
        return self._labels

    def read(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Returns one latent and its label; `rng` chooses the image or its mirror.

        Raises:
          BadRecord: a checksum fails, or the record does not fit the manifest.
        """
        mirrored = self.flip and coin(rng)
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        name = f"{self._paths[shard]} record {index - self._starts[shard]}"
        try:
            data, label = self._layout.decode(self._records[index], mirrored)
        except Exception as error:  # the reader reports damage by several types
            raise BadRecord(f"{name}: {type(error).__name__}: {error}") from error
        if label != self._labels[index]:
            raise BadRecord(f"{name}: its label is {label}, {LABELS} says {self._labels[index]}")
        return {"data": _finite(data, name), "condition": self._labels[index]}


def _finite(data: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(data).all():
        raise BadRecord(f"{name}: the latent is not finite")
    return data
