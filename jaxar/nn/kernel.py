"""Attention as one TPU kernel: the weights never leave the chip's vector memory.

At this project's lengths the weights of all keys fit there, so the softmax is the plain one and the
backward pass recomputes the weights. With a row for each key and a column for each query,
e = exp(scale k q' + bias - max), 0 where a query does not see a key, r = 1 / sum(e) over keys,
c = 1 / (1 - rate) and the dropout mask "keep",

    o' = c r v' (keep e)                                                                         (1)
    dv = (keep e) g,  p = e keep (v g'),  ds = p - r e sum(p),  where g = c r do                 (2)
    dq' = scale k' ds,  dk = scale ds q                                                          (3)

Sums over keys then run over whole vectors, not within them, where TPUs are slow, and the products
transpose only narrow arrays (v, o, k, do, dq). Factors of a query are also applied on the narrow
side of each product. The kernel rotates queries and keys by their positions, and rotates dq and dk
back.

Keys after the last one that a band of queries sees are skipped: about half of a causal mask. Heads
are side by side in the last axis, as the projections output them, and a program takes as many as
fill whole vectors. The words of `dropout` decide which weights are dropped.

Tangents are those of (1), by a kernel as well, and (2) and (3) are their transpose. A gradient of
tangents is made by plain operations; if tangents are held fixed, as in MeanFlow's target, there is
none. Tangents of gradients need the dense way.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import linear_call
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxar.core.visibility import Visibility
from jaxar.nn.dropout import column_words, mixed, row_words, stays
from jaxar.nn.layers import LANES
from jaxar.nn.rope import rotate
from jaxar.typing import Array

ROWS, PACKED, MOST = 8, 16, 2**19
"""Tokens that fill a vector of 4-byte values, and one of 2-byte values; logits of a head that fit
into vector memory together with their intermediate results."""


def fits(n: int, m: int) -> bool:
    """Returns whether the kernel supports n queries and m keys."""
    return min(n, m) >= ROWS and n * m <= MOST


def joins(past: Array) -> bool:
    """Returns whether the kernel can append keys to these earlier ones (l, b, m, d)."""
    return past.shape[2] % PACKED == 0


def bands(sees: Visibility | None, n: int, m: int) -> tuple[tuple[int, int, int], ...]:
    """Returns bands (first query, end, keys): the keys up to the last one that the band sees.

    Bands are made of whole vectors. A visibility that is known only at run time gives one band.
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
    """Static sizes and options of the kernel; one program computes `together` heads.

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
      past: Keys, already rotated, and values (l, b, m', k, e) of earlier tokens in all layers, or
        empty. They have no gradient.
      bias: (n, m) float32, 0 where a query sees a key and -inf where it does not.
      rope: Rotary table (2, n, e) of the tokens of both queries and keys, or None.
      start: (5,) uint32: the two words of the dropout key, the offsets of the first example and
        head among those of all devices, and the layer of `past`.
      bands: Queries and the number of keys they may see, see `bands`.
      all_heads: Heads on all devices.
      scale: Scale of the logits.
      rate: Dropout rate of the weights.
      interpret: Whether to run in Pallas's interpreter, for machines without a TPU.
    """
    heads, width = q.shape[2:]
    together = LANES // math.gcd(LANES, width)
    together = together if heads % together == 0 else heads
    if rope is not None and together * width % LANES:
        # The kernel swaps neighbours in whole vectors only.
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


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attend(
    sizes: _Sizes, q: Array, k: Array, v: Array, tables: tuple[Array, ...], start: Array
) -> Any:
    sizes = _doubled(sizes, q.shape[2] // sizes.width)
    return _call(_forward, sizes, (q, k, v), tables, start, (q,))


def _doubled(sizes: _Sizes, heads: int) -> _Sizes:
    """Returns sizes with two vectors of heads per program: the forward pass of one is too short."""
    twice = 2 * sizes.together
    fits = twice * sizes.width == 2 * LANES and heads % twice == 0
    return dataclasses.replace(sizes, together=twice) if fits else sizes


@_attend.defjvp
def _attend_jvp(sizes, primals, tangents):
    """Bias, rotary tables and random words have no derivative."""
    return _attend(sizes, *primals), _tangent(sizes, primals, tangents[:3])


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _tangent(sizes: _Sizes, primals: tuple[Any, ...], tangents: tuple[Array, ...]) -> Array:
    """Returns the tangent of the output for those of q, k and v; its transpose gives gradients."""

    def onward(primals, tangents):
        *inputs, tables, start = primals
        return _call(_forward_tangent, sizes, (*inputs, *tangents), tables, start, (inputs[0],))

    def back(primals, gradient):
        *inputs, tables, start = primals
        outputs = tuple(inputs)
        return tuple(_call(_backward, sizes, (*inputs, gradient), tables, start, outputs))

    return linear_call(onward, back, primals, tangents)


@_tangent.defjvp
def _tangent_jvp(sizes, primals, tangents):
    """Second derivatives are those of plain operations, whose weights are held in memory."""

    def plainly(primals, tangents):
        *inputs, tables, start = primals
        attend = functools.partial(_attend_plainly, sizes, tables, start)
        return jax.jvp(attend, tuple(inputs), tangents)[1]

    return _tangent(sizes, *primals), jax.jvp(plainly, primals, tangents)[1]


def _attend_plainly(sizes: _Sizes, tables: Any, start: Array, *inputs: Array) -> Array:
    """Returns what `_attend` gives for q, k and v, by plain operations."""
    batch, _, lanes = inputs[0].shape
    groups = lanes // (sizes.together * sizes.width)

    def program(example, group, *inputs):
        return _attended(sizes, start, inputs, tables, place=(example, group))

    row = jax.vmap(program, (None, 0, 1, 1, 1), 1)
    parts = (x.reshape(*x.shape[:2], groups, -1) for x in inputs)
    found = jax.vmap(row, (0, None, 0, 0, 0))(jnp.arange(batch), jnp.arange(groups), *parts)
    return found.reshape(inputs[0].shape)


def _call(
    body: Any,
    sizes: _Sizes,
    inputs: tuple[Array, ...],
    tables: tuple[Array, ...],
    start: Array,
    outputs: tuple[Array, ...],
) -> Any:
    """Returns the outputs of a kernel body, run for each example and group of heads."""
    batch, _, lanes = inputs[0].shape
    part = sizes.together * sizes.width

    def block(x):
        if x.ndim == 4:
            layer = lambda b, g, start: (start[4].astype(jnp.int32), b, 0, g)  # noqa: E731
            return pl.BlockSpec((None, None, x.shape[2], part), layer)
        return pl.BlockSpec((None, x.shape[1], part), lambda b, g, start: (b, 0, g))

    def whole(x):
        return pl.BlockSpec(x.shape, lambda b, g, start: (0, 0))

    products = {_forward: 2, _forward_tangent: 6, _backward: 5}[body]
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
    out[...] = _attended(sizes, start, (q[...], k[...], v[...]), tables, past)


def _forward_tangent(sizes, start, q, k, v, of_q, of_k, of_v, *rest):
    *tables, out = rest
    inputs, tangents = (q[...], k[...], v[...]), (of_q[...], of_k[...], of_v[...])
    out[...] = jax.jvp(lambda *qkv: _attended(sizes, start, qkv, tables), inputs, tangents)[1]


def _attended(sizes, start, inputs, tables, past=(), place=None):
    """Returns (1) for the heads of one program, in the dtype of the queries; see `_kept`."""
    q, k, v = inputs
    q, k = _turned(sizes, q, tables, 1), _turned(sizes, k, tables, 1)
    if past:
        k, v = (jnp.concatenate(pair, 0) for pair in ((past[0][...], k), (past[1][...], v)))
    values = v.T
    heads = []
    for head, one in _heads(sizes):
        columns = []
        for first, end, seen in sizes.bands:
            logits = _product(k[:seen, one], q[first:end, one], 1, 1)
            powers, share = _powers(sizes, logits, tables[0][:seen, first:end])
            kept = _kept(sizes, start, head, first, powers, place=place).astype(values.dtype)
            columns.append(share * _product(values[one, :seen], kept, 1, 0))
        heads.append(jnp.concatenate(columns, 1))
    return jnp.concatenate(heads, 0).astype(q.dtype).T


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
    """Returns `total`, an array of all rows or 0, with `part` added to its first rows."""
    if len(part) == rows:
        return total + part
    if isinstance(total, float):
        return jnp.concatenate([part, jnp.zeros((rows - len(part), part.shape[1]))], 0)
    return jnp.concatenate([total[: len(part)] + part, total[len(part) :]], 0)


def _heads(sizes: _Sizes) -> list[tuple[int, slice]]:
    """Returns the heads of a program and their slices of the last axis."""
    width = sizes.width
    return [(head, slice(head * width, (head + 1) * width)) for head in range(sizes.together)]


def _turned(sizes: _Sizes, x: Array, tables: Any, way: int) -> Array:
    """Returns queries or keys rotated by their positions, as `rope.rotate`; back for way -1.

    A product with a permutation swaps neighbours: TPUs are slow within a vector, and the matrix
    unit is idle here. It is exact for bfloat16. float32 input, which will be rounded to bfloat16,
    keeps its upper 16 bits.
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
    """Returns e, and c r of each query."""
    logits = logits * (sizes.scale * math.log2(math.e)) + bias
    most = jax.lax.stop_gradient(jnp.max(logits, 0, keepdims=True))  # it cancels in the output
    powers = jnp.exp2(logits - most)
    return powers, 1 / ((1 - sizes.rate) * jnp.sum(powers, 0, keepdims=True))


def _kept(
    sizes: _Sizes, start: Any, head: int, first: int, *values: Array, place: Any = None
) -> Any:
    """Returns values of keys and queries, from query `first` on, 0 where dropout drops a weight.

    The place is the example and the group of heads: those of the kernel's program, if not given.
    """
    if sizes.rate:
        keys, queries = values[0].shape
        example, group = place or (pl.program_id(0), pl.program_id(1))
        example = start[2] + jnp.uint32(example)
        all_heads = example * jnp.uint32(sizes.heads) + start[3]
        row = all_heads + jnp.uint32(group * sizes.together + head)
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
