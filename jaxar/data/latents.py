"""Latents computed once and kept on disk: the moments that an autoencoder gives for each image.

A record holds the moments of an image and, mostly, those of its mirror image; which of the two is
read is drawn at random. Moments are mean and log-variance, stacked along the channels.
"""

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxar.data.folder import list_classes
from jaxar.data.records import (
    FORMAT,
    LABELS,
    MANIFEST,
    Layout,
    Replacing,
    Shard,
    read_labels,
    read_manifest,
)
from jaxar.data.source import BadRecord, check_labels
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
        return {"data": _finite(data, path), "label": self._labels[index]}

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
        self._layout = Layout(self.shape, self.manifest["dtype"], self.manifest["flip"])
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
        return {"data": _finite(data, name), "label": self._labels[index]}


def _finite(data: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(data).all():
        raise BadRecord(f"{name}: the latent is not finite")
    return data


def write_latents(
    path: str,
    examples: Iterable[tuple[np.ndarray, np.ndarray | None, int]],
    *,
    num_classes: int,
    dtype: str = "float32",
    shard_size: int = 8192,
    extra: Mapping[str, Any] | None = None,
) -> int:
    """Returns the number of latents written as a folder that `LatentRecords` reads.

    Shards get their name when they are complete and the manifest is written last, so a folder with
    a manifest is a whole one. A run that was cut short is simply repeated.

    Args:
      path: Folder, created if need be, without a manifest.
      examples: (moments (h, w, 2c), the same of the mirror image or None, label) of each record.
      num_classes: Labels have to lie in [0, num_classes).
      dtype: "float32" or "float16", how moments are stored.
      shard_size: Records in a shard.
      extra: More entries of the manifest that JSON can hold, such as the name of the autoencoder.

    Raises:
      ValueError: the folder is in use, there are no examples, or one does not fit the others.
    """
    root = os.path.expanduser(path)
    if os.path.exists(os.path.join(root, MANIFEST)):
        raise ValueError(f"{root} already holds latents: choose another folder or remove it.")
    os.makedirs(root, exist_ok=True)
    layout, labels, shards, writer = None, [], [], None
    for moments, mirrored, label in examples:
        layout = layout or Layout(np.shape(moments), dtype, mirrored is not None)
        check_labels(np.atleast_1d(label), num_classes, f"latent {len(labels)}")
        record = layout.encode(moments, mirrored, label)
        writer = writer or Shard(root, len(shards))
        writer.write(record)
        labels.append(label)
        if writer.count == shard_size:
            shards.append(writer.close())
            writer = None
    if layout is None:
        raise ValueError(f"There are no latents to write to {root}.")
    if writer:
        shards.append(writer.close())

    stored = np.asarray(labels, np.int32)
    with Replacing(os.path.join(root, LABELS)) as file:
        np.save(file, stored)
    manifest = {
        **(extra or {}),
        "format": FORMAT,
        "shape": list(layout.shape),
        "dtype": layout.dtype,
        "flip": layout.flip,
        "num_classes": num_classes,
        "count": len(labels),
        "labels_crc32": zlib.crc32(stored.tobytes()),
        "shards": shards,
    }
    with Replacing(os.path.join(root, MANIFEST)) as file:
        file.write(json.dumps(manifest, indent=1).encode())
    return len(labels)
