"""The folder that `latents.LatentRecords` reads: shards of records, labels and a manifest.

`writer.LatentWriter` makes it.

`*.array_record` hold the records, one compressed and checked block each; `labels.npy` the labels as
int32 (n,); `manifest.json` what the records are, how many stand in which shard, and whatever else
the writer knew. The manifest is written last: a folder with a manifest is a whole one.
"""

import dataclasses
import json
import os
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxar.data.source import check_labels

FORMAT = "jaxar-latents-1"
MANIFEST = "manifest.json"
LABELS = "labels.npy"


@dataclasses.dataclass(frozen=True)
class RecordLayout:
    """The bytes of one record, little endian: int32 label, moments, moments of the mirror image.

    Attributes:
      shape: (h, w, 2c) of the moments.
      dtype: "float32" or "float16".
      flip: Whether the moments of the mirror image follow.
    """

    shape: tuple[int, ...]
    dtype: str
    flip: bool

    def __post_init__(self):
        if self.dtype not in ("float32", "float16"):
            raise ValueError(f"dtype must be 'float32' or 'float16', got {self.dtype!r}.")

    @property
    def size(self) -> int:
        """Returns the number of bytes of a record."""
        return 4 + (1 + self.flip) * self._member

    @property
    def _member(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    def encode(self, moments: np.ndarray, mirrored: np.ndarray | None, label: int) -> bytes:
        """Returns the record; raises ValueError if an array does not fit or is not finite."""
        members = (moments,) if mirrored is None else (moments, mirrored)
        if (mirrored is not None) != self.flip:
            raise ValueError("either all or none of the latents have a mirror image.")
        parts = [np.asarray(label, "<i4").tobytes()]
        for member in members:
            with np.errstate(over="ignore"):  # found by the finite check
                stored = np.asarray(member).astype(np.dtype(self.dtype).newbyteorder("<"))
            if stored.shape != tuple(self.shape) or not np.isfinite(stored).all():
                raise ValueError(
                    f"a latent has shape {stored.shape} and values from {np.min(member)} to "
                    f"{np.max(member)}: it has to be {self.shape} and finite as {self.dtype}."
                )
            parts.append(stored.tobytes())
        return b"".join(parts)

    def decode(self, record: bytes, mirrored: bool) -> tuple[np.ndarray, int]:
        """Returns (moments float32 (h, w, 2c), label); raises ValueError for another size."""
        if len(record) != self.size:
            raise ValueError(f"{len(record)} bytes instead of {self.size}")
        start = 4 + mirrored * self._member
        dtype = np.dtype(self.dtype).newbyteorder("<")
        moments = np.frombuffer(record, dtype, int(np.prod(self.shape)), start)
        return (
            moments.reshape(self.shape).astype(np.float32),
            int(np.frombuffer(record, "<i4", 1)[0]),
        )


def read_manifest(root: str) -> dict[str, Any]:
    """Returns the manifest after comparing it with this program and with the shards beside it."""
    path = os.path.join(root, MANIFEST)
    try:
        with open(path, encoding="utf-8") as file:
            manifest = json.load(file)
    except FileNotFoundError:
        raise ValueError(
            f"{root} has no {MANIFEST}: it is no folder of latents or its writing was cut short."
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path} is of format {found!r}, this program reads {FORMAT!r}.")
    wanted = {"shape": list, "dtype": str, "flip": bool, "num_classes": int, "count": int}
    wanted |= {"labels_crc32": int, "shards": list}
    wrong = [key for key, kind in wanted.items() if not isinstance(manifest.get(key), kind)]
    if wrong:
        raise ValueError(f"{path} lacks {', '.join(wrong)}, or they have another type.")
    shards = manifest["shards"]
    if not all(_is_shard(shard) for shard in shards):
        raise ValueError(f"{path} lists shards that are not (name, count, bytes) beside it.")
    held = sum(shard["count"] for shard in shards)
    if held != manifest["count"]:
        raise ValueError(f"{path} counts {manifest['count']} records, its shards hold {held}.")
    for shard in shards:
        file = os.path.join(root, shard["name"])
        size = os.path.getsize(file) if os.path.exists(file) else 0
        if size != shard["bytes"]:
            raise ValueError(f"{file} has {size} bytes, {MANIFEST} says {shard['bytes']}.")
    return manifest


def _is_shard(shard: Any) -> bool:
    kinds = {"name": str, "count": int, "bytes": int}
    return (
        isinstance(shard, dict)
        and all(isinstance(shard.get(key), kind) for key, kind in kinds.items())
        and os.path.basename(shard["name"]) == shard["name"]
    )


def read_labels(root: str, manifest: Mapping[str, Any]) -> np.ndarray:
    """Returns the labels (n,) int32 after comparing them with the manifest."""
    path = os.path.join(root, LABELS)
    try:
        labels = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    crc = zlib.crc32(np.asarray(labels, np.int32).tobytes())
    if len(labels) != manifest["count"] or crc != manifest["labels_crc32"]:
        raise ValueError(
            f"{path} holds {len(labels)} labels with CRC-32 {crc}, {MANIFEST} says "
            f"{manifest['count']} with {manifest['labels_crc32']}."
        )
    return check_labels(labels, manifest["num_classes"], path)
