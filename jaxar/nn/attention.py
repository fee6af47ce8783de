"""Attention, and the one place where it is chosen how it is computed."""

import functools
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jaxar.core.cache import KeyValue, Past
from jaxar.core.padding import needed
from jaxar.core.visibility import Visibility, present
from jaxar.nn import kernel
from jaxar.nn.compute import Pass
from jaxar.nn.dropout import column_words, dropout, key_words, mixed, row_words, stays
from jaxar.nn.layers import Initial, Linear, settled, split_or_none, xavier_uniform
from jaxar.nn.module import RETURNED, Module, Param
from jaxar.nn.rope import rotate
from jaxar.parallel import axes
from jaxar.parallel.axes import hold
from jaxar.typing import Array, Float

MOST = 2**24
"""Pairs of tokens that are computed at once; with more, attention goes block by block."""

ROWS, COLUMNS = 256, 1024
"""Queries and keys of a block."""


def attend(
    q: Float[Array, "b n k e"],
    k: Float[Array, "b m k e"],
    v: Float[Array, "b m k e"],
    sees: Visibility | None = None,
    *,
    rope: Any = None,
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
      sees: Which query sees which key, or None where all see all.
      rope: Rotary table by which queries and keys, of the same tokens, are turned, (2, n, e) or
        (2, b, n, e), or None.
      past: Earlier tokens, which come before k and v among the keys.
      scale: Of the logits; 1 / sqrt(e) by default.
      rate: Dropout of the weights, where a key is given.
      key: Randomness of the dropout; what falls away is the same whatever the way.
      way: One of `compute.ATTENTION`.
    """
    q, k, v = (hold(x, "batch", None, "heads") for x in (q, k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    rate = 0.0 if key is None else rate
    n, m = q.shape[1], k.shape[1] + (0 if past is None else past.keys.shape[2])
    single = sees is None or not sees.batched
    on_tpu = way == "auto" and axes.platform() == "tpu" and single and kernel.fits(n, m)
    how = _densely
    if on_tpu or way == "kernel":
        how = _by_kernel
    elif way == "blocked" or (way == "auto" and n * m > MOST):
        how = _in_blocks
    with _counted(sees, n * m):
        return how(q, k, v, past, sees, rope, scale, rate, key)


def _counted(sees: Visibility | None, pairs: int) -> AbstractContextManager[Any]:
    """Returns a context that says which share is visible of more pairs than anyone evaluates."""
    if sees is None or pairs <= MOST or not sees.static:
        return nullcontext()
    return needed(sees.pairs(), pairs)


def _densely(q, k, v, past, sees, rope, scale, rate, key):
    """The sum of the weights divides what they give, which is narrower than they are."""
    q, k, v = (_heads_first(x) for x in _joined(q, k, v, past, rope))
    if q.dtype == jnp.float32:  # in half precision it would round queries once more
        q, scale = q * scale, 1.0
    logits = jnp.einsum("bkne,bkme->bknm", q, k, preferred_element_type=jnp.float32) * scale
    if sees is not None:
        logits += _bias(_over_heads(sees.dense()))
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    total = weights.sum(-1, keepdims=True)
    weights = dropout(weights.astype(v.dtype), rate, key)
    y = jnp.einsum("bknm,bkme->bkne", weights, v, preferred_element_type=jnp.float32)
    return (checkpoint_name(y, RETURNED) / total).astype(v.dtype).swapaxes(1, 2)


def _in_blocks(q, k, v, past, sees, rope, scale, rate, key):
    """Softmax over blocks of keys, with the largest logit so far taken out (arXiv 2205.14135).

    Only ROWS x COLUMNS logits a head are there at a time, in the backward pass too, where each
    block of queries is computed again. Blocks in which nothing is seen are passed over.
    """
    q, k, v = (_heads_first(x) for x in _joined(q, k, v, past, rope))
    (batch, heads, n, width), m = q.shape, k.shape[2]
    if sees is None:
        sees = Visibility(present, (np.zeros(n, np.int32),), (np.ones(m, bool),))
    whole = (batch, heads, n, m)
    queries = _cut(q, -2, ROWS), tuple(_cut(jnp.asarray(x), -1, ROWS) for x in sees.query)
    keys = (_cut(k, -2, COLUMNS), _cut(v, -2, COLUMNS))
    keys += (tuple(_cut(jnp.asarray(x), -1, COLUMNS) for x in sees.key),)

    def of_queries(block):
        number, (q, query) = block

        def step(carry, part):
            column, (k, v, key_numbers) = part
            visible = sees.rule(
                tuple(x[..., :, None] for x in query), tuple(x[..., None, :] for x in key_numbers)
            )
            columns = column * k.shape[2] + jnp.arange(k.shape[2])
            visible = jnp.broadcast_to(visible & (columns < m), (*visible.shape[:-1], len(columns)))

            def look():
                rows = number * q.shape[2] + jnp.arange(q.shape[2])
                keep = _kept(key, rate, whole, rows, columns)
                return _added(carry, q, k, v, visible, scale, keep)

            return jax.lax.cond(visible.any(), look, lambda: carry), None

        shape = q.shape[:3]
        start = jnp.full(shape, -jnp.inf), jnp.zeros(shape), jnp.zeros((*shape, width))
        (_, total, y), _ = jax.lax.scan(step, start, (jnp.arange(len(keys[0])), keys))
        return y / jnp.where(total > 0, total, 1)[..., None] / (1 - rate)

    y = jax.lax.map(jax.checkpoint(of_queries), (jnp.arange(len(queries[0])), queries))
    y = jnp.moveaxis(y, 0, 2).reshape(batch, heads, -1, width)[:, :, :n]
    return checkpoint_name(y, RETURNED).astype(v.dtype).swapaxes(1, 2)


def _added(carry, q, k, v, visible, scale, keep):
    """Returns largest logit, sum of weights and weighted values with a block of keys."""
    top, total, y = carry
    logits = jnp.einsum("bkne,bkme->bknm", q, k, preferred_element_type=jnp.float32) * scale
    logits += _bias(_over_heads(visible))
    higher = jax.lax.stop_gradient(jnp.maximum(top, logits.max(-1)))
    finite = jnp.where(jnp.isfinite(higher), higher, 0)
    weights, factor = jnp.exp(logits - finite[..., None]), jnp.exp(top - finite)
    total = total * factor + weights.sum(-1)
    weights = weights if keep is None else jnp.where(keep, weights, 0)
    given = jnp.einsum(
        "bknm,bkme->bkne", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return higher, total, y * factor[..., None] + given


def _kept(key, rate, whole, rows, columns):
    """Returns which weights of a block dropout leaves: the same as `dropout` of all of them."""
    if key is None or rate == 0:
        return None
    first, second = key_words(key)
    batch, heads, n, _ = whole
    number = jnp.arange(batch * heads, dtype=jnp.uint32).reshape(batch, heads, 1, 1) * np.uint32(n)
    number += rows.astype(jnp.uint32)[:, None]
    of_columns = column_words(columns.astype(jnp.uint32), first, second)
    return stays(mixed(row_words(number, first, second), of_columns), rate)


def _cut(x: Array, axis: int, size: int) -> Array:
    """Returns x in blocks of `size` along an axis, blocks first; the last one repeats the edge."""
    size = min(size, x.shape[axis])
    after = [(0, 0)] * x.ndim
    after[axis] = (0, -x.shape[axis] % size)
    blocks = -(-x.shape[axis] // size)
    x = jnp.pad(x, after, mode="edge")
    axis = x.ndim + axis
    x = x.reshape(*x.shape[:axis], blocks, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)


def _over_heads(visible: Array) -> Array:
    """Returns (b, 1, n, m) where examples differ, else (n, m)."""
    return visible[:, None] if visible.ndim == 3 else visible


def _bias(visible: Array) -> Array:
    """Returns 0 where a query sees a key, -inf elsewhere: what is added to the logits, float32."""
    return jnp.where(visible, jnp.float32(0), -jnp.inf)


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


def _by_kernel(q, k, v, past, sees, rope, scale, rate, key):
    if past is not None and not kernel.joins(past.keys):
        (q, k, v), past, rope = _joined(q, k, v, past, rope), None, None
    before, layer = (), jnp.zeros(1, jnp.uint32)
    if past is not None:
        before = tuple(x.reshape(*x.shape[:3], *k.shape[2:]) for x in past[:2])
        layer = past.layer.astype(jnp.uint32).reshape(1)
    shape = (q.shape[1], sum(x.shape[-3] for x in (k, *before[:1])))
    seen = jnp.ones(shape, bool) if sees is None else sees.dense()
    words = key_words(key) if rate else jnp.zeros(2, jnp.uint32)
    attend = functools.partial(
        kernel.attend_in_kernel,
        bands=kernel.bands(sees, *shape),
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
          init: Initializer of the fused projection.
          out_init: Initializer of the output projection.

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
        shared: Pass,
        *,
        cache: Past | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "b n d"], KeyValue]:
        """Returns the output, and the keys and values (b, n, k e) of these n tokens.

        With a cache, its keys and values come before those of the n tokens among the keys.
        """
        inner, outer = split_or_none(key, 2)
        q, k, v = self.project(x)
        y = attend(
            *(q, k, v, shared.sees),
            rope=shared.rope,
            past=cache,
            scale=self.scale,
            rate=shared.rates.attention,
            key=inner,
            way=shared.compute.attention,
        )
        turned = k if shared.rope is None else rotate(k, shared.rope)
        kept = KeyValue(turned.reshape(*x.shape[:2], -1), v.reshape(*x.shape[:2], -1))
        y = checkpoint_name(self.out(y), RETURNED)
        return dropout(y, shared.rates.projection, outer), kept

    def empty_cache(self, depth: int, batch: int, tokens: int, dtype: Any) -> KeyValue:
        """Returns keys and values of zeros, (depth, batch, tokens, k e)."""
        shape = (depth, batch, tokens, math.prod(self.qkv.outputs[1:]))
        zeros = hold(jnp.zeros(shape, dtype), None, "batch", None, "heads")
        return KeyValue(zeros, zeros)

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
        memory: Float[Array, "b s d2"] | tuple[Array, Array, Any],
        *,
        rope: Any = None,
        memory_rope: Any = None,
        sees: Visibility | None = None,
        way: str = "auto",
    ) -> Float[Array, "b n d"]:
        """Returns what the tokens read in a memory of any length.

        Args:
          x: Tokens.
          memory: Its vectors; or what a layer looks at of a `Memory`: keys, values and a mask.
          rope: Rotary table of the tokens, or None.
          memory_rope: That of the memory's vectors; they were turned before they became a `Memory`.
          sees: Which token sees which place; by default all that the mask says are there.
          way: One of `compute.ATTENTION`.
        """
        q = self.query(x) if rope is None else rotate(self.query(x), rope)
        if isinstance(memory, tuple):
            flat_k, flat_v, mask = memory
            k, v = (a.reshape(*a.shape[:2], *q.shape[2:]) for a in (flat_k, flat_v))
            if sees is None and mask is not None:
                sees = Visibility(present, (np.zeros(x.shape[1], np.int32),), (mask,))
        else:
            k, v = self.projected(memory, memory_rope)
        return self.out(attend(q, k, v, sees, way=way))

    def projected(self, memory: Float[Array, "b s d2"], rope: Any = None) -> tuple[Array, Array]:
        """Returns keys, turned by their positions, and values of a memory, (b, s, k, e) each."""
        k, v = self.kv.parts(memory)
        return (k if rope is None else rotate(k, rope)), v


def _unit(x: Array) -> Array:
    """Returns x / |x| over the last axis, computed in float32."""
    y = x.astype(jnp.float32)
    length = jnp.sqrt(jnp.sum(jnp.square(y), -1, keepdims=True))
    return (y / jnp.maximum(length, 1e-12)).astype(x.dtype)
