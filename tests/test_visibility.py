"""Who sees whom: rules against brute force, and attention in blocks against attention at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.core import visibility
from jaxar.core.visibility import Visibility, causal, descends, every, same, tree_numbers, window
from jaxar.nn import attention, layers
from jaxar.nn.attention import Attention, attend
from jaxar.nn.compute import Compute, Pass
from jaxar.nn.module import bind, params_of
from jaxar.nn.transformer import PlainBlock, Transformer

RNG = np.random.default_rng(0)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def mask_of(rule, query, key):
    return np.asarray(Visibility(rule, query, key).dense())


def test_a_window_reaches_as_far_along_every_axis():
    places = np.indices((4, 5)).reshape(2, -1)
    mask = mask_of(window((1, 2)), tuple(places), tuple(places))
    for i, j in np.ndindex(20, 20):
        near = abs(places[0, i] - places[0, j]) <= 1 and abs(places[1, i] - places[1, j]) <= 2
        assert mask[i, j] == near


def test_packed_documents_are_causal_and_do_not_see_each_other():
    place, document = np.arange(9), np.array([[0, 0, 0, 1, 1, 2, 2, 2, 2], [0] * 4 + [1] * 5])
    numbers = (place, document)
    mask = mask_of(every((causal, 1), (same, 1)), numbers, numbers)
    assert mask.shape == (2, 9, 9)
    for b, i, j in np.ndindex(2, 9, 9):
        assert mask[b, i, j] == (j <= i and document[b, i] == document[b, j])


@pytest.mark.parametrize("seed", range(5))
def test_a_node_sees_itself_and_its_ancestors(seed):
    rng = np.random.default_rng(seed)
    parents = [int(rng.integers(-1, i)) if i else -1 for i in range(12)]
    numbers = tree_numbers(parents)
    mask = mask_of(descends, numbers, numbers)
    for i in range(12):
        ancestors, node = set(), i
        while node >= 0:
            ancestors.add(node)
            node = parents[node]
        assert set(np.flatnonzero(mask[i])) == ancestors
    with pytest.raises(ValueError, match="Node 1 has parent 1"):
        tree_numbers([-1, 1])


def test_rows_known_beforehand_are_those_of_the_program():
    entity = np.repeat(np.arange(5), 3)
    sees = Visibility(causal, (entity,), (entity,))
    np.testing.assert_array_equal(sees.known(4, 11), np.asarray(sees.dense())[4:11])
    assert sees.pairs(rows=4) == np.asarray(sees.dense()).sum()


# Attention in blocks.


def visibilities(n, m):
    place, batched = np.arange(m), RNG.integers(0, 3, (2, m))
    yield "none", None
    yield "causal", Visibility(causal, (place[m - n :],), (place,))
    yield "window", Visibility(window((3,)), (place[m - n :],), (place,))
    pairs = every((causal, 1), (same, 1))
    yield "documents", Visibility(pairs, (place[m - n :], batched[:, m - n :]), (place, batched))


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize(("n", "m"), [(17, 17), (5, 23), (16, 16)])
def test_attention_in_blocks_is_attention_at_once(n, m, rate, monkeypatch):
    """Values, gradients and derivatives forwards; the same weights fall away."""
    monkeypatch.setattr(attention, "ROWS", 4)
    monkeypatch.setattr(attention, "COLUMNS", 8)
    q, k, v = (normal(i, 2, size, 3, 8) for i, size in enumerate((n, m, m)))
    slope, tangents = (
        normal(3, 2, n, 3, 8),
        tuple(normal(4 + i, *x.shape) for i, x in enumerate((q, k, v))),
    )
    for name, sees in visibilities(n, m):

        def found(way, sees=sees):
            def out(*qkv):
                return attend(*qkv, sees, rate=rate, key=jax.random.key(7), way=way)

            gradients = jax.grad(lambda *qkv: (out(*qkv) * slope).sum(), (0, 1, 2))(q, k, v)
            return jax.jvp(out, (q, k, v), tangents), gradients

        for a, b in zip(*map(jax.tree.leaves, (found("blocked"), found("dense"))), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5, err_msg=name)


def stack(depth=2, width=32, heads=2):
    def block(key):
        mlp = layers.MLP(width, 2 * width, activation=layers.gelu, key=key)
        return PlainBlock(width, Attention(width, heads, key=key), mlp)

    return Transformer(depth, block, key=jax.random.key(0))


def causal_loss(params, x):
    n = x.shape[1]
    place = np.arange(n)
    shared = Pass(sees=Visibility(causal, (place,), (place,)), compute=Compute(remat="branches"))
    y, _ = bind(jax.eval_shape(stack), params)(x, None, shared)
    return jnp.mean(jnp.square(y[:, :-1] - x[:, 1:]))


def test_a_long_causal_stack_holds_no_array_of_all_pairs():
    """Neither in the program nor as a constant, forwards and backwards."""
    n = 16_384
    x = jax.ShapeDtypeStruct((1, n, 32), jnp.float32)
    params = jax.eval_shape(lambda: params_of(stack()))
    traced = jax.make_jaxpr(jax.grad(causal_loss))(params, x)
    sizes = []

    def look(jaxpr):
        for equation in jaxpr.eqns:
            sizes.extend(v.aval.size for v in equation.outvars if hasattr(v.aval, "size"))
            for inner in jax.core.jaxprs_in_params(equation.params):
                look(inner)

    look(traced.jaxpr)
    assert max(sizes) < n * n / 8
    assert all(np.size(constant) <= n for constant in traced.consts)


@pytest.mark.slow
def test_a_long_causal_stack_trains():
    x = normal(0, 1, 16_384, 32)
    params = params_of(stack())
    step = jax.jit(jax.value_and_grad(causal_loss))
    first, slope = step(params, x)
    params = jax.tree.map(lambda p, g: p - 0.1 * g, params, slope)
    assert float(step(params, x)[0]) < float(first)


def test_what_a_mask_says_is_seen():
    mask = RNG.random((6, 9)) < 0.5
    np.testing.assert_array_equal(visibility.from_mask(mask).dense(), mask)
    np.testing.assert_array_equal(visibility.from_mask(jnp.asarray(mask)).dense(), mask)
