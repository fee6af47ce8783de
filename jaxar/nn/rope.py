"""Axial rotary position embedding for any number of coordinates.

Head dimensions are shared out equally among the coordinates; inside a share, neighbours (2i, 2i+1)
form a pair that turns by position x theta^(-2i / share). Source: arXiv 2104.09864;
OliverRensu/xAR models/rope.py `VisionRotaryEmbeddingFast` for two coordinates.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxar.typing import Array, Float


def rotary_table(positions: np.ndarray, features: int, theta: float = 1e4) -> np.ndarray:
    """Returns float32 cosines and sines, (2, n, features).

    Args:
      positions: (n, a) coordinates, rows then columns for a grid.
      features: Dimensions of a head; must divide by twice the number of coordinates.
      theta: Base of the frequencies.

    Raises:
      ValueError: `features` does not divide.
    """
    n, axes = positions.shape
    if features % (2 * axes):
        raise ValueError(
            f"Rotary positions with {axes} coordinates need a head dimension that is a multiple "
            f"of {2 * axes}, not {features}: change width or heads."
        )
    share = features // axes
    frequency = 1 / theta ** (np.arange(0, share, 2, dtype=np.float32) / np.float32(share))
    angle = positions.astype(np.float32)[:, :, None] * frequency.astype(np.float32)
    angle = np.repeat(angle, 2, axis=-1).reshape(n, features)
    return np.stack([np.cos(angle), np.sin(angle)])


def rotary_at(positions: np.ndarray, features: int, place: Any) -> Float[Array, "2 n e"]:
    """Returns the rows of the rotary table at `place`, (n,), which may be traced."""
    return jnp.asarray(rotary_table(positions, features))[:, place]


def rotate(x: Float[Array, "b n k e"], table: Float[Array, "2 n e"]) -> Float[Array, "b n k e"]:
    """Returns queries or keys turned by their positions, computed in float32."""
    cos, sin = table[0, None, :, None], table[1, None, :, None]
    y = x.astype(jnp.float32)
    pairs = y.reshape(*y.shape[:-1], -1, 2)
    turned = jnp.stack([-pairs[..., 1], pairs[..., 0]], -1).reshape(y.shape)
    return (y * cos + turned * sin).astype(x.dtype)
