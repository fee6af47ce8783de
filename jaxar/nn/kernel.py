"""Attention as one kernel of TPUs: weights never leave the chip's vector memory.

Weights of all keys fit there at the lengths of this project, so that the softmax is the plain one
and the backward pass computes the weights anew. With a row for each key and a column for each
query, e = exp(scale k q' + bias - max), 0 where a query does not see a key, r = 1 / sum(e) over
keys, c = 1 / (1 - rate) and "keep" for what dropout leaves,

    o' = c r v' (keep e)                                                                         (1)
    dv = (keep e) g,  p = e keep (v g'),  ds = p - r e sum(p),  where g = c r do                 (2)
    dq' = scale k' ds,  dk = scale ds q                                                          (3)

Sums over keys then run over whole vectors, not within them, where TPUs are slow, and of all
products only narrow arrays (v, o, k, do, dq) have to be transposed. Factors of a query are taken to
the narrow side of each product, too. Queries and keys are turned by their rotary positions on the
way in, and dq, dk back.

Queries that see no key behind some row are computed up to it: of a causal mask about half is left
out. Heads lie side by side in the last axis, as the projections give them, and a program takes as
many as fill whole vectors. Weights fall away by the words of `dropout`.
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

from jaxar.core.visibility import Visibility
from jaxar.nn.dropout import column_words, mixed, row_words, stays
from jaxar.nn.layers import LANES
from jaxar.nn.rope import rotate
from jaxar.typing import Array

ROWS, PACKED, MOST = 8, 16, 2**19
"""Tokens that fill a vector, and one of two bytes a number; logits of a head that fit into vector
memory with what is made of them."""


def fits(n: int, m: int) -> bool:
    """Returns whether the kernel serves n queries that look at m keys."""
    return min(n, m) >= ROWS and n * m <= MOST


def joins(past: Array) -> bool:
    """Returns whether the kernel can put further keys behind these earlier ones (l, b, m, d)."""
    return past.shape[2] % PACKED == 0


def bands(sees: Visibility | None, n: int, m: int) -> tuple[tuple[int, int, int], ...]:
    """Returns queries (first, end) with the number of keys up to the last that one of them sees.

    Edges are those of whole vectors. A visibility that is known only when the program runs gives
    one band.
    """
    if sees is None or not sees.static:
        return ((0, n, m),)
    found: list[tuple[int, int, int]] = []
    for first in range(0, n, LANES):
        end = min(first + LANES, n)
        last = int(np.flatnonzero(sees.known(first, end).any(0)).max(initial=0))
        keys = min(m, -(-(last + 1) // LANES) * LANES)
        if found and found[-1][2] == keys:
            first = found.pop()[0]
        found.append((first, end, keys))
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """What is fixed when the kernel is compiled; `together` heads are in one program.

    `bands` are (first query, end, keys that these see), see `bands`; `past` is the number of arrays
    of earlier tokens.
    """

    heads: int
    together: int
    width: int
    queries: int
    bands: tuple[tuple[int, int, int], ...]
    past: int
    rotary: bool
    scale: float
    rate: float
    interpret: bool


def attend_in_kernel(
    q: Array,
    k: Array,
    v: Array,
    past: tuple[Array, ...],
    bias: Array,
    rope: Array | None,
    start: Array,
    *,
    bands: tuple[tuple[int, int, int], ...],
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
      past: Keys, already turned, and values (l, b, m', k, e) of all layers that come before these,
        or nothing. Such have no gradient.
      bias: (n, m) float32, 0 where a query sees a key and -inf where it does not.
      rope: Rotary table (2, n, e) of the tokens of both queries and keys, or None.
      start: (5,) uint32: the two words of the key of dropout, the first example and head of these
        among all examples and heads, and the layer of `past`.
      bands: Rows and the columns they may see, see `bands`.
      all_heads: Heads on all devices.
      scale: Of the logits.
      rate: Dropout of the weights.
      interpret: Whether to run as plain operations, as where there is no TPU.
    """
    heads, width = q.shape[2:]
    together = LANES // math.gcd(LANES, width)
    together = together if heads % together == 0 else heads
    if rope is not None and together * width % LANES:
        # Neighbours change places in whole vectors, which these are not.
        q, k, rope = rotate(q, rope), rotate(k, rope), None
    rotary = rope is not None
    counts = (all_heads, together, width, q.shape[1])
    sizes = _Sizes(*counts, bands, len(past), rotary, scale, rate, interpret)
    tables = [bias.T]
    if rope is not None:
        signs = np.tile(np.array([-1, 1], np.float32), width // 2)
        tables += [jnp.tile(table, together) for table in (rope[0], rope[1] * signs)]
        tables.append(jnp.eye(LANES, dtype=q.dtype)[np.arange(LANES) ^ 1])
    flat = [x.reshape(*x.shape[:-2], heads * width) for x in (q, k, v, *past)]
    if past:
        sizes = _doubled(sizes, heads)
        out: Any = _call(_forward, sizes, tuple(flat), tuple(tables), start, (flat[0],))
    else:
        out = _attend(sizes, *flat, tuple(tables), start)
    return out.reshape(q.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    sizes: _Sizes, q: Array, k: Array, v: Array, tables: tuple[Array, ...], start: Array
) -> Any:
    sizes = _doubled(sizes, q.shape[2] // sizes.width)
    return _call(_forward, sizes, (q, k, v), tables, start, (q,))


def _doubled(sizes: _Sizes, heads: int) -> _Sizes:
    """Returns sizes with two vectors of heads together: forward there is little to do for one."""
    twice = 2 * sizes.together
    fits = twice * sizes.width == 2 * LANES and heads % twice == 0
    return dataclasses.replace(sizes, together=twice) if fits else sizes


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
    batch, _, lanes = inputs[0].shape
    part = sizes.together * sizes.width

    def block(x):
        if x.ndim == 4:
            layer = lambda b, g, start: (start[4].astype(jnp.int32), b, 0, g)  # noqa: E731
            return pl.BlockSpec((None, None, x.shape[2], part), layer)
        return pl.BlockSpec((None, x.shape[1], part), lambda b, g, start: (b, 0, g))

    def whole(x):
        return pl.BlockSpec(x.shape, lambda b, g, start: (0, 0))

    products = 2 if body is _forward else 5
    logits = sum((end - first) * seen for first, end, seen in sizes.bands)
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
            flops=2 * products * batch * logits * lanes,
            transcendentals=batch * logits * lanes // sizes.width,
            bytes_accessed=sum(
                math.prod(x.shape[-3:]) * x.dtype.itemsize for x in (*inputs, *outputs)
            ),
        ),
        interpret=sizes.interpret,
        name=f"attention{body.__name__}",
    )(start, *inputs, *tables)
    return found[0] if len(outputs) == 1 else found


def _forward(sizes, start, q, k, v, *rest):
    past, tables, out = rest[: sizes.past], rest[sizes.past : -1], rest[-1]
    q, k, v = _turned(sizes, q[...], tables, 1), _turned(sizes, k[...], tables, 1), v[...]
    if past:
        k, v = (jnp.concatenate(pair, 0) for pair in ((past[0][...], k), (past[1][...], v)))
    values = v.T
    heads = []
    for head, one in _heads(sizes):
        columns = []
        for first, end, seen in sizes.bands:
            logits = _product(k[:seen, one], q[first:end, one], 1, 1)
            powers, share = _powers(sizes, logits, tables[0][:seen, first:end])
            kept = _kept(sizes, start, head, first, powers).astype(values.dtype)
            columns.append(share * _product(values[one, :seen], kept, 1, 0))
        heads.append(jnp.concatenate(columns, 1))
    out[...] = jnp.concatenate(heads, 0).astype(out.dtype).T


def _backward(sizes, start, q, k, v, given, *rest):
    tables, outputs = rest[:-3], rest[-3:]
    q, k, v = _turned(sizes, q[...], tables, 1), _turned(sizes, k[...], tables, 1), v[...]
    keys, slopes, found = k.T, given[...].T, ([], [], [])
    for head, one in _heads(sizes):
        columns, of_keys, of_values = [], 0.0, 0.0
        for first, end, seen in sizes.bands:
            logits = _product(k[:seen, one], q[first:end, one], 1, 1)
            powers, share = _powers(sizes, logits, tables[0][:seen, first:end])
            slope = (slopes[one, first:end] * share).astype(slopes.dtype)
            upon = _product(v[:seen, one], slope, 1, 0)
            kept, upon = _kept(sizes, start, head, first, powers, upon * powers)
            part = jnp.sum(upon, 0, keepdims=True) * (share * (1 - sizes.rate))
            upon = (upon - powers * part).astype(q.dtype)
            columns.append(_product(keys[one, :seen], upon, 1, 0))
            of_keys = _added(of_keys, _product(upon, q[first:end, one], 1, 0), len(k))
            of_values = _added(of_values, _product(kept.astype(v.dtype), slope, 1, 1), len(k))
        for heads, part in zip(found, (columns, of_keys, of_values), strict=True):
            heads.append(jnp.concatenate(part, 1) if isinstance(part, list) else part)
    of_queries = jnp.concatenate(found[0], 0).T
    of_keys, of_values = (jnp.concatenate(heads, 1) for heads in found[1:])
    gradients = (
        _turned(sizes, sizes.scale * of_queries, tables, -1),
        _turned(sizes, sizes.scale * of_keys, tables, -1),
        of_values,
    )
    for out, gradient in zip(outputs, gradients, strict=True):
        out[...] = gradient.astype(out.dtype)


def _added(total: Any, part: Array, rows: int) -> Array:
    """Returns the sum of an array of all rows, or 0, and one of the first rows."""
    if len(part) == rows:
        return total + part
    if isinstance(total, float):
        return jnp.concatenate([part, jnp.zeros((rows - len(part), part.shape[1]))], 0)
    return jnp.concatenate([total[: len(part)] + part, total[len(part) :]], 0)


def _heads(sizes: _Sizes) -> list[tuple[int, slice]]:
    """Returns the heads of a program, and where they lie in the last axis."""
    width = sizes.width
    return [(head, slice(head * width, (head + 1) * width)) for head in range(sizes.together)]


def _turned(sizes: _Sizes, x: Array, tables: Any, way: int) -> Array:
    """Returns queries or keys turned by their positions, as `rope.rotate`; back for way -1.

    Neighbours change places by a product with a permutation: within a vector, TPUs do little at a
    time, and the matrix unit is idle here. It is exact for bfloat16; of float32 that is to be
    rounded to bfloat16 the upper 16 bits are kept.
    """
    if not sizes.rotary:
        return x
    swap, parts = tables[3][...], []
    for first in range(0, x.shape[1], LANES):
        part = x[:, first : first + LANES]
        upper = part.astype(swap.dtype)
        neighbour = _product(upper, swap, 1, 0)
        if x.dtype != swap.dtype:
            lower = (part - upper.astype(x.dtype)).astype(swap.dtype)
            neighbour += _product(lower, swap, 1, 0)
        place = first % tables[1].shape[1]
        cosines, sines = (table[:, place : place + LANES] for table in tables[1:3])
        parts.append(part.astype(jnp.float32) * cosines + way * neighbour * sines)
    return jnp.concatenate(parts, 1).astype(x.dtype)


def _powers(sizes: _Sizes, logits: Array, bias: Array) -> tuple[Array, Array]:
    """Returns e, and c r for each query."""
    logits = logits * (sizes.scale * math.log2(math.e)) + bias
    powers = jnp.exp2(logits - jnp.max(logits, 0, keepdims=True))
    return powers, 1 / ((1 - sizes.rate) * jnp.sum(powers, 0, keepdims=True))


def _kept(sizes: _Sizes, start: Any, head: int, first: int, *values: Array) -> Any:
    """Returns values of keys and queries, from the first one on, 0 where a weight falls away."""
    if sizes.rate:
        keys, queries = values[0].shape
        example = start[2] + jnp.uint32(pl.program_id(0))
        all_heads = example * jnp.uint32(sizes.heads) + start[3]
        row = all_heads + jnp.uint32(pl.program_id(1) * sizes.together + head)
        row = row * jnp.uint32(sizes.queries) + jnp.uint32(first)
        row += jax.lax.broadcasted_iota(jnp.uint32, (1, queries), 1)
        column = jax.lax.broadcasted_iota(jnp.uint32, (keys, 1), 0)
        words = mixed(row_words(row, start[0], start[1]), column_words(column, start[0], start[1]))
        values = tuple(jnp.where(stays(words, sizes.rate), value, 0.0) for value in values)
    return values[0] if len(values) == 1 else values


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
