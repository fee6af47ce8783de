"""Resizing of grids as products with small constant matrices.

`jax.image.resize` has neither of the two rules that released systems and metrics need: PyTorch's
area rule (`F.interpolate(mode="area")`, which is adaptive average pooling), and the bilinear rule
of TensorFlow 1, through which Inception has always seen its images.
"""

import jax.numpy as jnp
import numpy as np

from jaxar.typing import Array, Float


def area_weights(size: int, target: int) -> np.ndarray:
    """Returns the (target, size) matrix that averages `size` cells down to `target` cells.

    Target cell i covers the source cells from floor(i size / target) to ceil((i+1) size / target).
    """
    weights = np.zeros((target, size), np.float32)
    for i in range(target):
        first, last = i * size // target, -(-(i + 1) * size // target)
        weights[i, first:last] = 1 / (last - first)
    return weights


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


def resize_area(x: Float[Array, "b h w c"], grid: tuple[int, int]) -> Float[Array, "b h2 w2 c"]:
    """Returns the map averaged to `grid` = (height, width), each at most that of `x`."""
    if x.shape[1:3] == grid:
        return x
    return _apply(x, area_weights(x.shape[1], grid[0]), area_weights(x.shape[2], grid[1]))


def resize_bilinear(x: Float[Array, "b h w c"], grid: tuple[int, int]) -> Float[Array, "b h2 w2 c"]:
    """Returns the map brought to `grid` = (height, width) by TensorFlow 1's bilinear rule."""
    if x.shape[1:3] == grid:
        return x
    return _apply(x, bilinear_weights(x.shape[1], grid[0]), bilinear_weights(x.shape[2], grid[1]))


def _apply(x: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
    """Returns the map with the two matrices applied to its height and width."""
    return jnp.einsum(
        "bhwc,ih,jw->bijc",
        x,
        jnp.asarray(rows, x.dtype),
        jnp.asarray(columns, x.dtype),
        precision="highest",
    )
