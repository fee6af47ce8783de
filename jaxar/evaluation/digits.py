"""Features for where no Inception weights are at hand: those of a small reader of digits.

The Frechet distance of these is called `frechet_distance_digits`. It is not FID, compares with
nothing published, and means something for images of digits only.
"""

import functools

import numpy as np

from jaxar.core.resize import area_weights

SIZE = 16
FEATURES = 64
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Shares of red, green and blue in grey, as in Pillow and ITU-R BT.601."""


def digit_features(images: np.ndarray) -> np.ndarray:
    """Returns the (n, 64) float32 hidden activations of the classifier, the same in every run.

    Args:
      images: (n, h, w, 3) or (n, h, w, 1) uint8, light digits on dark ground, of any size; they are
        brought to grey and, by averaging, to 16 x 16.

    Raises:
      ValueError: they are no such images.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(
            f"images are uint8 (n, h, w, 1 or 3), not {images.dtype} of shape {images.shape}."
        )
    grey = images[..., 0] if images.shape[3] == 1 else images @ LUMA
    kernel, bias = _hidden_layer()
    small = _resized(grey / np.float32(255), SIZE)
    return np.maximum(small.reshape(len(small), -1) @ kernel + bias, 0)


@functools.cache
def _hidden_layer() -> tuple[np.ndarray, np.ndarray]:
    """Returns kernel (256, 64) and bias (64,) of the classifier.

    It is fitted on scikit-learn's 8 x 8 digits, made smooth at 14 x 14, with one pixel of ground
    around them, as the `digits` data of this project stand in 16 x 16.
    """
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    grey, labels = load_digits(return_X_y=True)
    larger = _resized(grey.reshape(-1, 8, 8).astype(np.float32) / 16, SIZE - 2)
    framed = np.pad(larger, [(0, 0), (1, 1), (1, 1)])
    classifier = MLPClassifier(
        (FEATURES,),
        batch_size=500,  # pyright: ignore[reportArgumentType]: its default is a word
        learning_rate_init=0.01,
        tol=1e-3,
        n_iter_no_change=5,
        random_state=0,
    )
    classifier.fit(framed.reshape(len(framed), -1), labels)
    return classifier.coefs_[0].astype(np.float32), classifier.intercepts_[0].astype(np.float32)


def _resized(grey: np.ndarray, size: int) -> np.ndarray:
    """Returns images (n, h, w) as (n, size, size), each pixel the mean of those it covers."""
    rows, columns = (area_weights(side, size) for side in grey.shape[1:])
    return rows @ grey @ columns.T
