"""The transformer that all systems share: blocks, stacked over layers and scanned.

Compile time does not grow with depth, and the cache is a value that comes in and goes out.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxar.core.cache import Cache
from jaxar.nn import layers
from jaxar.nn.compute import Mixer, Pass
from jaxar.nn.dropout import drop_path
from jaxar.nn.module import Module, Param, scan, stack
from jaxar.parallel.axes import hold
from jaxar.typing import Array, Float


class Block(Module):
    """Attention and MLP, each modulated and gated by the condition of its segment.

        x = x + gate_1 Attention(norm(x) (1 + scale_1) + shift_1)
        x = x + gate_2 MLP(norm(x) (1 + scale_2) + shift_2)

    The norms have no weights; the six vectors come in the order gate_1, gate_2, scale_1, scale_2,
    shift_1, shift_2. Source: FoundationVision/VAR models/basic_var.py `AdaLNSelfAttn`, and after
    it `Block` of FlowAR and xAR.
    """

    def __init__(
        self,
        attention: Mixer,
        mlp: Any,
        modulation: Callable[[Array, Any], Array],
        *,
        norm: Callable[[Array], Array] = layers.rms_norm,
    ):
        """Joins the parts.

        Args:
          attention: What mixes the tokens: attention, or any other `Mixer`.
          mlp: mlp(x, rate, key).
          modulation: From a condition (b, g, ...) and a dtype to six vectors (b, g, 6, d).
          norm: Without weights.
        """
        self.attention, self.mlp, self.modulation, self.norm = attention, mlp, modulation, norm

    def __call__(
        self,
        x: Float[Array, "b n d"],
        condition: Float[Array, "b g ..."],
        shared: Pass,
        *,
        cache: Any = None,
        path_rate: Array | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "b n d"], Any]:
        """Returns the tokens, float32, and what a cache holds of them in this layer.

        Attention, MLP and modulation compute in the dtype of the pass; the sum over layers stays
        float32, as in the releases under automatic mixed precision.
        """
        sizes, dtype, rates = shared.sizes, shared.compute.type, shared.rates
        first, second, third, fourth = layers.split_or_none(key, 4)
        vectors = hold(self.modulation(condition, dtype), "batch")
        gate_1, gate_2, scale_1, scale_2, shift_1, shift_2 = jnp.moveaxis(vectors, 2, 0)

        y = layers.per_segment(layers.modulate, self.norm(x), (scale_1, shift_1), sizes)
        y, kept = self.attention(y.astype(dtype), shared, cache=cache, key=first)
        y = layers.per_segment(jnp.multiply, y, (gate_1,), sizes)
        x = x + drop_path(y, path_rate, third)
        y = layers.per_segment(layers.modulate, self.norm(x), (scale_2, shift_2), sizes)
        y = self.mlp(y.astype(dtype), rates.projection, second)
        y = layers.per_segment(jnp.multiply, y, (gate_2,), sizes)
        return x + drop_path(y, path_rate, fourth), kept


class PlainBlock(Module):
    """The block of a vision transformer: norm, attention, norm, MLP, without a condition.

    Source: arXiv 2010.11929, timm `Block`; the blocks of MAR.
    """

    def __init__(self, width: int, attention: Mixer, mlp: Any):
        """Joins the parts, with a layer norm before each."""
        self.attention_norm, self.attention = layers.LayerNorm(width), attention
        self.mlp_norm, self.mlp = layers.LayerNorm(width), mlp

    def __call__(
        self,
        x: Float[Array, "b n d"],
        condition: None,
        shared: Pass,
        *,
        cache: Any = None,
        path_rate: Array | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "b n d"], Any]:
        """Returns the tokens, float32, and what a cache holds of them in this layer."""
        dtype, rates = shared.compute.type, shared.rates
        first, second = layers.split_or_none(key, 2)
        y = self.attention_norm(x).astype(dtype)
        y, kept = self.attention(y, shared, cache=cache, key=first)
        x = x + y
        return x + self.mlp(self.mlp_norm(x).astype(dtype), rates.projection, second), kept


class Offset(Module):
    """Modulation shared by all layers, to which each adds vectors of its own.

    Source: FoundationVision/VAR models/basic_var.py, `shared_aln`.
    """

    def __init__(self, vectors: Float[Array, "6 d"]):
        """Takes the initial vectors."""
        self.table = Param(vectors)

    def __call__(self, shared: Float[Array, "b g 6 d"], dtype: Any) -> Float[Array, "b g 6 d"]:
        """Returns this layer's vectors."""
        return (shared + self.table[...]).astype(dtype)


class Transformer(Module):
    """`depth` equal blocks whose arrays carry a leading layer axis."""

    def __init__(self, depth: int, make: Callable[[Array], Module], *, key: Array):
        """Makes the stacked blocks, each by `make(key)`."""
        self.depth = depth
        self.blocks = stack(make, depth, key)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        condition: Any,
        shared: Pass,
        *,
        cache: Cache | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "b n d"], Cache | None]:
        """Returns the tokens, and if it is collected, what a cache holds of them in all layers.

        Args:
          x: Tokens.
          condition: What the blocks take as such.
          shared: What all layers share.
          cache: Node of a cache of earlier tokens.
          key: Randomness of the dropout.
        """
        keys = None if key is None else jax.random.split(key, self.depth)
        most = shared.rates.path
        path_rates = jnp.linspace(0, most, self.depth) if most else None

        def body(x, layer):
            block, number, key, path_rate = layer
            past = None if cache is None else cache.at(number)
            x, kept = block(x, condition, shared, cache=past, path_rate=path_rate, key=key)
            return hold(x, "batch"), kept if shared.collect else None

        numbers = None if cache is None else jnp.arange(self.depth)
        stacked = (self.blocks, numbers, keys, path_rates)
        how = shared.compute
        return scan(
            body, hold(x, "batch"), stacked, remat=how.remat, unroll=how.unroll, dtype=how.type
        )

    def empty_cache(self, batch: int, tokens: int, dtype: Any) -> Cache:
        """Returns an empty cache with room for `tokens` tokens in every layer."""
        return self.blocks.attention.empty_cache(self.depth, batch, tokens, dtype)  # pyright: ignore
