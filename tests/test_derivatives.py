"""Derivatives of whole networks: forward, backward, and backward over forward."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar import config as configs
from jaxar.core.visibility import from_mask
from jaxar.flow.diffusion import Diffusion
from jaxar.nn import attention
from jaxar.nn.module import params_of
from jaxar.nn.rope import rotary_table
from jaxar.parallel import axes, sharding
from jaxar.runs import load as loading
from jaxar.runs import setup
from tests.shrink import shrunk, with_autoencoder

SYSTEMS = ("xar_digits", "var_digits", "flowar_digits", "mar_digits")
KEY = jax.random.key(7, impl="unsafe_rbg")  # the default takes seconds to compile
QUICK = [  # every remat, and every pair of attention and devices over fsdp
    ("none", "dense", 1),
    ("projections", "kernel", 1),
    ("branches", "dense", 2),
    ("blocks", "kernel", 2),
]
SLOW = [
    ("none", "kernel", 2),
    ("projections", "dense", 2),
    ("branches", "kernel", 1),
    ("blocks", "dense", 1),
]


def cases():
    """Returns systems with what layers keep, how attention is computed, devices over fsdp."""
    return [
        pytest.param(name, way, marks=() if quick else pytest.mark.slow, id=f"{name}-{way}")
        for name in SYSTEMS
        for way in QUICK + SLOW
        for quick in [way in (QUICK if name == SYSTEMS[0] else QUICK[-1:])]
    ]


@pytest.fixture(autouse=True)
def whole_gradients(monkeypatch):
    """MAR's variational term stops gradients on purpose: another loss of the outputs stands in."""

    def loss(self, output, *rest):
        return jnp.mean(jnp.sin(2 * output), -1)

    monkeypatch.setattr(Diffusion, "loss", loss)


def prepared(name, way, folder):
    """Returns a mesh, a loss of parameters and data, and a point and a direction on the mesh."""
    remat, attention, fsdp = way
    base = shrunk(name)
    fields = {line.split("=")[0].strip() for line in configs.render(base).splitlines()}
    words = [
        f"{part}.{word}"
        for part in ("model", "head")
        for word in (f"remat={remat}", f"attention={attention}", "unroll=1")
    ]
    words = [w for w in [*words, "model.attention_dropout=0.1"] if w.split("=")[0] in fields]
    config = configs.override(base, [*words, "batch_size=2", f"mesh.fsdp={fsdp}"])
    config = with_autoencoder(config, folder / "autoencoder")
    ready = setup.prepare(config, training=True, devices=jax.devices()[:fsdp])
    system, autoencoder = ready.system, loading.load_autoencoder(config, ready)
    frozen = loading.load_frozen(config, system, ready, autoencoder)

    def loss(params, data):
        batch = {"data": data, "condition": jnp.arange(2), "step": jnp.int32(1)}
        return system.loss(params, frozen, batch, KEY)[0]

    rng, template = np.random.default_rng(3), params_of(system.network)
    places = sharding.shardings(template, ready.mesh), sharding.batch_sharding(ready.mesh)

    def normal(x):
        return 0.1 * rng.normal(size=x.shape).astype(np.float32)

    def drawn(data):
        params = sharding.put(jax.tree.map(normal, template), places[0])
        return params, sharding.put(data.astype(np.float32), places[1])

    shape, codes = (2, *config.data_shape), config.head.name == "categorical"
    direction = np.zeros(shape) if codes else rng.normal(size=shape)  # codes jump where data move
    return ready.mesh, loss, drawn(rng.uniform(-1, 1, shape)), drawn(direction)


def product(one, other):
    """Returns the inner product of two trees."""
    return sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum(a * b), one, other)))


def steered(direction, gradient):
    """Returns a direction of which half is the gradient's: what changes is not lost in rounding."""
    lengths = [jnp.sqrt(product(tree, tree)) for tree in (direction, gradient)]
    return jax.tree.map(lambda v, g: v / lengths[0] + g / lengths[1], direction, gradient)


def differences(value, point, direction, step=0.01):
    """Returns the central difference of a function along a direction, of fourth order."""

    def at(steps):
        return float(value(jax.tree.map(lambda x, v: x + steps * step * v, point, direction)))

    return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)


@pytest.mark.parametrize(("name", "way"), cases())
def test_forward_and_reverse_mode_are_finite_differences(name, way, tmp_path):
    mesh, loss, point, direction = prepared(name, way, tmp_path)

    @jax.jit
    def found(point, direction):
        value, forward = jax.jvp(loss, point, direction)
        return value, forward, jax.grad(loss, (0, 1))(*point)

    with jax.set_mesh(mesh):
        direction = steered(direction, found(point, direction)[2])
        _, forward, gradient = found(point, direction)
        wanted = differences(lambda point: found(point, direction)[0], point, direction)
    np.testing.assert_allclose(forward, wanted, rtol=1e-3)
    np.testing.assert_allclose(product(gradient, direction), forward, rtol=1e-5)


@pytest.mark.parametrize("way", [("none", "dense", 1), ("blocks", "kernel", 2)], ids=str)
def test_reverse_over_forward_mode_is_finite_differences(way, tmp_path):
    mesh, loss, (params, data), (direction, moved) = prepared("xar_digits", way, tmp_path)

    @jax.jit
    @jax.value_and_grad
    def found(params):
        return jax.jvp(lambda data: loss(params, data), (data,), (moved,))[1]

    with jax.set_mesh(mesh):
        gradient = found(params)[1]
        direction = steered(direction, gradient)
        wanted = differences(lambda params: found(params)[0], params, direction)
    np.testing.assert_allclose(product(gradient, direction), wanted, rtol=2e-3)


def test_a_target_made_of_a_tangent_gives_the_gradient_of_a_constant_one(tmp_path):
    """As in MeanFlow (arXiv 2505.13447): u is to be what v - (t - r) du/dt says, held fixed."""
    way = ("branches", "kernel", 1)
    mesh, loss, (params, data), (_, moved) = prepared("xar_digits", way, tmp_path)

    def forward(params):
        return jax.jvp(lambda data: loss(params, data), (data,), (moved,))

    def error(params):
        u, slope = forward(params)
        return jnp.square(u - jax.lax.stop_gradient(0.5 - slope))

    @jax.jit
    def found(params):
        u, slope = forward(params)
        plain = jax.grad(lambda params: loss(params, data))(params)
        return jax.grad(error)(params), jax.tree.map(lambda g: 2 * (u - 0.5 + slope) * g, plain)

    with jax.set_mesh(mesh):
        both, wanted = found(params)
    size = jnp.sqrt(product(wanted, wanted))
    assert size > 0.01
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * size), both, wanted)


def test_gradients_of_gathered_parameters_are_shared_out_and_tangents_are_whole():
    mesh = sharding.make_mesh(dict(fsdp=2), jax.devices()[:2])
    params = {"up": {"kernel": jnp.ones((4, 6))}}
    parts, places = axes.spec("up/kernel", (4, 6), mesh.shape), sharding.shardings(params, mesh)

    def value(params):
        return jnp.sum(jnp.sin(axes.gathered(params)["up"]["kernel"]))

    with jax.set_mesh(mesh):
        params = sharding.put(params, places)
        whole, tangent = jax.jit(lambda p: jax.jvp(axes.gathered, (p,), (p,)))(params)
        gradient = jax.jit(jax.grad(value))(params)
    assert "fsdp" in parts and gradient["up"]["kernel"].sharding.spec == parts
    for tree in (whole, tangent):
        assert tree["up"]["kernel"].sharding.is_fully_replicated
    np.testing.assert_allclose(gradient["up"]["kernel"], np.cos(1), rtol=1e-6)


@pytest.mark.parametrize("mesh", [None, (2, 1, 2)], ids=str)
@pytest.mark.parametrize("sizes", [(8, 24, 4, 64), (160, 160, 2, 64), (8, 8, 3, 32)], ids=str)
def test_tangents_of_the_kernel_and_their_gradients_are_those_of_the_dense_way(sizes, mesh):
    """Bands, rotary tables and what dropout leaves out included, on a mesh too."""
    n, m, heads, width = sizes
    rng = np.random.default_rng(4)
    inputs, tangents = (
        tuple(rng.normal(size=(2, size, heads, width)).astype(np.float32) for size in (n, m, m))
        for _ in range(2)
    )
    places = np.arange(2 * n).reshape(n, 2)
    rope = jnp.asarray(rotary_table(places, width)) if n == m else None
    sees = from_mask(np.tri(n, m, m - n, dtype=bool))
    more = dict(sees=sees, rope=rope, rate=0.3, key=KEY)

    def found(way):
        def forward(*inputs):
            attend = functools.partial(attention.attend, way=way, **more)
            return jax.jvp(attend, inputs, tangents)

        def value(*inputs):
            out, tangent = forward(*inputs)
            return jnp.sum(out * tangent**2)

        return jax.jit(lambda *x: (forward(*x), jax.grad(value, (0, 1, 2))(*x)))(*inputs)

    devices = dict(zip(("data", "fsdp", "tensor"), mesh or (1, 1, 1), strict=True))
    with jax.set_mesh(sharding.make_mesh(devices)):
        for one, other in zip(
            *(jax.tree.leaves(found(w)) for w in ("kernel", "dense")), strict=True
        ):
            np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


def test_the_kernel_has_kernels_for_tangents_and_for_gradients():
    q = jnp.ones((1, 8, 2, 64))
    attend = functools.partial(attention.attend, way="kernel")

    def kernels(f, *inputs):
        found = []

        def walk(jaxpr):
            for equation in jaxpr.eqns:
                if equation.primitive.name == "pallas_call":
                    found.append(equation.params["name"])
                else:
                    for inner in jax.extend.core.jaxprs_in_params(equation.params):
                        walk(inner)

        walk(jax.make_jaxpr(f)(*inputs).jaxpr)
        return found

    def value(*qkv):
        return attend(*qkv).sum()

    assert kernels(lambda *x: jax.jvp(attend, x, x), q, q, q) == [
        "attention_forward",
        "attention_forward_tangent",
    ]
    assert kernels(jax.grad(value, (0, 1, 2)), q, q, q) == [
        "attention_forward",
        "attention_backward",
    ]
