"""Datasets of TensorFlow Datasets, prepared as ArrayRecord and read without TensorFlow."""

import io
from typing import Any

import numpy as np

from jaxar.data import transform
from jaxar.data.folder import read_image
from jaxar.data.source import BadRecord, check_labels


class Tfds:
    """Images of a prepared TFDS dataset as (h, w, channels) in [-1, 1].

    Centre-cropped as in ADM (`transform.center_crop`) and mirrored half of the time. Labels are not
    known before reading.

    Args:
      dataset: Name of the dataset, such as "imagenet2012" or "mnist:3.0.1".
      size: Side of the square, or (height, width).
      split: Split or slice of one, such as "train" or "train[:90%]".
      data_dir: Where TFDS keeps its data; empty for its own default.
      channels: 1 for greyscale, 3 for colour.
      flip: Whether to mirror at random.
      image_key: Name of the image feature.
      label_key: Name of the label feature, a ClassLabel.

    Raises:
      ImportError: tensorflow_datasets is not installed.
      ValueError: the data is not there, not ArrayRecord, or lacks one of the features.
    """

    def __init__(
        self,
        dataset: str,
        size: int | tuple[int, ...],
        split: str = "train",
        data_dir: str = "",
        channels: int = 3,
        flip: bool = True,
        image_key: str = "image",
        label_key: str = "label",
    ):
        transform.mode_of(channels)
        self.shape = (*transform.pair(size), channels)
        self.flip = flip
        self.name = f"{dataset} ({split})"
        self._image, self._label = image_key, label_key
        self._records, info = _open(dataset, split, data_dir, image_key)
        self.num_classes = getattr(dict(info.features).get(label_key), "num_classes", 0)
        if not self.num_classes:
            raise ValueError(
                f"TFDS dataset {dataset} has no class label {label_key!r}: set label_key to one of "
                f"{sorted(info.features)}."
            )

    def __len__(self) -> int:
        return len(self._records)

    def labels(self) -> None:
        """Returns None: the labels stand inside the records."""

    def read(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Returns one image and its label; `rng` decides about the mirror.

        Raises:
          BadRecord: the record or its image is damaged.
          ValueError: the label is out of range, as the -1 of unlabelled test splits.
        """
        name = f"{self.name} record {index}"
        try:
            record = self._records[index]
        except Exception as error:  # a failed checksum or a damaged example
            raise BadRecord(f"{name}: {error}") from error
        data = read_image(io.BytesIO(record[self._image]), name, self.shape)
        label = check_labels(np.reshape(record[self._label], 1), self.num_classes, name)[0]
        return {"data": transform.flip(data, rng) if self.flip else data, "condition": label}


def _open(name: str, split: str, data_dir: str, image_key: str) -> tuple[Any, Any]:
    """Returns (records, info), with images left as the encoded bytes."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            "TFDS data needs tensorflow_datasets: pip install 'jaxar[tfds]'."
        ) from error
    try:
        builder: Any = tfds.builder(name, data_dir=data_dir or None)
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"There is no TFDS dataset {name!r} in {data_dir or 'the default folder of TFDS'}: "
            f"prepare it with `{_command(name)}`, on a machine with TensorFlow."
        ) from error
    info: Any = builder.info
    if split.split("[")[0].split("+")[0] not in info.splits:
        raise ValueError(
            f"{builder.data_dir} holds no split {split!r} but {sorted(info.splits)}: choose one of "
            f"them, or prepare it with `{_command(name)}`, on a machine with TensorFlow."
        )
    if image_key not in info.features:
        raise ValueError(
            f"TFDS dataset {name} has no feature {image_key!r}: set image_key to one of "
            f"{sorted(info.features)}."
        )
    try:
        decoders: Any = {image_key: tfds.decode.SkipDecoding()}
        return builder.as_data_source(split, decoders=decoders), info
    except NotImplementedError as error:
        raise ValueError(
            f"{builder.data_dir} is not in the ArrayRecord format, the one that can be read here: "
            f"prepare it again with `{_command(name)}`, on a machine with TensorFlow."
        ) from error


def _command(name: str) -> str:
    return f"tfds build {name} --file_format=array_record"
