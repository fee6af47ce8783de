"""The transformer that all systems share: modulated blocks, stacked over layers and scanned.

Compile time does not grow with depth, and the cache is a value that comes in and goes out.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxar.nn import layers
from jaxar.nn.attention import Attention, KeyValue
from jaxar.nn.module import Module, scan, stack
from jaxar.typing import Array, Float, Mask


@dataclasses.dataclass(frozen=True)
class Dropout:
    """Rates of training: on attention weights, and on the outputs of attention and MLP."""

    attention: float = 0.0
    projection: float = 0.0


class Block(Module):
    """Attention and gated MLP, each modulated and gated by the condition of its segment.

        x = x + gate_1 Attention(norm(x) (1 + scale_1) + shift_1)
        x = x + gate_2 MLP(norm(x) (1 + scale_2) + shift_2)

    The norms have no weights; the six vectors are one linear map of silu(condition), in the order
    gate_1, gate_2, scale_1, scale_2, shift_1, shift_2, and start at Xavier's law, not at zero.
    Source: OliverRensu/xAR models/xar.py `Block`.
    """

    def __init__(self, width: int, heads: int, hidden: int, *, key: Array):
        """Makes a block with an MLP of inner width `hidden`."""
        attention, mlp, modulation = jax.random.split(key, 3)
        self.attention = Attention(width, heads, key=attention)
        self.mlp = layers.GatedMLP(width, hidden, key=mlp)
        self.modulation = layers.Linear(width, (6, width), key=modulation)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        condition: Float[Array, "b g d"],
        *,
        sizes: tuple[int, ...],
        rope: Float[Array, "2 n e"],
        mask: Mask,
        cache: KeyValue | None = None,
        rates: Dropout = Dropout(),
        dtype: Any = jnp.float32,
        key: Array | None = None,
    ) -> tuple[Float[Array, "b n d"], KeyValue]:
        """Returns the tokens, float32, and this layer's keys and values, `dtype`.

        Attention, MLP and modulation compute in `dtype`; the sum over layers stays float32, as in
        the release under automatic mixed precision.
        """
        first, second = layers.split_or_none(key, 2)
        vectors = self.modulation(jax.nn.silu(condition).astype(dtype))
        gate_1, gate_2, scale_1, scale_2, shift_1, shift_2 = jnp.moveaxis(vectors, 2, 0)

        y = layers.per_segment(modulate, layers.rms_norm(x), (scale_1, shift_1), sizes)
        y, keys_values = self.attention(
            y.astype(dtype),
            rope=rope,
            mask=mask,
            cache=cache,
            attention_rate=rates.attention,
            rate=rates.projection,
            key=first,
        )
        x = x + layers.per_segment(jnp.multiply, y, (gate_1,), sizes)
        y = layers.per_segment(modulate, layers.rms_norm(x), (scale_2, shift_2), sizes)
        y = self.mlp(y.astype(dtype), rates.projection, second)
        return x + layers.per_segment(jnp.multiply, y, (gate_2,), sizes), keys_values


class Transformer(Module):
    """`depth` equal blocks whose arrays carry a leading layer axis."""

    def __init__(self, depth: int, width: int, heads: int, hidden: int, *, key: Array):
        """Makes the stacked blocks."""
        self.depth = depth
        self.blocks = stack(lambda key: Block(width, heads, hidden, key=key), depth, key)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        condition: Float[Array, "b g d"],
        *,
        sizes: tuple[int, ...],
        rope: Float[Array, "2 n e"],
        mask: Mask,
        cache: KeyValue | None = None,
        collect: bool = False,
        rates: Dropout = Dropout(),
        remat: bool = False,
        dtype: Any = jnp.float32,
        key: Array | None = None,
    ) -> tuple[Float[Array, "b n d"], KeyValue | None]:
        """Returns the tokens, and with `collect` the stacked keys and values of these tokens.

        Args:
          x: Tokens.
          condition: One vector a segment.
          sizes: Tokens of each segment; their sum is n.
          rope: Rotary table of the tokens' positions.
          mask: (n, m) bool or None, see `attend`.
          cache: Stacked keys and values (l, b, m - n, k, e) of earlier tokens.
          collect: Whether to return keys and values.
          rates: Dropout rates, used where a key is given.
          remat: Whether to keep only the tokens between blocks for the backward pass.
          dtype: Of the computation inside blocks, and of keys and values.
          key: Randomness of the dropout.
        """
        keys = None if key is None else jax.random.split(key, self.depth)

        def body(x, layer):
            block, cache, key = layer
            x, keys_values = block(
                x,
                condition,
                sizes=sizes,
                rope=rope,
                mask=mask,
                cache=cache,
                rates=rates,
                dtype=dtype,
                key=key,
            )
            return x, keys_values if collect else None

        return scan(body, x, (self.blocks, cache, keys), remat=remat)


def modulate(x: Array, scale: Array, shift: Array) -> Array:
    """Returns x (1 + scale) + shift."""
    return x * (1 + scale) + shift
