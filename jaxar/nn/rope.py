"""Axial rotary position embedding for any number of coordinates.

Head dimensions are shared out among the coordinates. In a share of s dimensions, pair i turns by
the angle

    position x theta^(-2i / s),    i = 0 ... s/2 - 1                                   (1)

Scores of turned queries and keys depend on differences of positions alone. Positions may be any
real numbers: `Plan.positions_in` spans the range of another grid, an offset is a sum. Source: arXiv
2104.09864; OliverRensu/xAR models/rope.py `VisionRotaryEmbeddingFast` for two coordinates.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from jaxar.typing import Array, Float

Pairing = Literal["interleaved", "halves"]
"""Which dimensions form a pair: neighbours (2i, 2i + 1), as in the paper, LLaMA and LlamaGen, or
i and i + e/2 of the whole head, as in GPT-NeoX and what Hugging Face calls `rotate_half`."""


def rotary_table(
    positions: np.ndarray | Array,
    features: int,
    *,
    theta: float | Sequence[float] = 1e4,
    shares: Sequence[int] | None = None,
    pairing: Pairing = "interleaved",
) -> Float[np.ndarray | Array, "2 *b n e"]:
    """Returns float32 cosines and sines, for `rotate`.

    Args:
      positions: (*b, n, a) coordinates: rows then columns for a picture. Of a JAX array, which may
        be traced, the table is computed in the program; of a NumPy array it is a constant.
      features: Dimensions of a head.
      theta: Base of the frequencies, or one for each coordinate.
      shares: Dimensions of each coordinate, even and together `features`; None for equal ones.
      pairing: Must be that of `rotate`.

    Raises:
      ValueError: `features` does not divide, or `theta` or `shares` do not fit.
    """
    axes = positions.shape[-1]
    xp = np if isinstance(positions, np.ndarray) else jnp
    bases = [*theta] if isinstance(theta, Sequence) else [theta] * axes
    if len(bases) != axes:
        raise ValueError(f"{axes} rotary coordinates need as many bases theta, not {bases}.")
    places = xp.split(positions.astype(np.float32), axes, axis=-1)
    parts = [
        place * _frequencies(share, base)
        for place, share, base in zip(places, _shares(features, axes, shares), bases, strict=True)
    ]
    angle = xp.concatenate(parts, -1)
    if pairing == "interleaved":
        angle = xp.repeat(angle, 2, axis=-1)
    else:
        angle = xp.concatenate([angle, angle], -1)
    return xp.stack([xp.cos(angle), xp.sin(angle)])


def _frequencies(share: int, theta: float) -> np.ndarray:
    """Returns theta^(-2i / share) of (1), (share / 2,) float32."""
    exponents = np.arange(0, share, 2, dtype=np.float32) / np.float32(share)
    return (1 / float(theta) ** exponents).astype(np.float32)


def _shares(features: int, axes: int, shares: Sequence[int] | None) -> Sequence[int]:
    """Returns the dimensions of each coordinate."""
    if shares is None:
        if features % (2 * axes):
            raise ValueError(
                f"Rotary positions with {axes} coordinates need a head dimension that is a "
                f"multiple of {2 * axes}, not {features}: change width or heads."
            )
        return [features // axes] * axes
    if len(shares) != axes or sum(shares) != features or any(s < 2 or s % 2 for s in shares):
        raise ValueError(
            f"Shares of {axes} rotary coordinates must be {axes} even numbers that add up to the "
            f"head dimension, {features}, not {tuple(shares)}."
        )
    return shares


def rotary_at(positions: np.ndarray, features: int, place: Any) -> Float[Array, "2 n e"]:
    """Returns the rows of the rotary table at `place`, (n,), which may be traced."""
    return jnp.asarray(rotary_table(positions, features))[:, place]


def rotate(
    x: Float[Array, "b n k e"],
    table: Float[Array, "2 *b n e"],
    *,
    pairing: Pairing = "interleaved",
) -> Float[Array, "b n k e"]:
    """Returns queries or keys turned by their positions, computed in float32.

    Args:
      x: Queries or keys.
      table: Of `rotary_table`: one for all rows of the batch, or one for each.
      pairing: That of the table.
    """
    if table.ndim == 3:
        cos, sin = table[0, None, :, None], table[1, None, :, None]
    else:
        cos, sin = table[0, :, :, None], table[1, :, :, None]
    y = x.astype(jnp.float32)
    if pairing == "interleaved":
        pairs = y.reshape(*y.shape[:-1], -1, 2)
        turned = jnp.stack([-pairs[..., 1], pairs[..., 0]], -1).reshape(y.shape)
    else:
        first, second = jnp.split(y, 2, -1)
        turned = jnp.concatenate([-second, first], -1)
    return (y * cos + turned * sin).astype(x.dtype)
