"""Laws of the layers: who sees whom, what turns with position, what a cache may not change."""

import contextlib
import functools
import math

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar import system
from jaxar.assembly import build_system
from jaxar.core.plan import cell, scale
from jaxar.core.visibility import Layout, Visibility, causal, from_mask, present
from jaxar.nn import layers, module
from jaxar.nn.attention import Attention, Past, attend
from jaxar.nn.compute import PLAIN, Compute, Dropout, Pass
from jaxar.nn.dropout import dropout, words
from jaxar.nn.kernel import bands
from jaxar.nn.module import bind, params_of, stack
from jaxar.nn.rope import rotary_table, rotate
from jaxar.nn.transformer import Block, Transformer
from jaxar.parallel.sharding import make_mesh
from jaxar.runs.model import Model, sampler
from jaxar.tree import nest, paths
from tests.shrink import shrunk

WIDTH, HEADS, HIDDEN = 8, 2, 12
CELLS = cell((2, 3), height=2, width=1)  # 3 entities of 2 tokens
SCALES = scale((2, 2), sizes=[1, (1, 2), 2])  # 3 entities of 1, 2 and 4 tokens

# Quick to compile, slow to run: right for programs this small.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

over_plans = pytest.mark.parametrize("plan", [CELLS, SCALES], ids=["cells", "scales"])


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def key(seed):
    return jax.random.key(seed, impl="unsafe_rbg")  # the default takes seconds to compile


def filled(make):
    """A module with random weights and biases on its shapes: no initial law is compiled."""
    template = jax.eval_shape(lambda key: make(key=key), jax.random.key(0))
    params = jax.tree.map(lambda a: 0.3 * normal(a.size, *a.shape), params_of(template))
    return bind(template, params)


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def dtypes_of(f, *args):
    """The dtypes that each primitive takes, in scans and calls too."""
    found = {}

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            for var in equation.invars:
                found.setdefault(equation.primitive.name, set()).add(str(var.aval.dtype))
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                walk(inner)

    walk(jax.make_jaxpr(f)(*args).jaxpr)
    return found


# Norms, maps, embeddings.


def test_rms_norm_divides_by_the_root_mean_square():
    x = normal(0, 3, 16)
    close(jnp.mean(layers.rms_norm(x) ** 2, -1), 1)
    close(layers.rms_norm(x), x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True)))
    close(layers.rms_norm(5 * x), layers.rms_norm(x))
    assert (layers.rms_norm(jnp.zeros(4)) == 0).all()


def test_rms_norm_is_computed_in_float32():
    x = normal(0, 4, 256).astype(jnp.bfloat16)
    y = layers.rms_norm(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, layers.rms_norm(x.astype(jnp.float32)).astype(jnp.bfloat16))
    assert layers.RMSNorm(256)(x).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("inputs", "outputs"), [(6, 4), (6, (3, 2, 2)), ((2, 3), 4), ((2, 3), (4, 1))]
)
def test_a_linear_map_of_axes_is_a_reshaped_product(inputs, outputs):
    linear = layers.Linear(inputs, outputs, key=jax.random.key(0))
    linear.bias[...] = normal(1, *linear.outputs)
    x = normal(2, 5, 7, *linear.inputs)
    flat = x.reshape(35, 6) @ linear.kernel[...].reshape(6, -1) + linear.bias[...].reshape(-1)
    close(linear(x), flat.reshape(5, 7, *linear.outputs))


def test_products_of_a_linear_map_and_its_gradients_see_rows_as_one_axis_on_cpus():
    linear = layers.Linear(6, (4, 2), key=jax.random.key(0))

    def loss(params, x):
        return jnp.sum(bind(linear, params)(x) ** 2)

    graded = jax.make_jaxpr(jax.grad(loss, (0, 1)))(params_of(linear), normal(1, 3, 5, 6))
    products = [e for e in graded.eqns if e.primitive.name == "dot_general"]
    assert len(products) == 3
    assert {x.aval.ndim for product in products for x in product.invars} == {2}


def test_the_initial_kernel_sees_flattened_sizes():
    shapes = [((64, 48), 64, 48), ((8, 8, 48), (8, 8), 48), ((64, 3, 16), 64, (3, 16))]
    for shape, inputs, outputs in shapes:
        kernel = layers.Linear(inputs, outputs, key=jax.random.key(0)).kernel[...]
        bound = math.sqrt(6 / (64 + 48))
        assert kernel.shape == shape
        assert 0.99 * bound < jnp.abs(kernel).max() <= bound


def test_the_gated_mlp_is_its_formula():
    mlp = filled(functools.partial(layers.GatedMLP, WIDTH, HIDDEN))
    x = normal(1, 2, 3, WIDTH)
    gate = mlp.gate(x)
    close(mlp(x), mlp.down(gate * jax.scipy.stats.norm.cdf(gate) * mlp.up(x)))


def test_the_gated_mlp_in_half_precision_is_its_formula_with_whole_vectors():
    mlp = filled(functools.partial(layers.GatedMLP, WIDTH, HIDDEN))
    x = normal(1, 2, 3, WIDTH)

    def graded(x):
        def loss(params):
            y = bind(mlp, params)(x)
            return jnp.mean(jnp.square(y.astype(jnp.float32))), y

        return jax.grad(loss, has_aux=True)(params_of(mlp))

    (slopes, y), (half_slopes, half) = graded(x), graded(x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    close(half, y, 0.03)
    for exact, rounded in zip(*map(jax.tree.leaves, (slopes, half_slopes)), strict=True):
        assert exact.shape == rounded.shape
        assert jnp.linalg.norm(exact - rounded) <= 0.03 * jnp.linalg.norm(exact)
    text = str(jax.make_jaxpr(mlp)(x.astype(jnp.bfloat16)))
    assert f"bf16[2,3,{layers.LANES}]" in text and f"bf16[2,3,{HIDDEN}]" not in text


def test_a_truncated_time_is_a_whole_number_of_thousandths():
    times = jnp.asarray([0.1232, 0.1239, 0.1242])
    make = functools.partial(layers.TimeEmbedding, WIDTH, scale=1000.0)
    cut, whole = (filled(functools.partial(make, truncate=truncate)) for truncate in (True, False))
    low, high, above = cut(times)
    assert (low == high).all() and (low != above).any()
    close(low, whole(jnp.asarray(0.123)))
    low, high, above = whole(times)
    assert (low != high).any() and (high != above).any()


def test_times_are_embedded_in_float32():
    embed = filled(functools.partial(layers.TimeEmbedding, WIDTH, scale=1000.0, truncate=True))
    assert embed(jnp.ones((2, 3), jnp.bfloat16)).dtype == jnp.float32
    assert embed(jnp.ones((2, 3))).shape == (2, 3, WIDTH)


def test_sinusoids_turn_at_falling_frequencies():
    cos, sin = jnp.split(layers.sinusoids(jnp.asarray([0.0, 1.0, 2.5]), 8), 2, -1)
    close(cos**2 + sin**2, 1)
    close(jnp.arctan2(sin[1], cos[1]), 1e4 ** -(np.arange(4) / 4))
    close(jnp.unwrap(jnp.arctan2(sin[2], cos[2])), 2.5 * jnp.arctan2(sin[1], cos[1]))


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 3, 2), (6,)])
def test_each_token_gets_the_vectors_of_its_segment(sizes):
    x = normal(0, 2, 6, 3)
    vectors = [normal(seed, 2, len(sizes), 3) for seed in (1, 2)]
    segment = np.repeat(np.arange(len(sizes)), sizes)
    wanted = layers.modulate(x, *(v[:, segment] for v in vectors))
    close(layers.per_segment(layers.modulate, x, vectors, sizes), wanted)


def test_equal_segments_are_never_laid_out_for_each_token():
    x, vectors = normal(0, 2, 6, 3), [normal(1, 2, 3, 3)]

    def text(sizes):
        f = functools.partial(layers.per_segment, jnp.multiply, sizes=sizes)
        return str(jax.make_jaxpr(f)(x, vectors))

    assert "gather" not in text((2, 2, 2)) and "gather" in text((1, 3, 2))


# Dropout.


def test_dropout_keeps_the_mean():
    x = jnp.full(20_000, 3.0)
    y = dropout(x, 0.25, key(0))
    dropped = float((y == 0).mean())
    assert abs(dropped - 0.25) < 5 * math.sqrt(0.25 * 0.75 / x.size)
    close(y[y != 0], 3 / 0.75)
    assert abs(float(y.mean()) - 3) < 5 * 3 * math.sqrt(0.25 / 0.75 / x.size)


def test_dropout_without_key_or_rate_does_nothing():
    x = normal(0, 5)
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x


def test_what_falls_away_is_independent_of_neighbours_and_of_other_keys():
    """Correlations of 40 keys and of places apart by small steps, rows and planes are chance's."""
    shape = (8, 32, 256)
    keys = jax.vmap(jax.random.key)(jnp.arange(40))  # words of keys that differ in few bits
    drawn = np.asarray(jax.vmap(lambda key: words(key, shape))(keys)).reshape(40, -1)
    for threshold in (round(0.1 * 2**32), 2**31):
        rate = threshold / 2**32
        dropped = ((drawn < threshold) - rate) / math.sqrt(rate * (1 - rate))
        n = dropped.shape[1]
        assert np.abs(dropped.mean(1)).max() < 4.5 / math.sqrt(n)
        assert np.abs(np.corrcoef(dropped)[np.triu_indices(40, 1)]).max() < 5 / math.sqrt(n)
        for step in (1, 2, 3, 16, 256, 768, 8192):
            together = (dropped[:, step:] * dropped[:, :-step]).mean()
            assert abs(together) < 4.5 / math.sqrt(40 * (n - step)), step


def test_random_words_number_the_rows_in_row_major_order():
    flat = words(key(3), (6, 4))
    np.testing.assert_array_equal(words(key(3), (2, 3, 4)), flat.reshape(2, 3, 4))
    assert len(set(flat.ravel().tolist())) == 24 and flat.dtype == jnp.uint32


def test_dropped_values_of_rows_and_of_columns_are_independent():
    """Also at the corners of rectangles, whose words are made of the same four words."""
    drawn = np.asarray(words(key(5), (1024, 16384))).view(np.int32)
    d = (drawn < round(0.1 * 2**32) - 2**31) - 0.1
    d = (d / 0.3).astype(np.float32)
    for x in (d, d.T[:1024]):
        n, m = x.shape
        products = x @ x.T
        np.fill_diagonal(products, 0)
        squares = (products**2).sum() / (n * (n - 1) * m)
        assert abs(squares - 1) < 5 * np.sqrt(4 / n**2) + 5 / np.sqrt(m * n)


# Rotary positions.


def table(positions, features):
    return jnp.asarray(rotary_table(np.asarray(positions), features))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_rotated_products_depend_on_the_difference_of_positions_alone(axes):
    rng = np.random.default_rng(axes)
    features = 8 * axes
    q, k = normal(0, 1, 5, 2, features), normal(1, 1, 5, 2, features)
    here, there = rng.integers(0, 9, (2, 5, axes))

    def products(here, there):
        turned = (rotate(x, table(p, features)) for x, p in ((q, here), (k, there)))
        return jnp.einsum("bnke,bnke->nk", *turned)

    plain = products(here, there)
    move = rng.integers(1, 9, axes)  # each axis by its own amount
    close(products(here + move, there + move), plain, 1e-4)
    for step in np.eye(axes, dtype=int):
        assert jnp.abs(products(here + step, there) - plain).min() > 1e-3


def test_rotation_keeps_norms_and_leaves_the_origin():
    x = normal(0, 2, 3, 2, 8)
    turned = rotate(x, table([[0, 0], [3, 1], [2.5, 7]], 8))
    close(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1))
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])
    assert jnp.abs(turned[:, 1:] - x[:, 1:]).max() > 0.1


def test_each_axis_turns_its_own_share_of_the_features():
    x = normal(0, 1, 2, 1, 8)
    rows, columns = rotate(x, table([[1, 0], [0, 1]], 8))[0, :, 0]
    np.testing.assert_array_equal(rows[4:], x[0, 0, 0, 4:])
    np.testing.assert_array_equal(columns[:4], x[0, 1, 0, :4])


@pytest.mark.parametrize(("axes", "features"), [(1, 7), (2, 6), (3, 8)])
def test_a_head_that_axes_do_not_divide_is_refused(axes, features):
    said = f"{axes} coordinates .* multiple of {2 * axes}, not {features}"
    with pytest.raises(ValueError, match=said):
        rotary_table(np.zeros((3, axes)), features)


# Attention.


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_its_loops(masked):
    q, k, v = normal(0, 2, 3, 2, 4), normal(1, 2, 5, 2, 4), normal(2, 2, 5, 2, 4)
    mask = np.tril(np.ones((3, 5), bool), 1) if masked else None
    out = np.asarray(attend(q, k, v, mask if mask is None else from_mask(mask)))
    for b, n, h in np.ndindex(2, 3, 2):
        seen = [m for m in range(5) if mask is None or mask[n, m]]
        weight = np.exp([float(q[b, n, h] @ k[b, m, h]) / 2 for m in seen])
        mean = sum(w * np.asarray(v[b, m, h]) for w, m in zip(weight, seen, strict=True))
        close(out[b, n, h], mean / weight.sum())


@pytest.mark.parametrize("size", [1.0, 100.0], ids=["small", "large logits"])
def test_the_gradient_of_attention_is_that_of_a_softmax(size):
    q, k, v = size * normal(0, 2, 3, 2, 4), normal(1, 2, 5, 2, 4), normal(2, 2, 5, 2, 4)
    mask = np.tril(np.ones((3, 5), bool), 1)

    def by_softmax(q, k, v):
        logits = jnp.where(mask, jnp.einsum("bnke,bmke->bknm", q, k) / 2, -jnp.inf)
        return jnp.sum(jnp.einsum("bknm,bmke->bnke", jax.nn.softmax(logits), v) ** 2)

    def ours(q, k, v):
        return jnp.sum(attend(q, k, v, from_mask(mask)) ** 2)

    for found, wanted in zip(
        *(jax.grad(f, (0, 1, 2))(q, k, v) for f in (ours, by_softmax)), strict=True
    ):
        largest = jnp.abs(wanted).max()
        close(found / largest, wanted / largest, size * 1e-5)


def test_attention_in_half_precision_is_within_its_rounding():
    q, k, v = (normal(i, 2, 8, 2, 24).astype(jnp.bfloat16) for i in range(3))
    exact = attend(*(x.astype(jnp.float32) for x in (q, k, v)))
    error = attend(q, k, v).astype(jnp.float32) - exact
    assert jnp.linalg.norm(error) < 2**-8 * jnp.linalg.norm(exact)


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize(
    "sizes", [(3, 5, 2, 4), (8, 8, 4, 64), (8, 8, 3, 32), (160, 160, 2, 64)], ids=str
)
def test_the_kernel_is_the_dense_way_with_the_same_weights_left_out(sizes, rate):
    n, m, heads, width = sizes
    q, k, v = (normal(i, 2, size, heads, width) for i, size in enumerate((n, m, m)))
    mask, slope = np.tril(np.ones((n, m), bool), m - n), normal(3, 2, n, heads, width)
    rope = table([[i, 2 * i] for i in range(n)], width) if n == m else None

    def found(way):
        def value(*qkv):
            out = attend(*qkv, from_mask(mask), rope=rope, rate=rate, key=key(5), way=way)
            return (out * slope).sum(), out

        return jit(jax.grad(value, (0, 1, 2), has_aux=True))(q, k, v)

    jax.tree.map(close, found("kernel"), found("dense"))


def meshed(sizes):
    devices = jax.devices()[: math.prod(sizes)]
    return make_mesh(dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)), devices)


@pytest.mark.parametrize("mesh", [None, (2, 1, 2)], ids=str)
@pytest.mark.parametrize("earlier", [16, 10])
def test_the_kernel_looks_back_as_the_dense_way(earlier, mesh):
    """Earlier tokens are joined in the kernel, or before it where they do not fill vectors."""
    q, k, v = (normal(i, 4, 8, 2, 64) for i in range(3))
    past = Past(normal(3, 3, 4, earlier, 128), normal(4, 3, 4, earlier, 128), jnp.int32(1))
    sees = Visibility(present, (np.zeros(8, int),), (jnp.arange(earlier + 8) >= 3,))
    rope = table([[i, 2 * i] for i in range(8)], 64)

    def found(way):
        return jax.jit(lambda *qkv: attend(*qkv, sees, rope=rope, past=past, way=way))(q, k, v)

    dense = found("dense")
    others = past._replace(layer=jnp.int32(2))
    assert not np.allclose(dense, attend(q, k, v, sees, rope=rope, past=others, way="dense"))
    with jax.set_mesh(meshed(mesh)) if mesh else contextlib.nullcontext():
        close(found("kernel"), dense)


def test_queries_look_at_whole_vectors_of_keys_up_to_the_last_they_see():
    cells = np.repeat(np.arange(4), 64)
    blocks = Visibility(causal, (cells,), (cells,))
    assert bands(blocks, 256, 256) == ((0, 128, 128), (128, 256, 256))
    assert bands(from_mask(np.ones((256, 256), bool)), 256, 256) == ((0, 256, 256),)
    assert bands(from_mask(np.tril(np.ones((300, 300), bool))), 300, 300) == (
        *((0, 128, 128), (128, 256, 256), (256, 300, 300)),
    )
    assert bands(None, 8, 24) == bands(from_mask(jnp.ones((8, 24), bool)), 8, 24) == ((0, 8, 24),)


@pytest.mark.parametrize("mesh", [(2, 2, 2), (1, 1, 4), (3, 1, 2)], ids=str)
def test_the_kernel_is_the_same_on_every_mesh(mesh):
    """Parts of the batch and of the heads leave out the same weights; a batch of 4 over 3 is whole.

    A mask of one row, as that of an encoder's room, is of all queries.
    """
    qkv = [normal(i, 4, 8, 4, 16) for i in range(3)]
    seen = Visibility(present, (np.zeros(8, int),), (np.arange(8) < 6,))

    def value(way, *qkv):
        return (attend(*qkv, seen, rate=0.3, key=key(5), way=way) ** 2).sum()

    graded = jax.jit(jax.value_and_grad(value, (1, 2, 3)), static_argnums=0)
    alone = graded("dense", *qkv)
    with jax.set_mesh(meshed(mesh)):
        jax.tree.map(close, graded("kernel", *qkv), alone)


def test_the_softmax_is_computed_in_float32():
    q, k, v = (normal(seed, 1, 3, 1, 4).astype(jnp.bfloat16) for seed in range(3))
    assert attend(q, k, v).dtype == jnp.bfloat16
    assert dtypes_of(attend, q, k, v)["exp"] == {"float32"}


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match=r"3 heads .* width 8"):
        Attention(8, 3, key=jax.random.key(0))


# The transformer.


def block(key):
    attention, mlp, modulation = jax.random.split(key, 3)
    return Block(
        Attention(WIDTH, HEADS, key=attention),
        layers.GatedMLP(WIDTH, HIDDEN, key=mlp),
        layers.Adaptive(WIDTH, (6, WIDTH), key=modulation),
    )


def transformer(depth=2):
    return filled(functools.partial(Transformer, depth, block))


def rope_of(plan):
    return table(plan.positions, WIDTH // HEADS)


def inputs(layout, batch=2):
    return normal(0, batch, len(layout.place), WIDTH), normal(1, batch, len(layout.sizes), WIDTH)


def run(model, plan, layout, x, condition, *, cache=None, key=None, compute=PLAIN, **more):
    rope = rope_of(plan)[:, layout.place]
    shared = Pass(layout.sizes, rope, layout.sees, compute, **more)
    return model(x, condition, shared, cache=cache, key=key)


@pytest.mark.parametrize(("plan", "streams"), [(CELLS, "layout"), (SCALES, "two_streams")])
def test_gradients_reach_exactly_what_the_mask_allows(plan, streams):
    """Future entities have gradients of exactly zero, past ones do not; layers do not leak."""
    layout = getattr(plan, streams)()
    model, (x, condition), probe = transformer(), inputs(layout, 1), normal(2, WIDTH)

    @jit
    @jax.jacrev
    def slopes(both):
        return run(model, plan, layout, *both)[0][0] @ probe

    from_tokens, from_conditions = (jnp.abs(s).sum((1, 3)) for s in slopes((x, condition)))
    mask = np.asarray(layout.sees.dense())
    np.testing.assert_array_equal(from_tokens > 0, mask)
    segments = np.cumsum([0, *layout.sizes[:-1]])
    np.testing.assert_array_equal(from_conditions > 0, mask[:, segments])


@over_plans
def test_a_cache_changes_nothing(plan):
    model, layout = transformer(), plan.layout()
    x, condition = inputs(layout)
    full, all_kv = jit(lambda x: run(model, plan, layout, x, condition, collect=True))(x)

    cache = jax.tree.map(lambda a: a[:, :, :0], all_kv)
    for i, (first, last) in enumerate(zip(plan.offsets, plan.offsets[1:], strict=False)):
        alone = Layout(np.arange(first, last), (last - first,), None)
        look = functools.partial(run, model, plan, alone, collect=True)
        part, new = jit(look)(x[:, first:last], condition[:, i : i + 1], cache=cache)
        close(part, full[:, first:last])
        cache = jax.tree.map(lambda *a: jnp.concatenate(a, 2), cache, new)
    jax.tree.map(close, cache, all_kv)


def test_a_scan_over_layers_is_one_layer_after_another():
    model, layout = transformer(3), CELLS.layout()
    x, condition = inputs(layout)
    template = jax.eval_shape(block, jax.random.key(0))
    one = jit(lambda params, x: run(bind(template, params), CELLS, layout, x, condition))
    y, keys_values = x, []
    for i in range(3):
        y, kv = one(jax.tree.map(lambda a, i=i: a[i], params_of(model.blocks)), y)
        keys_values.append(kv)
    scanned = functools.partial(run, model, CELLS, layout, collect=True)
    out, stacked = jit(scanned)(x, condition)
    close(out, y)
    jax.tree.map(lambda a, *b: close(a, jnp.stack(b)), stacked, *keys_values)


def squares(params, compute, rates=None, depth=3):
    """The mean square that comes out of a transformer of three layers, with dropout."""
    layout = CELLS.layout()
    x, condition = inputs(layout)
    bound = bind(jax.eval_shape(functools.partial(transformer, depth)), params)
    more = dict(rates=rates or Dropout(), key=key(3), compute=compute)
    return (run(bound, CELLS, layout, x, condition, **more)[0] ** 2).mean()


@pytest.mark.parametrize(
    "compute",
    [Compute(remat="projections"), Compute(remat="blocks", unroll=2), Compute(unroll=3)],
    ids=["projections", "blocks", "unrolled"],
)
def test_rematerialisation_and_unrolling_change_neither_values_nor_gradients(compute):
    params = params_of(transformer(3))
    rates = Dropout(projection=0.1)  # the same values must fall away again
    graded = jit(jax.value_and_grad(squares), static_argnums=(1, 2))
    plain, other = (graded(params, how, rates) for how in (PLAIN, compute))
    jax.tree.map(close, other, plain)


def test_products_are_computed_again_only_where_whole_blocks_are():
    params = params_of(transformer(3))

    def products(remat):
        graded = jax.make_jaxpr(jax.grad(squares), static_argnums=1)
        return str(graded(params, Compute(remat=remat))).count("dot_general")

    none, projections, blocks = map(products, ("none", "projections", "blocks"))
    assert projections == none + 1  # the logits of attention; what comes out of it is kept
    assert blocks == none + 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(remat="all"), "remat must be one of none, projections, branches, blocks, not 'all'"),
        (dict(dtype="float16"), "dtype must be one of float32, bfloat16"),
        (dict(attention="flash"), "attention must be one of auto, dense, blocked, kernel"),
        (dict(unroll=0), "unroll must be at least 1 layer, not 0"),
    ],
)
def test_a_way_to_compute_that_is_not_known_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Compute(**arguments)


def test_dropout_acts_where_a_key_is_from_mask():
    model, layout = transformer(1), CELLS.layout()
    x, condition = inputs(layout)
    plain = jit(lambda x: run(model, CELLS, layout, x, condition)[0])(x)
    for rates in (Dropout(attention=0.5), Dropout(projection=0.5)):
        call = jit(
            lambda key, r=rates: run(model, CELLS, layout, x, condition, rates=r, key=key)[0]
        )
        still, moved, other, again = map(call, (None, key(0), key(1), key(1)))
        close(still, plain)
        assert jnp.abs(moved - still).max() > 1e-2 and jnp.abs(moved - other).max() > 1e-2
        np.testing.assert_array_equal(other, again)


def test_bfloat16_blocks_keep_norms_and_the_sum_over_layers_in_float32():
    model, layout = transformer(), CELLS.layout()
    x, condition = inputs(layout)

    def call(x, dtype):
        return run(model, CELLS, layout, x, condition, collect=True, compute=Compute(dtype))

    low = functools.partial(call, dtype="bfloat16")
    out, kept = jit(low)(x)
    assert [out.dtype, kept.keys.dtype, kept.values.dtype] == [
        jnp.float32,
        jnp.bfloat16,
        jnp.bfloat16,
    ]
    exact = jit(functools.partial(call, dtype="float32"))(x)[0]
    assert 0 < jnp.abs(out - exact).max() < 0.05 * jnp.abs(exact).max()

    dtypes = dtypes_of(low, x)
    assert dtypes["rsqrt"] == dtypes["exp"] == {"float32"}
    assert dtypes["dot_general"] == {"bfloat16"}


def test_the_program_does_not_grow_with_depth():
    layout = CELLS.layout()
    x, condition = inputs(layout)

    def lines(depth):
        model = jax.eval_shape(functools.partial(transformer, depth))

        def loss(params):
            compute = Compute(remat="projections")
            out, _ = run(bind(model, params), CELLS, layout, x, condition, compute=compute)
            return out.sum()

        return len(jax.jit(jax.grad(loss)).lower(params_of(model)).as_text().splitlines())

    assert lines(2) == lines(6)


# Modules and trees.


def test_stacked_layers_are_drawn_apart_each_from_its_key():
    make = functools.partial(layers.Linear, 3, 4)
    stacked = params_of(stack(lambda key: make(key=key), 3, jax.random.key(0)))
    for i, key in enumerate(jax.random.split(jax.random.key(0), 3)):
        np.testing.assert_array_equal(stacked["kernel"][i], params_of(make(key=key))["kernel"])


def test_bind_and_params_of_are_inverse():
    model = transformer()
    template = jax.eval_shape(transformer)
    params = jax.tree.map(lambda a: a + 1, params_of(model))
    backwards = nest(dict(reversed(paths(params).items())))  # a dict may come in any order
    for given in (params, backwards):
        jax.tree.map(np.testing.assert_array_equal, params_of(bind(template, given)), params)


def test_only_parameters_are_leaves():
    maps = ["attention/qkv", "attention/out", "mlp/gate", "mlp/up", "mlp/down", "modulation"]
    leaves = {f"blocks/{name}/{leaf}" for name in maps for leaf in ("kernel", "bias")}
    assert paths(params_of(transformer())).keys() == leaves


def test_bind_names_what_does_not_fit():
    template = jax.eval_shape(transformer)
    leaves = paths(params_of(transformer()))
    leaves["blocks/mlp/extra"] = leaves.pop("blocks/mlp/up/bias")
    leaves["blocks/modulation/bias"] = jnp.zeros((2, 6, WIDTH + 1))
    with pytest.raises(ValueError) as error:
        bind(template, nest(leaves))
    for line in (
        "blocks/mlp/up/bias is missing",
        "blocks/mlp/extra is unexpected",
        "blocks/modulation/bias has shape (2, 6, 9) instead of (2, 6, 8)",
    ):
        assert line in str(error.value)


@pytest.mark.parametrize(
    "name", ["xar_digits", pytest.param("flowar_digits", marks=pytest.mark.slow)]
)
def test_kernels_cast_once_draw_the_same_samples(name, monkeypatch):
    """Those of layers alone: what stands around them computes in float32."""
    config = shrunk(name, "model.dtype=bfloat16")
    model = build_system(config)
    params = model.init(jax.random.key(0))
    used = paths(module.as_used(model.network, params))
    cast = [path for path, leaf in used.items() if leaf.dtype == jnp.bfloat16]
    assert cast and all("/blocks/" in path and path.endswith("/kernel") for path in cast)
    made = []
    for used in (module.as_used, lambda template, params: params):
        monkeypatch.setattr(system, "as_used", used)
        sampler.cache_clear()
        made.append(Model(config, model, params, make_mesh({"data": 1})).sample([0, 1]))
    sampler.cache_clear()
    np.testing.assert_array_equal(made[0], made[1])
