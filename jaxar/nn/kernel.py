"""Attention as one kernel of TPUs: weights never leave the chip's vector memory.

Rows of all keys fit there at the lengths of this project, so that the softmax is the plain one and
the backward pass computes the weights anew. With e = exp(scale q k' + bias - max), 0 where a query
does not see a key, r = 1 / sum(e), c = 1 / (1 - rate) and "keep" for what dropout leaves,

    o = c r (keep e) v                                                                           (1)
    dv = (keep e)' g,  p = e keep (g v'),  ds = p - r e sum(p),  where g = c r do                (2)
    dq = scale ds k,  dk = scale ds' q                                                           (3)

Factors of a row are taken to the narrow side of each product, which has fewer numbers than e.
Queries and keys are turned by their rotary positions on the way in, and dq, dk back.

Rows that see no key behind some column are computed up to it: of a causal mask about half is left
out. Heads lie side by side in the last axis, as the projections give them, and a program takes as
many as fill whole vectors. Weights fall away by the words of `dropout`, at the places of
(b, k, n, m).
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
ROWS, MOST = 8, 2**19
"""Tokens that fill a vector; logits of a head that fit into vector memory with what is made of
them."""


def fits(q: Array, k: Array) -> bool:
    """Returns whether the kernel serves queries (b, n, k, e) and keys (b, m, k, e)."""
    n, m = q.shape[1], k.shape[1]
    return min(n, m) >= ROWS and n * m <= MOST


def bands(mask: Any, n: int, m: int) -> tuple[tuple[int, int, int], ...]:
    """Returns queries (first, end) with the number of keys up to the last that one of them sees.

    Edges are those of whole vectors. A mask that is known only when the program runs gives one
    band.
    """
    if not isinstance(mask, np.ndarray):
        return ((0, n, m),)
    seen = np.broadcast_to(mask, (n, m))
    found: list[tuple[int, int, int]] = []
    for first in range(0, n, LANES):
        end = min(first + LANES, n)
        last = int(np.flatnonzero(seen[first:end].any(0)).max(initial=0))
        keys = min(m, -(-(last + 1) // LANES) * LANES)
        if found and found[-1][2] == keys:
            first = found.pop()[0]
        found.append((first, end, keys))
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """What is fixed when the kernel is compiled; `together` heads are in one program.

    `tokens` are those of queries and keys, `bands` are (first row, end, columns that these see).
    """

    heads: int
    together: int
    width: int
    tokens: tuple[int, int]
    bands: tuple[tuple[int, int, int], ...]
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
      bias: (n, m) float32, 0 where a query sees a key and -inf where it does not.
      rope: Rotary table (2, n, e) of the tokens of both queries and keys, or None.
      start: (4,) uint32: the two words of the key of dropout, and the first example and head of
        these among all examples and heads.
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
        # Neighbours are found by rolling whole vectors, which these are not.
        q, k, rope = rotate(q, rope), rotate(k, rope), None
    rotary = rope is not None
    tokens = q.shape[1], k.shape[1]
    sizes = _Sizes(all_heads, together, width, tokens, bands, rotary, scale, rate, interpret)
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
    q, k, v, (bias, *rest), start = kept
    tables = (bias.T, *rest)
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
        rows = []
        for first, end, seen in sizes.bands:
            logits = _product(q[first:end, one], k[:seen, one], 1, 1)
            powers, share = _powers(sizes, logits, tables[0][first:end, :seen], 1)
            kept = _kept(sizes, start, head, first, 1, powers).astype(v.dtype)
            rows.append(share * _product(kept, v[:seen, one], 1, 0))
        parts.append(jnp.concatenate(rows, 0))
    out[...] = jnp.concatenate(parts, 1).astype(out.dtype)


def _backward(sizes, start, q, k, v, given, *rest):
    """Computes (2) and (3) with a column for each query, so that only narrow arrays are turned."""
    tables, outputs = rest[:-3], rest[-3:]
    q, k, v = _turned(sizes, q[...], tables, 1), _turned(sizes, k[...], tables, 1), v[...]
    queries, keys, slopes, found = q.T, k.T, given[...].T, ([], [], [])
    for head, one in _heads(sizes):
        columns, of_keys, of_values = [], 0.0, 0.0
        for first, end, seen in sizes.bands:
            query, slope = queries[one, first:end], slopes[one, first:end]
            logits = _product(k[:seen, one], query, 1, 0)
            powers, share = _powers(sizes, logits, tables[0][:seen, first:end], 0)
            slope = (slope * share).astype(slope.dtype)
            upon = _product(v[:seen, one], slope, 1, 0)
            kept, upon = _kept(sizes, start, head, first, 0, powers, upon * powers)
            part = jnp.sum(upon, 0, keepdims=True) * (share * (1 - sizes.rate))
            upon = (upon - powers * part).astype(q.dtype)
            columns.append(_product(keys[one, :seen], upon, 1, 0))
            of_keys = _added(of_keys, _product(upon, query, 1, 1), len(k))
            of_values = _added(of_values, _product(kept.astype(v.dtype), slope, 1, 1), len(k))
        for parts, part in zip(found, (columns, of_keys, of_values), strict=True):
            parts.append(jnp.concatenate(part, 1) if isinstance(part, list) else part)
    of_queries = jnp.concatenate(found[0], 0).T
    of_keys, of_values = (jnp.concatenate(parts, 1) for parts in found[1:])
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
    """Returns queries or keys turned by their positions, as `rope.rotate`; back for way -1."""
    if not sizes.rotary:
        return x
    y, lanes = x.astype(jnp.float32), x.shape[1]
    even = jax.lax.broadcasted_iota(jnp.int32, y.shape, 1) % 2 == 0
    neighbour = jnp.where(even, pltpu.roll(y, lanes - 1, 1), pltpu.roll(y, 1, 1))
    return (y * tables[1][...] + way * neighbour * tables[2][...]).astype(x.dtype)


def _powers(sizes: _Sizes, logits: Array, bias: Array, keys: int) -> tuple[Array, Array]:
    """Returns e, and c r for each query; axis `keys` are the keys."""
    logits = logits * (sizes.scale * math.log2(math.e)) + bias
    powers = jnp.exp2(logits - jnp.max(logits, keys, keepdims=True))
    total = (1 - sizes.rate) * jnp.sum(powers, keys, keepdims=True)
    share = pl.reciprocal(total, approx=True)
    for _ in range(2):  # Newton's steps cost less than what an exact reciprocal looks out for
        share = share * (2 - total * share)
    return powers, share


def _kept(sizes: _Sizes, start: Any, head: int, first: int, keys: int, *values: Array) -> Any:
    """Returns values, 0 where a weight falls away; the first query is one of a band."""
    if sizes.rate:
        n, m = sizes.tokens
        example = start[2] + jnp.uint32(pl.program_id(0))
        row = start[3] + jnp.uint32(pl.program_id(1) * sizes.together + head)
        place = (example * jnp.uint32(sizes.heads) + row) * jnp.uint32(n * m)
        shape = values[0].shape
        places = place + jnp.uint32(first * m) + jax.lax.broadcasted_iota(jnp.uint32, shape, keys)
        places += jax.lax.broadcasted_iota(jnp.uint32, shape, 1 - keys) * jnp.uint32(m)
        keep = stays(hashed(places, start[0], start[1]), sizes.rate)
        values = tuple(jnp.where(keep, value, 0.0) for value in values)
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
