"""Features of a small classifier of digits, for use without Inception weights.

Their Frechet distance is called `frechet_distance_digits`. It is not FID, compares with nothing
published, and is meaningful for images of digits only.
"""

import functools

import numpy as np

from jaxar.core.resize import area_weights

SIZE = 16
FEATURES = 64
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in grey: ITU-R BT.601, as in Pillow."""


def digit_features(images: np.ndarray) -> np.ndarray:
    """Returns the (n, 64) float32 hidden activations of the classifier, the same in every run.

    Args:
      images: (n, h, w, 3) or (n, h, w, 1) uint8, light digits on a dark background, of any size;
        they are converted to grey and averaged to 16 x 16.

    Raises:
      ValueError: shape or dtype is another.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(
            f"images must be uint8 (n, h, w, 1 or 3), not {images.dtype} of shape {images.shape}."
        )
    grey = images[..., 0] if images.shape[3] == 1 else images @ LUMA
    kernel, bias = _hidden_layer()
    small = _resized(grey / np.float32(255), SIZE)
    return np.maximum(small.reshape(len(small), -1) @ kernel + bias, 0)


@functools.cache
def _hidden_layer() -> tuple[np.ndarray, np.ndarray]:
    """Returns kernel (256, 64) and bias (64,) of the classifier.

    It is fitted on scikit-learn's 8 x 8 digits, enlarged to 14 x 14 with one pixel of background
    around them, as in the `digits` data of 16 x 16.
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
    """Returns images (n, h, w) resized to (n, size, size) by area averaging."""
    rows, columns = (area_weights(side, size) for side in grey.shape[1:])
    return rows @ grey @ columns.T
