"""Resizing of grids as products with small constant matrices.

`jax.image.resize` has no area rule; the systems of this project shrink maps by the area rule of
PyTorch (`F.interpolate(mode="area")`, which is adaptive average pooling), so that rule stands here.
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


def resize_area(x: Float[Array, "b h w c"], grid: tuple[int, int]) -> Float[Array, "b h2 w2 c"]:
    """Returns the map averaged to `grid` = (height, width), each at most that of `x`."""
    if x.shape[1:3] == grid:
        return x
    rows = jnp.asarray(area_weights(x.shape[1], grid[0]), x.dtype)
    columns = jnp.asarray(area_weights(x.shape[2], grid[1]), x.dtype)
    return jnp.einsum("bhwc,ih,jw->bijc", x, rows, columns, precision="highest")
