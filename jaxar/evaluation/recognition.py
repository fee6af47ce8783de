"""Are generated images recognised as their class, and are they more than copies?

A protocol for small labelled sets, where Inception features mean nothing:

* recognised: share of images that a support vector machine, fitted on the real training images,
  reads as the class they were drawn for; beside it stands what it reads of held-out real images.
* distance: mean distance of an image to its nearest training image, in the units of the pixels;
  beside it stand the same for training images (the image itself left out) and held-out ones. A
  model that memorises comes out below the training figure.
"""

from typing import Any

import numpy as np

PROTOCOL = (
    "RBF support vector machine (scikit-learn SVC, C=10, gamma='scale') on pixels in [-1, 1], "
    "fitted on the training images; Euclidean distance to the nearest training image"
)


def recognition(
    images: np.ndarray,
    labels: np.ndarray,
    train: tuple[np.ndarray, np.ndarray],
    held_out: tuple[np.ndarray, np.ndarray],
) -> dict[str, Any]:
    """Returns the figures above, under the names of `result.json`.

    Args:
      images: (b, h, w, c) generated images in [-1, 1].
      labels: (b,) the classes they were drawn for.
      train: Real training images and their labels.
      held_out: Real images that were never trained on, and their labels.
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
    return np.asarray(images, np.float64).reshape(len(images), -1)


def _nearest(images: np.ndarray, others: np.ndarray, *, skip_self: bool = False) -> float:
    """Returns the mean distance of each image to the nearest of `others`."""
    a, b = _flat(images), _flat(others)
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    if skip_self:
        np.fill_diagonal(squared, np.inf)
    return float(np.sqrt(np.maximum(squared.min(1), 0)).mean())


def _spread(images: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean distance of images to the mean of their class: falls if modes are lost."""
    flat = _flat(images)
    return float(
        np.mean(
            [
                np.linalg.norm(flat[labels == c] - flat[labels == c].mean(0), axis=1).mean()
                for c in np.unique(labels)
            ]
        )
    )
