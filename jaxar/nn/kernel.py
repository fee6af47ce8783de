"""Attention as one kernel of TPUs: weights never leave the chip's vector memory.

Rows of all keys fit there at the lengths of this project, so that the softmax is the plain one and
the backward pass computes the weights anew:

    w = softmax(scale q k' + bias),  u = keep / (1 - rate) w,  o = u v                          (1)
    dv = u' do,  dw = keep / (1 - rate) do v',  ds = scale w (dw - sum(w dw))                   (2)
    dq = ds k,  dk = ds' q                                                                      (3)

Heads lie side by side in the last axis, as the projections give them, and a program takes as many
as fill whole vectors. Weights fall away by the words of `dropout`, at the places of (b, k, n, m).
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxar.nn.dropout import hashed, threshold
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
    scale: float
    rate: float
    interpret: bool


def attend_in_kernel(
    q: Array,
    k: Array,
    v: Array,
    bias: Array,
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
    sizes = _Sizes(all_heads, together, scale, rate, interpret)
    flat = (x.reshape(*x.shape[:2], heads * width) for x in (q, k, v))
    return _attend(sizes, width, *flat, bias, start).reshape(q.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(sizes: _Sizes, width: int, q: Array, k: Array, v: Array, bias: Array, start: Array):
    return _call(_forward, sizes, width, (q, k, v), bias, start, (q,))


def _keep(sizes, width, q, k, v, bias, start):
    return _attend(sizes, width, q, k, v, bias, start), (q, k, v, bias, start)


def _give_back(sizes, width, kept, gradient):
    q, k, v, bias, start = kept
    found = _call(_backward, sizes, width, (q, k, v, gradient), bias, start, (q, k, v))
    return (*found, None, None)


_attend.defvjp(_keep, _give_back)


def _call(
    body: Any,
    sizes: _Sizes,
    width: int,
    inputs: tuple[Array, ...],
    bias: Array,
    start: Array,
    outputs: tuple[Array, ...],
) -> Any:
    """Returns what a body gives, run for each example and group of heads."""
    (batch, n, lanes), m = inputs[0].shape, bias.shape[1]
    part = sizes.together * width

    def block(x):
        return pl.BlockSpec((None, x.shape[1], part), lambda b, g, start: (b, 0, g))

    products = 2 if body is _forward else 5
    found = pl.pallas_call(
        functools.partial(body, sizes, width),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, lanes // part),
            in_specs=[*map(block, inputs), pl.BlockSpec((n, m), lambda b, g, start: (0, 0))],
            out_specs=[block(x) for x in outputs],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=2**26
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * batch * n * m * lanes,
            transcendentals=batch * n * m * lanes // width,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*inputs, *outputs)),
        ),
        interpret=sizes.interpret,
        name=f"attention{body.__name__}",
    )(start, *inputs, bias)
    return found[0] if len(outputs) == 1 else found


def _forward(sizes, width, start, q, k, v, bias, out):
    for head in range(sizes.together):
        one = pl.ds(head * width, width)
        weights, kept = _weights(sizes, start, q[:, one], k[:, one], bias[...], head)
        used = (weights * kept).astype(v.dtype)
        out[:, one] = _product(used, v[:, one], 1, 0).astype(out.dtype)


def _backward(sizes, width, start, q, k, v, gradient, bias, to_q, to_k, to_v):
    for head in range(sizes.together):
        one = pl.ds(head * width, width)
        weights, kept = _weights(sizes, start, q[:, one], k[:, one], bias[...], head)
        given = gradient[:, one]
        used = (weights * kept).astype(v.dtype)
        to_v[:, one] = _product(used, given, 0, 0).astype(to_v.dtype)
        slope = weights * _product(given, v[:, one], 1, 1) * kept
        slope = slope - weights * jnp.sum(slope, -1, keepdims=True)
        slope = (slope * sizes.scale).astype(q.dtype)
        to_q[:, one] = _product(slope, k[:, one], 1, 0).astype(to_q.dtype)
        to_k[:, one] = _product(slope, q[:, one], 0, 0).astype(to_k.dtype)


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
    stays = hashed(places, start[0], start[1]) >= threshold(sizes.rate)
    return weights, jnp.where(stays, 1 / (1 - sizes.rate), 0.0)


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
