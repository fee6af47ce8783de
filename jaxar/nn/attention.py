"""Attention, and the one place where its kernel is chosen."""

import jax
import jax.numpy as jnp

from jaxar.nn.layers import Linear, dropout, split_or_none
from jaxar.nn.module import Module
from jaxar.nn.rope import rotate
from jaxar.typing import Array, Float, Mask

KeyValue = tuple[Array, Array]
"""Keys and values, each (b, m, k, e), or (l, b, m, k, e) for a stack of layers."""


def attend(
    q: Float[Array, "b n k e"],
    k: Float[Array, "b m k e"],
    v: Float[Array, "b m k e"],
    mask: Mask = None,
    *,
    rate: float = 0.0,
    key: Array | None = None,
) -> Float[Array, "b n k e"]:
    """Returns softmax(q k' / sqrt(e)) v, the softmax in float32.

    Args:
      q: Queries.
      k: Keys.
      v: Values.
      mask: (n, m) bool, True where a query sees a key, or None where all do.
      rate: Dropout of the weights, where a key is given.
      key: Randomness of the dropout.
    """
    logits = jnp.einsum("bnke,bmke->bknm", q, k, preferred_element_type=jnp.float32)
    logits = logits * q.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    weights = dropout(jax.nn.softmax(logits, -1).astype(v.dtype), rate, key)
    return jnp.einsum("bknm,bmke->bnke", weights, v)


class Attention(Module):
    """Multi-head self-attention with rotary positions and an explicit cache."""

    def __init__(self, width: int, heads: int, *, key: Array):
        """Makes the fused projection to queries, keys and values, and the output projection."""
        if width % heads:
            raise ValueError(f"{heads} heads do not divide the width {width}.")
        inner, outer = jax.random.split(key)
        head = width // heads
        self.qkv = Linear(width, (3, heads, head), key=inner)
        self.out = Linear((heads, head), width, key=outer)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        *,
        rope: Float[Array, "2 n e"],
        mask: Mask,
        cache: KeyValue | None = None,
        attention_rate: float = 0.0,
        rate: float = 0.0,
        key: Array | None = None,
    ) -> tuple[Float[Array, "b n d"], KeyValue]:
        """Returns the output, and the keys and values of these n tokens.

        With a cache, its m - n keys and values come before those of the n tokens, in the order of
        the mask's columns.
        """
        inner, outer = split_or_none(key, 2)
        q, k, v = jnp.moveaxis(self.qkv(x), 2, 0)
        q, k = rotate(q, rope), rotate(k, rope)
        seen_k, seen_v = k, v
        if cache is not None:
            seen_k = jnp.concatenate([cache[0], k], 1)
            seen_v = jnp.concatenate([cache[1], v], 1)
        y = self.out(attend(q, seen_k, seen_v, mask, rate=attention_rate, key=inner))
        return dropout(y, rate, outer), (k, v)
