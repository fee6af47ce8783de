"""The Frechet distance between two sets of features, each modelled by a normal distribution.

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


class RunningMoments:
    """Mean and covariance of features that come in chunks.

    Every chunk is centred on its own mean before its products are summed, so precision does not
    suffer from a large mean or many features, and how features are cut into chunks only affects
    rounding.

    Source: Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample
    variances, 1979.

    Attributes:
      count: Number of features so far.
    """

    def __init__(self):
        self.count = 0
        self._mean = np.zeros(0)
        self._scatter = np.zeros((0, 0))  # sum of outer products of centred features

    def add(self, features: np.ndarray) -> None:
        """Adds a chunk of features, (n, d).

        Raises:
          ValueError: they are not (n, d) or not finite, or earlier features have another d.
        """
        chunk = np.asarray(features, np.float64)
        if chunk.ndim != 2:
            raise ValueError(f"features must be (n, d), not of shape {chunk.shape}.")
        if not np.isfinite(chunk).all():
            raise ValueError("features have values that are not finite.")
        if not len(chunk):
            return
        mean = chunk.mean(0)
        centred = chunk - mean
        self._take(len(chunk), mean, centred.T @ centred)

    def merge(self, other: "RunningMoments") -> None:
        """Adds all features that `other` has seen.

        Raises:
          ValueError: its features have another d.
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
        """The unbiased covariance, (d, d): divided by n - 1, as in `np.cov`.

        Raises:
          ValueError: there are fewer than two features.
        """
        self._require_two()
        return self._scatter / (self.count - 1)

    def _take(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        """Adds `count` features with their mean and scatter matrix."""
        if not self.count:
            self.count, self._mean, self._scatter = count, mean.copy(), scatter.copy()
            return
        if mean.shape != self._mean.shape:
            raise ValueError(
                f"features have dimension {len(mean)}, earlier ones {len(self._mean)}."
            )
        total = self.count + count
        apart = mean - self._mean
        self._scatter += scatter + np.outer(apart, apart) * (self.count * count / total)
        self._mean = self._mean + apart * (count / total)  # the old one may be in use
        self.count = total

    def _require_two(self) -> None:
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 features, and there are {self.count}.")


Normal = RunningMoments | Gaussian


def frechet_distance(a: Normal, b: Normal) -> float:
    """Returns the squared Frechet distance between two normal distributions: FID, on its features.

    Args:
      a: Distribution of dimension d; its covariance may be singular, as it is for fewer than d + 1
        features.
      b: Distribution of the same dimension.

    Raises:
      ValueError: the dimensions differ, or a value is not finite.
    """
    first, second = _checked(a), _checked(b)
    if first.mean.shape != second.mean.shape:
        raise ValueError(
            f"features of dimension {len(first.mean)} and of {len(second.mean)} cannot be compared."
        )
    apart = first.mean - second.mean
    spread = np.trace(first.covariance) + np.trace(second.covariance)
    # With C = R R^T the last trace is the sum of the singular values of R1^T R2. Computed as square
    # roots of eigenvalues, small ones would lose half their digits, and thousands of them add up.
    product = _root(first.covariance).T @ _root(second.covariance)
    shared = np.linalg.svd(product, compute_uv=False).sum() if product.size else 0.0
    return max(0.0, float(apart @ apart + spread - 2 * shared))


def _checked(normal: Normal) -> Gaussian:
    """Returns mean and covariance as float64; raises ValueError where they cannot be used."""
    mean = np.asarray(normal.mean, np.float64)
    covariance = np.asarray(normal.covariance, np.float64)
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
        raise ValueError(f"mean {mean.shape} and covariance {covariance.shape} do not match.")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError("mean or covariance has values that are not finite.")
    return Gaussian(mean, covariance)


def _root(covariance: np.ndarray) -> np.ndarray:
    """Returns R, (d, rank), with R R^T the covariance; directions of rounding alone are dropped."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > values[-1:].clip(0) * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])
