"""The transformer that all systems share: blocks, stacked over layers and scanned.

Compile time does not grow with depth, and the cache is a value that comes in and goes out.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxar.checks import above, below_one, one_of, require, whole
from jaxar.nn import layers
from jaxar.nn.attention import ATTENTION, Attention, KeyValue, Past
from jaxar.nn.dropout import drop_path
from jaxar.nn.module import REMAT, Module, Param, scan, stack
from jaxar.parallel.axes import hold
from jaxar.typing import Array, Float, Mask


@dataclasses.dataclass(frozen=True)
class Dropout:
    """Rates of training.

    Attributes:
      attention: Of attention weights.
      projection: Of the outputs of attention and MLP.
      path: Of whole residual branches at the last layer; it rises from 0 at the first.
    """

    attention: float = 0.0
    projection: float = 0.0
    path: float = 0.0


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a network computes; nothing of it changes a result beyond rounding.

    The fields stand in configs among the arguments of the network.

    Attributes:
      dtype: "float32", or "bfloat16" for the matrix products inside blocks, keys and values;
        parameters, norms, the sum over layers and what stands around the blocks are float32.
      remat: What layers keep for the backward pass: "none" computes nothing anew, "projections"
        all but matrix products and attention, "branches" all but attention and what is added to
        the tokens, "blocks" all; see `module.REMAT`.
      unroll: Layers in one turn of the loop over layers; more compile longer.
      attention: How attention is computed, see `attention.ATTENTION`.
    """

    dtype: str = "float32"
    remat: str = "none"
    unroll: int = 1
    attention: str = "auto"

    def __post_init__(self):
        require(
            vars(self),
            dtype=one_of(*layers.DTYPES),
            remat=one_of(*REMAT),
            unroll=whole(1),
            attention=one_of(*ATTENTION),
        )

    @property
    def type(self) -> Any:
        """The dtype of the computation inside blocks."""
        return layers.DTYPES[self.dtype]


PLAIN = Compute()

ARGUMENTS = dict(
    width=whole(1),
    heads=whole(1),
    mlp_ratio=above(0),
    dropout=below_one,
    attention_dropout=below_one,
)
"""What the arguments of a network of blocks may be."""


@dataclasses.dataclass(frozen=True)
class Pass:
    """What all layers of one pass share.

    Attributes:
      sizes: Tokens of each segment; a segment has one condition.
      rope: Rotary table (2, n, e) of the tokens' positions, or None.
      mask: (n, m) bool or None, see `attend`.
      compute: How blocks compute.
      rates: Dropout, where a key is given.
      collect: Whether to return keys and values.
    """

    sizes: tuple[int, ...] = ()
    rope: Any = None
    mask: Mask = None
    compute: Compute = PLAIN
    rates: Dropout = Dropout()
    collect: bool = False


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
        attention: Attention,
        mlp: Any,
        modulation: Callable[[Array, Any], Array],
        *,
        norm: Callable[[Array], Array] = layers.rms_norm,
    ):
        """Joins the parts.

        Args:
          attention: Of the tokens.
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
        cache: Past | None = None,
        path_rate: Array | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "b n d"], KeyValue]:
        """Returns the tokens, float32, and this layer's keys and values.

        Attention, MLP and modulation compute in the dtype of the pass; the sum over layers stays
        float32, as in the releases under automatic mixed precision.
        """
        sizes, dtype, rates = shared.sizes, shared.compute.type, shared.rates
        first, second, third, fourth = layers.split_or_none(key, 4)
        vectors = hold(self.modulation(condition, dtype), "batch")
        gate_1, gate_2, scale_1, scale_2, shift_1, shift_2 = jnp.moveaxis(vectors, 2, 0)

        y = layers.per_segment(layers.modulate, self.norm(x), (scale_1, shift_1), sizes)
        y, keys_values = self.attention(
            y.astype(dtype),
            rope=shared.rope,
            mask=shared.mask,
            cache=cache,
            attention_rate=rates.attention,
            rate=rates.projection,
            key=first,
            way=shared.compute.attention,
        )
        y = layers.per_segment(jnp.multiply, y, (gate_1,), sizes)
        x = x + drop_path(y, path_rate, third)
        y = layers.per_segment(layers.modulate, self.norm(x), (scale_2, shift_2), sizes)
        y = self.mlp(y.astype(dtype), rates.projection, second)
        y = layers.per_segment(jnp.multiply, y, (gate_2,), sizes)
        return x + drop_path(y, path_rate, fourth), keys_values


class PlainBlock(Module):
    """The block of a vision transformer: norm, attention, norm, MLP, without a condition.

    Source: arXiv 2010.11929, timm `Block`; the blocks of MAR.
    """

    def __init__(self, width: int, attention: Attention, mlp: Any):
        """Joins the parts, with a layer norm before each."""
        self.attention_norm, self.attention = layers.LayerNorm(width), attention
        self.mlp_norm, self.mlp = layers.LayerNorm(width), mlp

    def __call__(
        self,
        x: Float[Array, "b n d"],
        condition: None,
        shared: Pass,
        *,
        cache: Past | None = None,
        path_rate: Array | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "b n d"], KeyValue]:
        """Returns the tokens, float32, and this layer's keys and values."""
        dtype, rates = shared.compute.type, shared.rates
        first, second = layers.split_or_none(key, 2)
        y, keys_values = self.attention(
            self.attention_norm(x).astype(dtype),
            mask=shared.mask,
            cache=cache,
            attention_rate=rates.attention,
            rate=rates.projection,
            key=first,
            way=shared.compute.attention,
        )
        x = x + y
        return x + self.mlp(self.mlp_norm(x).astype(dtype), rates.projection, second), keys_values


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
        cache: KeyValue | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "b n d"], KeyValue | None]:
        """Returns the tokens, and if they are collected, their stacked keys and values.

        Args:
          x: Tokens.
          condition: What the blocks take as such.
          shared: What all layers share.
          cache: Stacked keys and values (l, b, m - n, k e) of earlier tokens.
          key: Randomness of the dropout.
        """
        keys = None if key is None else jax.random.split(key, self.depth)
        most = shared.rates.path
        path_rates = jnp.linspace(0, most, self.depth) if most else None

        def body(x, layer):
            block, number, key, path_rate = layer
            past = None if cache is None else Past(*cache, number)
            x, keys_values = block(x, condition, shared, cache=past, path_rate=path_rate, key=key)
            return hold(x, "batch"), keys_values if shared.collect else None

        numbers = None if cache is None else jnp.arange(self.depth)
        stacked = (self.blocks, numbers, keys, path_rates)
        how = shared.compute
        return scan(
            body, hold(x, "batch"), stacked, remat=how.remat, unroll=how.unroll, dtype=how.type
        )

    def empty_cache(self, batch: int, tokens: int, dtype: Any) -> KeyValue:
        """Returns keys and values of zeros, with room for `tokens` tokens in every layer."""
        heads, head = self.blocks.attention.qkv.kernel.shape[-2:]  # pyright: ignore
        shape = (self.depth, batch, tokens, heads * head)
        cache = hold(jnp.zeros(shape, dtype), None, "batch", None, "heads")
        return cache, cache
