"""Figures of generated images from their features: Inception Score, precision and recall, KID.

They are computed in float64 on the host, by the rules of torch-fidelity, or of ADM where stated.
"""

import itertools
from collections.abc import Iterator

import numpy as np


def inception_score(
    logits: np.ndarray, splits: int = 10, *, split_size: int | None = None
) -> tuple[float, float]:
    """Returns the mean and standard deviation over splits of exp(mean KL(p(y|x), p(y))).

    Splits follow the order of the samples; torch-fidelity shuffles them first, by
    `np.random.RandomState(2020).permutation`.

    Args:
      logits: (n, classes), without the bias of the last layer.
      splits: Number of splits, whose sizes are equal up to one.
      split_size: Size of a split instead, of which the last may be smaller; 5000 is ADM's rule.

    Raises:
      ValueError: there are fewer samples than splits, or logits are not (n, classes) and finite.

    Source: arXiv:1606.03498, section 4.
    """
    logits = _table(logits, "logits")
    n = len(logits)
    if split_size is not None:
        edges = [*range(0, n, split_size), n]
    elif 1 <= splits <= n:
        edges = [i * n // splits for i in range(splits + 1)]
    else:
        raise ValueError(f"{n} samples cannot be cut into {splits} splits.")
    scores = [_score(logits[first:last]) for first, last in itertools.pairwise(edges)]
    return float(np.mean(scores)), float(np.std(scores))


def precision_recall(
    generated: np.ndarray, real: np.ndarray, neighbours: int = 3, *, block: int = 2048
) -> tuple[float, float]:
    """Returns precision and recall of generated features.

    Precision is the share of generated features that lie in the ball of a real feature, whose
    radius reaches its k-th neighbour among the real ones; recall is the same with roles exchanged.

    Args:
      generated: (n, d).
      real: (m, d).
      neighbours: k.
      block: Distances are computed between blocks of this size, so memory beyond the features is a
        few times block^2 values (200 MB by default) for any number of features.

    Raises:
      ValueError: there are not more than `neighbours` features, or they are not (n, d) and finite.

    Source: arXiv:1904.06991, equations 1 and 2.
    """
    generated, real = _pair(generated, real)
    if min(len(generated), len(real)) <= neighbours:
        raise ValueError(
            f"{neighbours} neighbours need more than {neighbours} features on both sides; there "
            f"are {len(generated)} and {len(real)}."
        )
    precision = _share_inside(generated, real, neighbours, block)
    return precision, _share_inside(real, generated, neighbours, block)


def kernel_distance(
    generated: np.ndarray,
    real: np.ndarray,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> tuple[float, float]:
    """Returns the mean and standard deviation of the squared kernel distance over subsets: KID.

    The kernel is (x . y / d + 1)^3. The estimate is unbiased, so two sets of one distribution may
    give slightly negative values.

    Args:
      generated: (n, d).
      real: (m, d).
      subsets: Number of pairs of subsets.
      subset_size: Features in a subset, drawn without replacement.
      seed: Seed of the draws.

    Raises:
      ValueError: there are fewer than `subset_size` features, or they are not (n, d) and finite.

    Source: arXiv:1801.01401, section 4.
    """
    generated, real = _pair(generated, real)
    fewest = min(len(generated), len(real))
    if not 2 <= subset_size <= fewest:
        raise ValueError(
            f"subsets of {subset_size} cannot be drawn from {len(generated)} and {len(real)} "
            f"features: set subset_size to 2 to {fewest}."
        )
    rng = np.random.RandomState(seed)  # the same draws in the same order as torch-fidelity
    distances = []
    for _ in range(subsets):
        x = generated[rng.choice(len(generated), subset_size, replace=False)]
        y = real[rng.choice(len(real), subset_size, replace=False)]
        within = _mean_of_pairs(_kernel(x, x)) + _mean_of_pairs(_kernel(y, y))
        distances.append(within - 2 * _kernel(x, y).mean())
    return float(np.mean(distances)), float(np.std(distances))


def _score(logits: np.ndarray) -> float:
    """Returns exp(mean KL) of one split."""
    x = logits.astype(np.float64)
    log_p = x - _log_sum(x, 1)
    log_q = _log_sum(log_p, 0) - np.log(len(x))  # finite where the mean of p underflows
    return float(np.exp((np.exp(log_p) * (log_p - log_q)).sum(1).mean()))


def _log_sum(x: np.ndarray, axis: int) -> np.ndarray:
    """Returns log(sum(exp(x))) along an axis, which is kept."""
    top = x.max(axis, keepdims=True)
    return top + np.log(np.exp(x - top).sum(axis, keepdims=True))


def _share_inside(points: np.ndarray, centres: np.ndarray, neighbours: int, block: int) -> float:
    """Returns the share of `points` in the ball of at least one of the `centres`."""
    radii = np.concatenate(
        [_radii(centres[rows], centres, neighbours, block) for rows in _blocks(centres, block)]
    )
    inside = np.zeros(len(points), bool)
    for rows in _blocks(points, block):
        for ball in _blocks(centres, block):
            inside[rows] |= (_squared(points[rows], centres[ball]) <= radii[ball]).any(1)
    return float(inside.mean())


def _radii(rows: np.ndarray, centres: np.ndarray, neighbours: int, block: int) -> np.ndarray:
    """Returns the squared distance of each row to its k-th neighbour, not counting itself."""
    nearest = np.full((len(rows), neighbours + 1), np.inf)  # the row itself is among the centres
    for columns in _blocks(centres, block):
        together = np.concatenate([nearest, _squared(rows, centres[columns])], 1)
        nearest = np.partition(together, neighbours, axis=1)[:, : neighbours + 1]
    return nearest[:, neighbours]


def _squared(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Returns the squared distances between all rows and columns."""
    rows, columns = rows.astype(np.float64), columns.astype(np.float64)
    products = rows @ columns.T
    products *= -2
    products += (rows**2).sum(1)[:, None]
    products += (columns**2).sum(1)[None]
    return np.maximum(products, 0, out=products)


def _blocks(features: np.ndarray, block: int) -> Iterator[slice]:
    """Returns the slices of consecutive blocks."""
    return (slice(start, start + block) for start in range(0, len(features), block))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the cubic kernel of all pairs."""
    return (x.astype(np.float64) @ y.astype(np.float64).T / x.shape[1] + 1) ** 3


def _mean_of_pairs(kernel: np.ndarray) -> float:
    """Returns the mean over all pairs of different features."""
    n = len(kernel)
    return float((kernel.sum() - np.trace(kernel)) / (n * (n - 1)))


def _pair(generated: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns both sets of features; raises ValueError where they cannot be compared."""
    generated, real = _table(generated, "generated features"), _table(real, "real features")
    if generated.shape[1] != real.shape[1]:
        raise ValueError(
            f"features of dimension {generated.shape[1]} and {real.shape[1]} cannot be compared."
        )
    return generated, real


def _table(array: np.ndarray, name: str) -> np.ndarray:
    """Returns a finite 2-D array; raises ValueError, which names it, for any other."""
    array = np.asarray(array)
    if array.ndim != 2 or not array.size or not np.isfinite(array).all():
        raise ValueError(f"{name} must be 2-D and finite; they are of shape {array.shape}.")
    return array
