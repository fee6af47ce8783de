"""Attention, and the one place where it is chosen how it is computed."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxar.nn import kernel
from jaxar.nn.dropout import dropout, key_words
from jaxar.nn.layers import Initial, Linear, settled, split_or_none, xavier_uniform
from jaxar.nn.module import RETURNED, Module, Param
from jaxar.nn.rope import rotate
from jaxar.parallel import axes
from jaxar.parallel.axes import hold
from jaxar.typing import Array, Float, Mask

KeyValue = tuple[Array, Array]
"""Keys and values, each (b, m, k e), or (l, b, m, k e) for a stack of layers: heads side by side.
Keys are turned by their positions."""


class Past(NamedTuple):
    """Keys and values of earlier tokens for all layers, (l, b, m, k e), and which layer looks.

    So a layer's part is read where it stands; cut out for each layer it would be copied.
    """

    keys: Array
    values: Array
    layer: Array


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
    past: Past | None = None,
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
      past: Earlier tokens, which come before k and v in the mask's columns.
      scale: Of the logits; 1 / sqrt(e) by default.
      rate: Dropout of the weights, where a key is given.
      key: Randomness of the dropout; what falls away is the same whatever the way.
      way: One of `ATTENTION`.
    """
    q, k, v = (hold(x, "batch", None, "heads") for x in (q, k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    rate = 0.0 if key is None else rate
    seen = k.shape[1] + (0 if past is None else past.keys.shape[2])
    on_tpu = way == "auto" and axes.platform() == "tpu" and kernel.fits(q.shape[1], seen)
    how = _by_kernel if on_tpu or way == "kernel" else _densely
    return how(q, k, v, past, mask, rope, scale, rate, key)


def _densely(q, k, v, past, mask, rope, scale, rate, key):
    """The sum of the weights divides what they give, which is narrower than they are."""
    q, k, v = (_heads_first(x) for x in _joined(q, k, v, past, rope))
    if q.dtype == jnp.float32:  # in half precision it would round queries once more
        q, scale = q * scale, 1.0
    logits = jnp.einsum("bkne,bkme->bknm", q, k, preferred_element_type=jnp.float32) * scale
    if mask is not None:
        logits += _bias(mask)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    total = weights.sum(-1, keepdims=True)
    weights = dropout(weights.astype(v.dtype), rate, key)
    y = jnp.einsum("bknm,bkme->bkne", weights, v, preferred_element_type=jnp.float32)
    return (checkpoint_name(y, RETURNED) / total).astype(v.dtype).swapaxes(1, 2)


def _bias(mask):
    """Returns 0 where a query sees a key, -inf elsewhere: what is added to the logits, float32."""
    return jnp.where(mask, jnp.float32(0), -jnp.inf)


def _heads_first(x):
    """Returns (b, k, n, e) of (b, n, k, e).

    On CPUs in memory, too: the compiler then makes one loop over examples and heads, on all cores,
    of the whole of attention. Elsewhere products turn their arguments themselves.
    """
    x = x.swapaxes(1, 2)
    return settled(x) if axes.platform() == "cpu" else x


def _joined(q, k, v, past, rope):
    """Returns queries, all keys and all values, turned by their positions."""
    q, k = (x if rope is None else rotate(x, rope) for x in (q, k))
    if past is not None:
        before = (x[past.layer].reshape(len(k), -1, *k.shape[2:]) for x in past[:2])
        k, v = (jnp.concatenate(pair, 1) for pair in zip(before, (k, v), strict=True))
    return q, k, v


def _by_kernel(q, k, v, past, mask, rope, scale, rate, key):
    if past is not None and not kernel.joins(past.keys):
        (q, k, v), past, rope = _joined(q, k, v, past, rope), None, None
    before, layer = (), jnp.zeros(1, jnp.uint32)
    if past is not None:
        before = tuple(x.reshape(*x.shape[:3], *k.shape[2:]) for x in past[:2])
        layer = past.layer.astype(jnp.uint32).reshape(1)
    shape = (q.shape[1], sum(x.shape[-3] for x in (k, *before[:1])))
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

    def part(first, q, k, v, *rest):
        before, (words, bias, *rope) = rest[:-count], rest[-count:]
        start = jnp.concatenate([words[:2], first[::2], words[2:]])
        return attend(q, k, v, before, bias, rope[0] if rope else None, start)

    whole = (jnp.concatenate([words, layer]), _bias(seen))
    whole += () if rope is None else (jnp.asarray(rope),)
    count = len(whole)
    y = axes.in_parts(part, (q, k, v, *before), ("batch", None, "heads"), whole)
    return checkpoint_name(y.reshape(*q.shape[:2], -1), RETURNED).reshape(q.shape)


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
        cache: Past | None = None,
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
        y = attend(
            *(q, k, v, mask),
            rope=rope,
            past=cache,
            scale=self.scale,
            rate=attention_rate,
            key=inner,
            way=way,
        )
        turned = k if rope is None else rotate(k, rope)
        kept = turned.reshape(*x.shape[:2], -1), v.reshape(*x.shape[:2], -1)
        return dropout(checkpoint_name(self.out(y), RETURNED), rate, outer), kept

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
