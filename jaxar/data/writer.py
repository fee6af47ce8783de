"""Writing the folder that `latents.LatentRecords` reads, shard after shard, whatever happens.

A shard takes its name when it is whole; what belongs to it (its labels, what was left out) stands
in a hidden file beside it, with the settings. Writing that was cut short goes on with the shards
that are missing. The manifest comes last: a folder with a manifest is a whole one.
"""

import itertools
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxar.data.records import FORMAT, LABELS, MANIFEST, RecordLayout
from jaxar.data.source import check_labels
from jaxar.files import Replacing, replace_text
from jaxar.tree import changes

Example = tuple[np.ndarray, np.ndarray | None, int]
"""Moments (h, w, 2c), those of the mirror image or None, and a label."""

_STATE_NAME = r"\.latents-(\d+)\.json"


class LatentWriter:
    """Writes latents; opened again on a folder that is not finished, it knows what is there.

    Shards are numbered and independent: several processes may write different ones.
    """

    def __init__(
        self,
        path: str,
        layout: RecordLayout,
        *,
        num_classes: int,
        shard_size: int,
        facts: Mapping[str, Any] | None = None,
    ):
        """Opens the folder, or creates it.

        Args:
          path: Folder without a manifest.
          layout: What a record is.
          num_classes: Labels have to lie in [0, num_classes).
          shard_size: Records of the source in a shard, whether it holds them all or not.
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
        self.shard_size = shard_size
        self._facts = {
            **json.loads(json.dumps(facts or {})),
            "format": FORMAT,
            "shape": list(layout.shape),
            "dtype": layout.dtype,
            "flip": layout.flip,
            "num_classes": num_classes,
        }
        self._require_same_settings()

    def whole(self) -> list[int]:
        """Returns the numbers of the shards that are there, in order."""
        names = (re.fullmatch(_STATE_NAME, name) for name in os.listdir(self._root))
        return sorted(int(name[1]) for name in names if name)

    def left_out(self) -> list[str]:
        """Returns why records of the source are in none of the shards, a line each."""
        return [line for number in self.whole() for line in self._state(number)["left_out"]]

    def write_shard(
        self, examples: Iterable[Example], *, number: int, left_out: Sequence[str] = ()
    ) -> None:
        """Writes one shard and remembers it.

        Args:
          examples: Its records.
          number: Of the shard: it holds the records of the source from number x shard_size on.
          left_out: Why records of the source are not in it, a line each; read once the examples
            are exhausted.

        Raises:
          ValueError: an example does not fit the layout, or its label is out of range.
        """
        from array_record.python.array_record_module import ArrayRecordWriter

        name = f"latents-{number:05d}.array_record"
        path, hidden = self._path(name), self._path(f".{name}.partial")
        writer, labels = ArrayRecordWriter(hidden, "group_size:1"), []
        for moments, mirrored, label in examples:
            where = f"latent {number * self.shard_size + len(labels)}"
            check_labels(np.atleast_1d(label), self._classes, where)
            writer.write(self._layout.encode(moments, mirrored, label))
            labels.append(int(label))
        writer.close()
        os.replace(hidden, path)
        state = {"name": name, "count": len(labels), "bytes": os.path.getsize(path)}
        state |= {"labels": labels, "left_out": list(left_out), "settings": self._settings}
        replace_text(self._path(_state_name(number)), json.dumps(state))

    def finish(self) -> int:
        """Returns the number of latents, after writing labels and manifest.

        Raises:
          ValueError: nothing was written.
        """
        numbers, left_out = self.whole(), self.left_out()
        shards = [self._state(number) for number in numbers]
        labels = np.concatenate([shard.pop("labels") for shard in shards] or [[]])
        if not len(labels):
            raise ValueError(f"There are no latents to write to {self._root}.")
        stored = labels.astype(np.int32)
        with Replacing(self._path(LABELS)) as file:
            np.save(file, stored)
        manifest = {
            **self._facts,
            "count": len(stored),
            "counts": np.bincount(stored, minlength=self._classes).tolist(),
            "left_out": left_out,
            "labels_crc32": zlib.crc32(stored.tobytes()),
            "shards": [{key: shard[key] for key in ("name", "count", "bytes")} for shard in shards],
        }
        replace_text(self._path(MANIFEST), json.dumps(manifest, indent=1))
        for number in numbers:
            os.remove(self._path(_state_name(number)))
        return len(stored)

    @property
    def _settings(self) -> dict[str, Any]:
        return {**self._facts, "shard_size": self.shard_size}

    def _require_same_settings(self) -> None:
        """Raises ValueError where shards that are there were written with other settings."""
        for number in self.whole()[:1]:
            changed = changes(self._settings, self._state(number)["settings"])
            if changed:
                raise ValueError(
                    f"{self._root} was begun with other settings ({'; '.join(changed)}): choose "
                    "another folder or remove it."
                )

    def _state(self, number: int) -> dict[str, Any]:
        with open(self._path(_state_name(number)), encoding="utf-8") as file:
            return json.load(file)

    def _path(self, name: str) -> str:
        return os.path.join(self._root, name)


def _state_name(number: int) -> str:
    return f".latents-{number:05d}.json"


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
    layout = RecordLayout(np.shape(first[0]), dtype, first[1] is not None)
    writer = LatentWriter(path, layout, num_classes=num_classes, shard_size=shard_size, facts=extra)
    there = writer.whole()
    for number, shard in enumerate(_chunks(itertools.chain([first], examples), shard_size)):
        if number not in there:
            writer.write_shard(shard, number=number)
    return writer.finish()


def _chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Yields lists of `size` items, of which the last may be shorter."""
    while chunk := list(itertools.islice(items, size)):
        yield chunk
