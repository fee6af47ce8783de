"""Tokens that sampling keeps: edited pictures, prefixes, clamped places. One mechanism for all."""

from typing import NamedTuple

import jax.numpy as jnp

from jaxar.typing import Array


class Known(NamedTuple):
    """Tokens to keep: those where `mask` is True.

    Attributes:
      tokens: (b, n, ...) of the plan or of an entity.
      mask: (b, n) bool.
    """

    tokens: Array
    mask: Array

    def keep(self, tokens: Array) -> Array:
        """Returns the tokens with the known ones in their places."""
        mask = self.mask.reshape(*self.mask.shape, *(1,) * (tokens.ndim - 2))
        return jnp.where(mask, self.tokens.astype(tokens.dtype), tokens)
