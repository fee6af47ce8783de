"""Are generated images recognised as their class, and are they more than copies?

This protocol is for small labelled sets, where Inception features mean nothing:

* recognised: share of images that a support vector machine, fitted on the real training images,
  assigns to the class they were drawn for, beside the same share for held-out real images.
* distance: mean distance of an image to its nearest training image, in units of pixel values,
  beside the same for training images (leaving the image itself out) and for held-out ones. A model
  that memorises comes out below the distance of training images.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from jaxar import config as configs
from jaxar import registry
from jaxar.checks import require, whole
from jaxar.config import ConfigError
from jaxar.console import say
from jaxar.data import loader
from jaxar.runs.model import Model
from jaxar.runs.setup import open_source

PROTOCOL = (
    "RBF support vector machine (scikit-learn SVC, C=10, gamma='scale') on pixels in [-1, 1], "
    "fitted on the training images; Euclidean distance to the nearest training image"
)


@dataclasses.dataclass(frozen=True)
class Recognition:
    """Draws samples of each class and judges them by `recognition`: for small labelled sets.

    Attributes:
      per_class: Samples of each class.
      reference: Where the real images are: "data" for `config.data`; or, where that has latents, a
        part of config.data in words, 'digits(size=16)'. It must have a split "held_out".
    """

    per_class: int = 100
    reference: str = "data"

    complete = True

    def __post_init__(self):
        require(vars(self), per_class=whole(1))

    def check(self, model: Model) -> None:
        """Checks that the model samples images, and that there are real images of the same shape.

        Raises:
          ConfigError: one of these fails.
        """
        self._real(model)

    def run(self, model: Model, folder: Path) -> dict[str, Any]:
        """Returns the figures of `recognition` for new samples of every class.

        Args:
          model: The model.
          folder: Not used: the samples are not kept.

        Raises:
          ConfigError: see `check`.
        """
        train, held_out = self._real(model)
        config, seed = model.config, model.config.seed + 1
        labels = np.tile(np.arange(model.system.num_classes), self.per_class)
        size = config.sample.classes * config.sample.per_class
        batches = [
            model.sample(labels[i : i + size], seed=seed, first=i)
            for i in range(0, len(labels), size)
        ]
        figures = recognition(
            np.concatenate(batches),
            labels,
            train=loader.whole(train),
            held_out=loader.whole(held_out),
        )
        say(
            "result",
            f"{figures['recognised']:.1%} of {len(labels):,} samples are recognised as their class "
            f"(held-out real digits: {figures['recognised_held_out_real']:.1%}); "
            f"distance to training data {figures['distance_to_train']:.2f} "
            f"(between training data: {figures['distance_train_to_train']:.2f})",
        )
        sampling = {**config.sample, "seed": seed}
        return {"weights": "exponential moving average", "sampling": sampling, **figures}

    def _real(self, model: Model) -> tuple[Any, Any]:
        """Returns the sources of real images for training and held out."""
        model.require_images()
        train, held_out = (self._open(model.config, **c) for c in ({}, {"split": "held_out"}))
        if tuple(train.shape) != model.image_shape:
            raise ConfigError(
                f"config.evaluation.reference has images of {tuple(train.shape)}, the model draws "
                f"{model.image_shape}: name the images that it was trained on."
            )
        return train, held_out

    def _open(self, config: Any, **changes: Any) -> Any:
        """Returns the source of `reference`, which must have the classes of the config."""
        if self.reference == "data":
            return open_source(config, **changes)
        part = configs.read_spec("config.evaluation.reference", self.reference, config.data)
        source = registry.build("data", {**part, **changes}, where="evaluation.reference")
        if source.num_classes != config.num_classes:
            raise ConfigError(
                f"config.evaluation.reference has {source.num_classes} classes, the config "
                f"{config.num_classes}: name the images that the latents were made of."
            )
        return source


def recognition(
    images: np.ndarray,
    labels: np.ndarray,
    train: tuple[np.ndarray, np.ndarray],
    held_out: tuple[np.ndarray, np.ndarray],
) -> dict[str, Any]:
    """Returns the figures above, by their names in `result.json`.

    Args:
      images: (b, h, w, c) generated images in [-1, 1].
      labels: (b,) the classes that they were drawn for.
      train: Real training images and their labels.
      held_out: Real images that were not trained on, and their labels.
    """
    from sklearn.svm import SVC

    reader = SVC(C=10.0, gamma="scale").fit(_flat(train[0]), train[1])
    read = reader.predict(_flat(images))
    real = reader.predict(_flat(held_out[0]))
    per_class = {int(c): float(np.mean(read[labels == c] == c)) for c in np.unique(labels)}
    return {
        "protocol": PROTOCOL,
        "samples": len(labels),
        "recognised": float(np.mean(read == labels)),
        "recognised_per_class": per_class,
        "recognised_held_out_real": float(np.mean(real == held_out[1])),
        "distance_to_train": _nearest(images, train[0]),
        "distance_train_to_train": _nearest(train[0], train[0], skip_self=True),
        "distance_held_out_to_train": _nearest(held_out[0], train[0]),
        "spread_within_class": _spread(images, labels),
        "spread_within_class_train": _spread(*train),
    }


def _flat(images: np.ndarray) -> np.ndarray:
    """Returns images as float64 vectors, (b, h w c)."""
    return np.asarray(images, np.float64).reshape(len(images), -1)


def _nearest(images: np.ndarray, others: np.ndarray, *, skip_self: bool = False) -> float:
    """Returns the mean distance of each image to the nearest of `others`."""
    a, b = _flat(images), _flat(others)
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    if skip_self:
        np.fill_diagonal(squared, np.inf)
    return float(np.sqrt(np.maximum(squared.min(1), 0)).mean())


def _spread(images: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean distance of images to the mean of their class; lost modes lower it."""
    flat = _flat(images)
    return float(
        np.mean(
            [
                np.linalg.norm(flat[labels == c] - flat[labels == c].mean(0), axis=1).mean()
                for c in np.unique(labels)
            ]
        )
    )
