"""Attention as one kernel of TPUs: weights never leave the chip's vector memory.

Rows of all keys fit there at the lengths of this project, so that the softmax is the plain one and
the backward pass computes the weights anew:

    w = softmax(scale q k' + bias),  u = keep / (1 - rate) w,  o = u v                          (1)
    dv = u' do,  dw = keep / (1 - rate) do v',  ds = scale w (dw - sum(w dw))                   (2)
    dq = ds k,  dk = ds' q                                                                      (3)

Queries and keys are turned by their rotary positions on the way in, and dq, dk back.

Heads lie side by side in the last axis, as the projections give them, and a program takes as many
as fill whole vectors. Weights fall away by the words of `dropout`, at the places of (b, k, n, m).
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxar.nn.dropout import hashed, stays
from jaxar.nn.rope import rotate
from jaxar.typing import Array

LANES = 128
LEAST, MOST = 8, 2**19
"""Tokens that fill a vector; logits of a head that fit into vector memory with what is made of
them."""


def fits(q: Array, k: Array) -> bool:
    """Returns whether the kernel serves queries (b, n, k, e) and keys (b, m, k, e)."""
    n, m = q.shape[1], k.shape[1]
    return min(n, m) >= LEAST and n * m <= MOST


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """What is fixed when the kernel is compiled; `together` heads are in one program."""

    heads: int
    together: int
    width: int
    rotary: bool
    scale: float
    rate: float
    interpret: bool


def attend_in_kernel(
    q: Array,
    k: Array,
    v: Array,
    bias: Array,
    rope: Array | None,
    start: Array,
    *,
    all_heads: int,
    scale: float,
    rate: float,
    interpret: bool = False,
) -> Array:
    """Returns (1), (b, n, k, e).

    Args:
      q: Queries (b, n, k, e).
      k: Keys (b, m, k, e).
      v: Values (b, m, k, e).
      bias: (n, m) float32, 0 where a query sees a key and -inf where it does not.
      rope: Rotary table (2, n, e) of the tokens of both queries and keys, or None.
      start: (4,) uint32: the two words of the key of dropout, and the first example and head of
        these among all examples and heads.
      all_heads: Heads on all devices.
      scale: Of the logits.
      rate: Dropout of the weights.
      interpret: Whether to run as plain operations, as where there is no TPU.
    """
    heads, width = q.shape[2:]
    together = LANES // math.gcd(LANES, width)
    together = together if heads % together == 0 else heads
    if rope is not None and together * width % LANES:
        # Neighbours are found by rolling whole vectors, which these are not.
        q, k, rope = rotate(q, rope), rotate(k, rope), None
    sizes = _Sizes(all_heads, together, width, rope is not None, scale, rate, interpret)
    tables = [bias]
    if rope is not None:
        signs = np.tile(np.array([-1, 1], np.float32), width // 2)
        tables += [jnp.tile(table, together) for table in (rope[0], rope[1] * signs)]
    flat = (x.reshape(*x.shape[:2], heads * width) for x in (q, k, v))
    out: Any = _attend(sizes, *flat, tuple(tables), start)
    return out.reshape(q.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(sizes: _Sizes, q: Array, k: Array, v: Array, tables: tuple[Array, ...], start: Array):
    return _call(_forward, sizes, (q, k, v), tables, start, (q,))


def _keep(sizes, q, k, v, tables, start):
    return _attend(sizes, q, k, v, tables, start), (q, k, v, tables, start)


def _give_back(sizes, kept, gradient):
    q, k, v, tables, start = kept
    found = _call(_backward, sizes, (q, k, v, gradient), tables, start, (q, k, v))
    return (*found, None, None)


_attend.defvjp(_keep, _give_back)


def _call(
    body: Any,
    sizes: _Sizes,
    inputs: tuple[Array, ...],
    tables: tuple[Array, ...],
    start: Array,
    outputs: tuple[Array, ...],
) -> Any:
    """Returns what a body gives, run for each example and group of heads."""
    (batch, _, lanes), (n, m) = inputs[0].shape, tables[0].shape
    part = sizes.together * sizes.width

    def block(x):
        return pl.BlockSpec((None, x.shape[1], part), lambda b, g, start: (b, 0, g))

    def whole(x):
        return pl.BlockSpec(x.shape, lambda b, g, start: (0, 0))

    products = 2 if body is _forward else 5
    found = pl.pallas_call(
        functools.partial(body, sizes),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, lanes // part),
            in_specs=[*map(block, inputs), *map(whole, tables)],
            out_specs=[block(x) for x in outputs],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=2**26
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * batch * n * m * lanes,
            transcendentals=batch * n * m * lanes // sizes.width,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*inputs, *outputs)),
        ),
        interpret=sizes.interpret,
        name=f"attention{body.__name__}",
    )(start, *inputs, *tables)
    return found[0] if len(outputs) == 1 else found


def _forward(sizes, start, q, k, v, *rest):
    tables, out = rest[:-1], rest[-1]
    q, k, v = _turned(sizes, q[...], tables, 1), _turned(sizes, k[...], tables, 1), v[...]
    parts = []
    for head, one in _heads(sizes):
        weights, kept = _weights(sizes, start, q[:, one], k[:, one], tables[0][...], head)
        used = (weights * kept).astype(v.dtype)
        parts.append(_product(used, v[:, one], 1, 0))
    out[...] = jnp.concatenate(parts, 1).astype(out.dtype)


def _backward(sizes, start, q, k, v, given, *rest):
    tables, outputs = rest[:-3], rest[-3:]
    q, k, v = _turned(sizes, q[...], tables, 1), _turned(sizes, k[...], tables, 1), v[...]
    given, found = given[...], ([], [], [])
    for head, one in _heads(sizes):
        weights, kept = _weights(sizes, start, q[:, one], k[:, one], tables[0][...], head)
        used = (weights * kept).astype(v.dtype)
        slope = weights * _product(given[:, one], v[:, one], 1, 1) * kept
        slope = slope - weights * jnp.sum(slope, -1, keepdims=True)
        slope = (slope * sizes.scale).astype(q.dtype)
        found[0].append(_product(slope, k[:, one], 1, 0))
        found[1].append(_product(slope, q[:, one], 0, 0))
        found[2].append(_product(used, given[:, one], 0, 0))
    for out, parts, rotary in zip(outputs, found, (True, True, False), strict=True):
        value = jnp.concatenate(parts, 1)
        value = _turned(sizes, value, tables, -1) if rotary else value
        out[...] = value.astype(out.dtype)


def _heads(sizes: _Sizes) -> list[tuple[int, slice]]:
    """Returns the heads of a program, and where they lie in the last axis."""
    width = sizes.width
    return [(head, slice(head * width, (head + 1) * width)) for head in range(sizes.together)]


def _turned(sizes: _Sizes, x: Array, tables: Any, way: int) -> Array:
    """Returns queries or keys turned by their positions, as `rope.rotate`; back for way -1."""
    if not sizes.rotary:
        return x
    y, lanes = x.astype(jnp.float32), x.shape[1]
    even = jax.lax.broadcasted_iota(jnp.int32, y.shape, 1) % 2 == 0
    neighbour = jnp.where(even, pltpu.roll(y, lanes - 1, 1), pltpu.roll(y, 1, 1))
    return (y * tables[1][...] + way * neighbour * tables[2][...]).astype(x.dtype)


def _weights(sizes: _Sizes, start: Any, q: Array, k: Array, bias: Array, head: int):
    """Returns the softmax of the logits, and keep / (1 - rate): 1 where nothing falls away."""
    logits = _product(q, k, 1, 1) * sizes.scale + bias
    powers = jnp.exp(logits - jnp.max(logits, -1, keepdims=True))
    weights = powers * (1 / jnp.sum(powers, -1, keepdims=True))
    if not sizes.rate:
        return weights, 1.0
    example = start[2] + jnp.uint32(pl.program_id(0))
    row = start[3] + jnp.uint32(pl.program_id(1) * sizes.together + head)
    n, m = logits.shape
    first = (example * jnp.uint32(sizes.heads) + row) * jnp.uint32(n * m)
    places = first + jax.lax.broadcasted_iota(jnp.uint32, (n, m), 0) * jnp.uint32(m)
    places += jax.lax.broadcasted_iota(jnp.uint32, (n, m), 1)
    words = hashed(places, start[0], start[1])
    return weights, jnp.where(stays(words, sizes.rate), 1 / (1 - sizes.rate), 0.0)


def _product(a: Array, b: Array, over_a: int, over_b: int) -> Array:
    """Returns the product of two matrices over the given axes, float32."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        a,
        b,
        (((over_a,), (over_b,)), ((), ())),
        preferred_element_type=jnp.float32,
        precision=precision,
    )
