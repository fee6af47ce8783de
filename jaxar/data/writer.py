"""Writing the folder that `latents.LatentRecords` reads, shard after shard, whatever happens.

A shard takes its name when it is whole; what belongs to it (its labels, how far the source was
read) stands in a hidden file beside it. Writing that was cut short goes on after the last whole
shard. The manifest comes last: a folder with a manifest is a whole one.
"""

import itertools
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxar.data.records import FORMAT, LABELS, MANIFEST, Layout
from jaxar.data.source import check_labels
from jaxar.files import Replacing, replace_text
from jaxar.tree import changes

Example = tuple[np.ndarray, np.ndarray | None, int]
"""Moments (h, w, 2c), those of the mirror image or None, and a label."""

_PROGRESS = ".progress.json"


class LatentWriter:
    """Writes latents; opened again on a folder that is not finished, it knows how far that is.

    Attributes:
      read: Records of the source that the whole shards have taken.
      left_out: Why records of the source are in none of them, a line each.
    """

    def __init__(
        self,
        path: str,
        layout: Layout,
        *,
        num_classes: int,
        facts: Mapping[str, Any] | None = None,
    ):
        """Opens the folder, or creates it.

        Args:
          path: Folder without a manifest.
          layout: What a record is.
          num_classes: Labels have to lie in [0, num_classes).
          facts: More entries of the manifest that JSON can hold, such as the autoencoder. A folder
            that was begun with others is refused.

        Raises:
          ValueError: the folder is finished, or was begun with other settings.
        """
        self._root, self._layout, self._classes = os.path.expanduser(path), layout, num_classes
        if os.path.exists(os.path.join(self._root, MANIFEST)):
            raise ValueError(
                f"{self._root} already holds latents: choose another folder or remove it."
            )
        os.makedirs(self._root, exist_ok=True)
        self._facts = {
            **json.loads(json.dumps(facts or {})),
            "format": FORMAT,
            "shape": list(layout.shape),
            "dtype": layout.dtype,
            "flip": layout.flip,
            "num_classes": num_classes,
        }
        self._shards: list[dict[str, Any]] = []
        self.left_out: list[str] = []
        self.read = 0
        self._resume()

    def write_shard(
        self, examples: Iterable[Example], *, read: int, left_out: Sequence[str] = ()
    ) -> None:
        """Writes one shard and remembers it.

        Args:
          examples: Its records.
          read: Records of the source behind it, with all shards before.
          left_out: Why records of the source are not in it, a line each; read once the examples
            are exhausted.

        Raises:
          ValueError: an example does not fit the layout, or its label is out of range.
        """
        from array_record.python.array_record_module import ArrayRecordWriter

        name = f"latents-{len(self._shards):05d}.array_record"
        path, hidden = self._path(name), self._path(f".{name}.partial")
        writer, labels = ArrayRecordWriter(hidden, "group_size:1"), []
        for moments, mirrored, label in examples:
            where = f"latent {sum(s['count'] for s in self._shards) + len(labels)}"
            check_labels(np.atleast_1d(label), self._classes, where)
            writer.write(self._layout.encode(moments, mirrored, label))
            labels.append(int(label))
        writer.close()
        os.replace(hidden, path)
        self._shards.append(
            {"name": name, "count": len(labels), "bytes": os.path.getsize(path), "labels": labels}
        )
        self.left_out += left_out
        self.read = read
        state = dict(facts=self._facts, shards=self._shards, left_out=self.left_out, read=self.read)
        replace_text(self._path(_PROGRESS), json.dumps(state))

    def finish(self) -> int:
        """Returns the number of latents, after writing labels and manifest.

        Raises:
          ValueError: nothing was written.
        """
        labels = np.concatenate([shard.pop("labels") for shard in self._shards] or [[]])
        if not len(labels):
            raise ValueError(f"There are no latents to write to {self._root}.")
        stored = labels.astype(np.int32)
        with Replacing(self._path(LABELS)) as file:
            np.save(file, stored)
        manifest = {
            **self._facts,
            "count": len(stored),
            "counts": np.bincount(stored, minlength=self._classes).tolist(),
            "left_out": self.left_out,
            "labels_crc32": zlib.crc32(stored.tobytes()),
            "shards": self._shards,
        }
        replace_text(self._path(MANIFEST), json.dumps(manifest, indent=1))
        os.remove(self._path(_PROGRESS))
        return len(stored)

    def _resume(self) -> None:
        """Takes over the whole shards that an earlier writer left."""
        path = self._path(_PROGRESS)
        if not os.path.exists(path):
            return
        with open(path, encoding="utf-8") as file:
            state = json.load(file)
        changed = changes(self._facts, state["facts"])
        if changed:
            raise ValueError(
                f"{self._root} was begun with other settings ({'; '.join(changed)}): choose "
                "another folder or remove it."
            )
        self._shards, self.left_out = state["shards"], state["left_out"]
        self.read = state["read"]

    def _path(self, name: str) -> str:
        return os.path.join(self._root, name)


def write_latents(
    path: str,
    examples: Iterable[Example],
    *,
    num_classes: int,
    dtype: str = "float32",
    shard_size: int = 8192,
    extra: Mapping[str, Any] | None = None,
) -> int:
    """Returns the number of latents written as a folder that `LatentRecords` reads.

    Args:
      path: Folder, created if need be, without a manifest.
      examples: Moments, those of the mirror image or None, and the label of each record; of a
        folder that was begun before, the records it has already are passed over.
      num_classes: Labels have to lie in [0, num_classes).
      dtype: "float32" or "float16", how moments are stored.
      shard_size: Records in a shard.
      extra: More entries of the manifest that JSON can hold.

    Raises:
      ValueError: the folder is in use, there are no examples, or one does not fit the others.
    """
    examples = iter(examples)
    first = next(examples, None)
    if first is None:
        raise ValueError(f"There are no latents to write to {os.path.expanduser(path)}.")
    layout = Layout(np.shape(first[0]), dtype, first[1] is not None)
    writer = LatentWriter(path, layout, num_classes=num_classes, facts=extra)
    rest = itertools.islice(itertools.chain([first], examples), writer.read, None)
    for shard in _chunks(rest, shard_size):
        writer.write_shard(shard, read=writer.read + len(shard))
    return writer.finish()


def _chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Yields lists of `size` items, of which the last may be shorter."""
    while chunk := list(itertools.islice(items, size)):
        yield chunk
