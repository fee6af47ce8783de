"""The Frechet distance between two sets of features, each taken for a normal distribution.

    |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1^1/2 C2 C1^1/2)^1/2

Everything is float64 on the host.

Source: arXiv:1706.08500, equation 6.
"""

from typing import NamedTuple

import numpy as np


class Gaussian(NamedTuple):
    """Mean (d,) and covariance (d, d) that were computed elsewhere."""

    mean: np.ndarray
    covariance: np.ndarray


class Moments:
    """Mean and covariance of features that come in chunks.

    Every chunk is centred on its own mean before its products are summed: nothing is lost where the
    mean is large or the features are many, and the cut into chunks leaves no trace but rounding.

    Source: Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample
    variances, 1979.

    Attributes:
      count: Features so far.
    """

    def __init__(self):
        self.count = 0
        self._mean = np.zeros(0)
        self._scatter = np.zeros((0, 0))  # sum of outer products of what is left of the mean

    def add(self, features: np.ndarray) -> None:
        """Takes in a chunk of features, (n, d).

        Raises:
          ValueError: they are no table, not finite, or of another d than those before.
        """
        chunk = np.asarray(features, np.float64)
        if chunk.ndim != 2:
            raise ValueError(f"features are (n, d), not of shape {chunk.shape}.")
        if not np.isfinite(chunk).all():
            raise ValueError("features hold numbers that are not finite.")
        if not len(chunk):
            return
        mean = chunk.mean(0)
        centred = chunk - mean
        self._take(len(chunk), mean, centred.T @ centred)

    def merge(self, other: "Moments") -> None:
        """Takes in all that another one has seen.

        Raises:
          ValueError: its features are of another d.
        """
        if other.count:
            self._take(other.count, other._mean, other._scatter)

    @property
    def mean(self) -> np.ndarray:
        """The mean, (d,).

        Raises:
          ValueError: there are fewer than two features.
        """
        self._require_two()
        return self._mean

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased covariance, (d, d): over n - 1, as `np.cov`.

        Raises:
          ValueError: there are fewer than two features.
        """
        self._require_two()
        return self._scatter / (self.count - 1)

    def _take(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        if not self.count:
            self.count, self._mean, self._scatter = count, mean.copy(), scatter.copy()
            return
        if mean.shape != self._mean.shape:
            raise ValueError(f"features have {len(mean)} numbers, those before {len(self._mean)}.")
        total = self.count + count
        apart = mean - self._mean
        self._scatter += scatter + np.outer(apart, apart) * (self.count * count / total)
        self._mean = self._mean + apart * (count / total)  # the old one may be in use
        self.count = total

    def _require_two(self) -> None:
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 features, and there are {self.count}.")


Normal = Moments | Gaussian


def frechet_distance(a: Normal, b: Normal) -> float:
    """Returns the squared Frechet distance between two normal distributions: FID, on its features.

    Args:
      a: Of dimension d; the covariance may be singular, as it is for fewer than d + 1 features.
      b: The same.

    Raises:
      ValueError: the dimensions differ, or something is not finite.
    """
    first, second = _checked(a), _checked(b)
    if first.mean.shape != second.mean.shape:
        raise ValueError(
            f"features of {len(first.mean)} and of {len(second.mean)} numbers cannot be compared."
        )
    apart = first.mean - second.mean
    spread = np.trace(first.covariance) + np.trace(second.covariance)
    # With C = R R^T the last trace is the sum of the singular values of R1^T R2. As roots of
    # eigenvalues the small ones would lose half their digits, and a few thousand of them add up.
    product = _root(first.covariance).T @ _root(second.covariance)
    shared = np.linalg.svd(product, compute_uv=False).sum() if product.size else 0.0
    return max(0.0, float(apart @ apart + spread - 2 * shared))


def _checked(normal: Normal) -> Gaussian:
    mean = np.asarray(normal.mean, np.float64)
    covariance = np.asarray(normal.covariance, np.float64)
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
        raise ValueError(f"a mean {mean.shape} and a covariance {covariance.shape} do not fit.")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError("mean or covariance hold numbers that are not finite.")
    return Gaussian(mean, covariance)


def _root(covariance: np.ndarray) -> np.ndarray:
    """Returns R, (d, rank), with R R^T the covariance; what is rounding only is no direction."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > values[-1:].clip(0) * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])
