"""Resizing of maps on grids of any rank, as one product with a small constant matrix an axis.

`jax.image.resize` has none of the three rules that released systems and metrics need: PyTorch's
area rule (`F.interpolate(mode="area")`, which is adaptive average pooling), its bicubic rule, and
the bilinear rule of TensorFlow 1, through which Inception has always seen its images.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from jaxar.typing import Array, Float

CUBIC = -0.75
"""Slope of the cubic kernel at 1: PyTorch's; `jax.image.resize` has Keys' -0.5."""


def area_weights(size: int, target: int) -> np.ndarray:
    """Returns the (target, size) matrix that averages `size` cells down to `target` cells.

    Target cell i covers the source cells from floor(i size / target) to ceil((i+1) size / target).
    """
    weights = np.zeros((target, size), np.float32)
    for i in range(target):
        first, last = i * size // target, -(-(i + 1) * size // target)
        weights[i, first:last] = 1 / (last - first)
    return weights


def bicubic_weights(size: int, target: int) -> np.ndarray:
    """Returns the (target, size) matrix of PyTorch's bicubic rule, `align_corners=False`.

    Centres of cells lie at (i + 1/2) / size. Each target cell sees the four source cells around its
    centre, however much the map shrinks; beyond the edge the last cell repeats. A size that stays
    gives the identity.

    Source: `F.interpolate(mode="bicubic")`, ATen/native/UpSample.h `cubic_convolution1` and `2`.
    """
    place = (np.arange(target) + 0.5) * size / target - 0.5
    first = np.floor(place).astype(int) - 1
    weights = np.zeros((target, size))
    rows = np.arange(target)
    for tap in range(4):
        cell = first + tap
        weights[rows, np.clip(cell, 0, size - 1)] += _cubic(np.abs(place - cell))
    return weights.astype(np.float32)


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Returns the cubic kernel at distances from 0 to 2, in cells."""
    d, a = distance, CUBIC
    near = ((a + 2) * d - (a + 3)) * d**2 + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, far)


def bilinear_weights(size: int, target: int) -> np.ndarray:
    """Returns the (target, size) matrix of TensorFlow 1's bilinear rule, `align_corners=False`.

    Target cell i lies at i size / target, so the first cells coincide and not the centres, and sees
    the two source cells around it, however much the map shrinks. The last cell repeats.

    Source: tensorflow/core/kernels/image/resize_bilinear_op.cc, legacy scaler.
    """
    scale = np.float32(size) / np.float32(target)  # float32 there too: it decides about the cells
    place = np.arange(target, dtype=np.float32) * scale
    lower = place.astype(int)
    upper = np.minimum(lower + 1, size - 1)
    share = place - lower.astype(np.float32)
    weights = np.zeros((target, size), np.float32)
    rows = np.arange(target)
    weights[rows, lower] = 1 - share
    weights[rows, upper] += share
    return weights


def resize_area(x: Float[Array, "b *grid c"], grid: tuple[int, ...]) -> Float[Array, "b *grid2 c"]:
    """Returns the map averaged to `grid` by PyTorch's area rule along each axis."""
    return _resize(x, grid, area_weights)


def resize_bicubic(
    x: Float[Array, "b *grid c"], grid: tuple[int, ...]
) -> Float[Array, "b *grid2 c"]:
    """Returns the map brought to `grid` by PyTorch's cubic rule along each axis."""
    return _resize(x, grid, bicubic_weights)


def resize_bilinear(
    x: Float[Array, "b *grid c"], grid: tuple[int, ...]
) -> Float[Array, "b *grid2 c"]:
    """Returns the map brought to `grid` by TensorFlow 1's linear rule along each axis."""
    return _resize(x, grid, bilinear_weights)


def _resize(x: Array, grid: tuple[int, ...], weights: Callable[[int, int], np.ndarray]) -> Array:
    """Returns the map with the matrix weights(size, target) applied to each axis of its grid."""
    present = x.shape[1:-1]
    if present == grid:
        return x
    if len(present) != len(grid):
        raise ValueError(f"A map on the grid {present} cannot be resized to {grid}: other rank.")
    rank = len(grid)
    batch, places, channels, targets = (
        0,
        [*range(1, rank + 1)],
        rank + 1,
        range(rank + 2, 2 * rank + 2),
    )
    products = [
        part
        for size, place, count, target in zip(present, places, grid, targets, strict=True)
        for part in (jnp.asarray(weights(size, count), x.dtype), [target, place])
    ]
    result = [batch, *targets, channels]
    return jnp.einsum(x, [batch, *places, channels], *products, result, precision="highest")
