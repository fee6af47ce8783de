"""Attention, and the one place where it is chosen how it is computed."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxar import axes
from jaxar.axes import hold
from jaxar.nn import kernel
from jaxar.nn.dropout import dropout, key_words
from jaxar.nn.layers import Initial, Linear, split_or_none, xavier_uniform
from jaxar.nn.module import RETURNED, Module, Param
from jaxar.nn.rope import rotate
from jaxar.typing import Array, Float, Mask

KeyValue = tuple[Array, Array]
"""Keys and values, each (b, m, k, e), or (l, b, m, k, e) for a stack of layers."""


ATTENTION = ("auto", "dense", "kernel")
"""Ways to compute it: "dense" by plain operations, "kernel" by `attend_in_kernel`, which needs a
TPU; "auto" takes the kernel for a TPU where it serves the lengths."""


def attend(
    q: Float[Array, "b n k e"],
    k: Float[Array, "b m k e"],
    v: Float[Array, "b m k e"],
    mask: Mask = None,
    *,
    rope: Float[Array, "2 n e"] | None = None,
    scale: float | None = None,
    rate: float = 0.0,
    key: Array | None = None,
    way: str = "auto",
) -> Float[Array, "b n k e"]:
    """Returns softmax(scale q k') v, the softmax in float32.

    Args:
      q: Queries.
      k: Keys.
      v: Values.
      mask: (n, m) or (1, m) bool, True where a query sees a key, or None where all do.
      rope: Rotary table by which queries and keys, of the same tokens, are turned, or None.
      scale: Of the logits; 1 / sqrt(e) by default.
      rate: Dropout of the weights, where a key is given.
      key: Randomness of the dropout; what falls away is the same whatever the way.
      way: One of `ATTENTION`.
    """
    q, k, v = (hold(x, "batch", None, "heads") for x in (q, k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    rate = 0.0 if key is None else rate
    on_tpu = way == "auto" and axes.platform() == "tpu" and kernel.fits(q, k)
    how = _by_kernel if on_tpu or way == "kernel" else _densely
    out = how(q, k, v, mask, rope, scale, rate, key)
    return checkpoint_name(out.reshape(*q.shape[:2], -1), RETURNED).reshape(q.shape)


def _densely(q, k, v, mask, rope, scale, rate, key):
    q, k = (x if rope is None else rotate(x, rope) for x in (q, k))
    logits = jnp.einsum("bnke,bmke->bknm", q, k, preferred_element_type=jnp.float32) * scale
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    weights = dropout(jax.nn.softmax(logits, -1).astype(v.dtype), rate, key)
    return jnp.einsum("bknm,bmke->bnke", weights, v)


def _by_kernel(q, k, v, mask, rope, scale, rate, key):
    shape = (q.shape[1], k.shape[1])
    seen = jnp.ones(shape, bool) if mask is None else jnp.broadcast_to(mask, shape)
    words = key_words(key) if rate else jnp.zeros(2, jnp.uint32)
    attend = functools.partial(
        kernel.attend_in_kernel,
        bands=kernel.bands(mask, *shape),
        all_heads=q.shape[2],
        scale=scale,
        rate=rate,
        interpret=axes.platform() != "tpu",
    )

    def part(first, q, k, v, words, bias, *rope):
        start = jnp.concatenate([words, first[::2]])
        return attend(q, k, v, bias, rope[0] if rope else None, start)

    whole = (words, jnp.where(seen, jnp.float32(0), -jnp.inf))
    whole += () if rope is None else (jnp.asarray(rope),)
    return axes.in_parts(part, (q, k, v), ("batch", None, "heads"), whole)


class Attention(Module):
    """Multi-head self-attention with an explicit cache."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        bias: bool | tuple[bool, bool, bool] = True,
        scale: float | None = None,
        key: Array,
        init: Initial = xavier_uniform,
        out_init: Initial = xavier_uniform,
    ):
        """Makes the fused projection to queries, keys and values, and the output projection.

        Args:
          width: Of the tokens.
          heads: Must divide the width.
          bias: Whether queries, keys and values have a bias; one answer or three.
          scale: Of the logits; 1 / sqrt(head dimension) by default.
          key: Randomness of the initial values.
          init: Law of the fused projection.
          out_init: Law of the output projection.

        Raises:
          ValueError: the heads do not divide the width.
        """
        if width % heads:
            raise ValueError(f"{heads} heads do not divide the width {width}.")
        inner, outer = jax.random.split(key)
        head = width // heads
        self.scale = scale
        self.qkv = Linear(width, (3, heads, head), bias=bias, key=inner, init=init)
        self.out = Linear((heads, head), width, key=outer, init=out_init)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        *,
        rope: Float[Array, "2 n e"] | None = None,
        mask: Mask = None,
        cache: KeyValue | None = None,
        attention_rate: float = 0.0,
        rate: float = 0.0,
        key: Array | None = None,
        way: str = "auto",
    ) -> tuple[Float[Array, "b n d"], KeyValue]:
        """Returns the output, and the keys and values of these n tokens.

        With a cache, its m - n keys and values come before those of the n tokens, in the order of
        the mask's columns. The way is one of `ATTENTION`.
        """
        inner, outer = split_or_none(key, 2)
        q, k, v = self.project(x)
        turned = k if rope is None else rotate(k, rope)
        look = functools.partial(
            attend, mask=mask, scale=self.scale, rate=attention_rate, key=inner, way=way
        )
        if cache is None:
            y = look(q, k, v, rope=rope)
        else:
            q = q if rope is None else rotate(q, rope)
            seen_k = jnp.concatenate([cache[0], turned], 1)
            seen_v = jnp.concatenate([cache[1], v], 1)
            y = look(q, seen_k, seen_v)
        return dropout(checkpoint_name(self.out(y), RETURNED), rate, outer), (turned, v)

    def project(self, x: Float[Array, "b n d"]) -> tuple[Array, Array, Array]:
        """Returns queries, keys and values, (b, n, k, e) each."""
        q, k, v = self.qkv.parts(x)
        return q, k, v


class CosineAttention(Attention):
    """Attention by the cosine of queries and keys, with a learned scale for each head.

    The scale is kept as its logarithm, starts at 4 and is held below 100. Source: arXiv 2111.09883;
    FoundationVision/VAR models/basic_var.py `SelfAttention` with `attn_l2_norm`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        bias: bool | tuple[bool, bool, bool] = True,
        key: Array,
        init: Initial = xavier_uniform,
        out_init: Initial = xavier_uniform,
    ):
        """Makes the projections and the scales; see `Attention`."""
        super().__init__(width, heads, bias=bias, scale=1.0, key=key, init=init, out_init=out_init)
        self.log_scale = Param(jnp.full(heads, math.log(4.0)))

    def project(self, x: Float[Array, "b n d"]) -> tuple[Array, Array, Array]:
        """Returns scaled unit queries, unit keys, and values."""
        q, k, v = super().project(x)
        scale = jnp.exp(jnp.minimum(self.log_scale[...], math.log(100.0)))
        return _unit(q) * scale[:, None].astype(q.dtype), _unit(k), v


class CrossAttention(Module):
    """Multi-head attention from tokens to a context; no biases but that of the output."""

    def __init__(self, width: int, context_width: int, heads: int, *, key: Array):
        """Makes the projections.

        Raises:
          ValueError: the heads do not divide the width.
        """
        if width % heads:
            raise ValueError(f"{heads} heads do not divide the width {width}.")
        query, fused, outer = jax.random.split(key, 3)
        head = width // heads
        self.query = Linear(width, (heads, head), bias=False, key=query)
        self.kv = Linear(context_width, (2, heads, head), bias=False, key=fused)
        self.out = Linear((heads, head), width, key=outer)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        context: Float[Array, "b n d2"],
        *,
        rope: Float[Array, "2 n e"],
        mask: Mask = None,
        way: str = "auto",
    ) -> Float[Array, "b n d"]:
        """Returns what the tokens read in a context at the same positions, see `attend`."""
        k, v = self.kv.parts(context)
        return self.out(attend(rotate(self.query(x), rope), rotate(k, rope), v, mask, way=way))


def _unit(x: Array) -> Array:
    """Returns x / |x| over the last axis, computed in float32."""
    y = x.astype(jnp.float32)
    length = jnp.sqrt(jnp.sum(jnp.square(y), -1, keepdims=True))
    return (y / jnp.maximum(length, 1e-12)).astype(x.dtype)
