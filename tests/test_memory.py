"""Levers between memory, time and numbers: what they save, and what they leave as it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar import config as configs
from jaxar import main, tree
from jaxar.assembly import build_system
from jaxar.config import ConfigError
from jaxar.parallel import sharding
from jaxar.runs import dry_run as table
from jaxar.runs import load as loading
from jaxar.runs import setup
from jaxar.training import step as steps
from jaxar.training.loop import fit
from jaxar.training.memory import Memory, averaged, kept_in, narrowed, state_shardings
from jaxar.training.optim import make_optimizer
from jaxar.training.state import init_state
from tests.shrink import arrays, shrunk, system_and_params


def batch_of(config, count):
    source = arrays(config, count)
    rows = [source.read(i, np.random.default_rng(i)) for i in range(count)]
    labels = jnp.asarray([row["condition"] for row in rows], jnp.int32)
    return {"data": jnp.asarray(np.stack([row["data"] for row in rows])), "condition": labels}


def trained(memory, mesh, *overrides, count=3):
    """Returns the state and metrics after some steps."""
    config, system, _ = system_and_params("xar_digits", "batch_size=8", *overrides)
    optimizer = make_optimizer(config.optimizer, steps=9, batch_size=8)
    step = steps.make_step(system, optimizer, ema=0.9, seed=0, memory=memory)

    def init(key):
        return init_state(system, optimizer, key, memory)

    shapes = jax.eval_shape(init, jax.random.key(0))
    state = jax.jit(init, out_shardings=state_shardings(shapes, mesh, memory))(jax.random.key(0))
    batch = jax.device_put(batch_of(config, 8), sharding.batch_sharding(mesh))
    compiled = steps.compile_step(step, state, {}, batch, mesh, memory)
    for _ in range(count):
        state, metrics = compiled(state, {}, batch)
    return state, metrics


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(dict(data=2, fsdp=2))


@pytest.mark.parametrize("value", [1.0, -0.3, 1e-20, 3.14159e10])
def test_rounding_at_random_is_right_on_average(value):
    count = 20_000
    exact = np.float32(value)
    kept = narrowed({"a": jnp.full(count, exact)}, "bfloat16", jax.random.key(1))["a"]
    assert kept.dtype == jnp.bfloat16
    values = np.asarray(kept, np.float64)
    spacing = np.abs(exact) * 2.0**-7
    assert np.abs(values - exact).max() < spacing
    assert abs(values.mean() - exact) <= 4 * spacing / 2 / np.sqrt(count)
    assert len(np.unique(values)) == (1 if exact == 1 else 2)


def test_what_is_no_float_stays_and_float32_changes_nothing():
    state = {"count": jnp.arange(3), "moment": jnp.asarray([0.1, np.inf])}
    kept = narrowed(state, "bfloat16", jax.random.key(0))
    assert kept["count"].dtype == jnp.int32 and np.isinf(np.asarray(kept["moment"], float)[1])
    assert narrowed(state, "float32", jax.random.key(0)) is state


def test_an_average_in_bfloat16_follows_where_the_nearest_would_stand_still():
    """A way of 1/10,000 a step is below the spacing of bfloat16."""
    rate, target = 1e-4, 1.0
    average = jnp.zeros(256) + 0.5
    still = kept_in(average, "bfloat16")
    moving = still

    @jax.jit
    def step(carry, key):
        moving, still = carry
        wide = moving.astype(jnp.float32)
        moving = narrowed(wide + rate * (target - wide), "bfloat16", key)
        wide = still.astype(jnp.float32)
        return (moving, kept_in(wide + rate * (target - wide), "bfloat16")), None

    keys = jax.random.split(jax.random.key(0), 5000)
    moving, still = jax.lax.scan(step, (moving, still), keys)[0]
    exact = target - 0.5 * (1 - rate) ** 5000
    assert float(still.mean()) == 0.5
    assert abs(float(moving.astype(jnp.float32).mean()) - exact) < 0.01


@pytest.mark.slow
def test_offloading_changes_where_the_average_is_and_nothing_else(mesh):
    plain, _ = trained(Memory(), mesh)
    away, _ = trained(Memory(offload_ema=True), mesh)
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(away.ema)} == {"pinned_host"}
    for name in ("params", "ema", "optimizer"):
        for a, b in zip(
            jax.tree.leaves(getattr(plain, name)), jax.tree.leaves(getattr(away, name)), strict=True
        ):
            np.testing.assert_array_equal(a, b)
    back = averaged(away.ema, mesh)
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(back)} == {"device"}


@pytest.mark.slow
def test_moments_and_average_in_bfloat16_are_near_those_in_float32(mesh):
    plain, metrics = trained(Memory(), mesh)
    small, others = trained(Memory(moments="bfloat16", ema="bfloat16"), mesh)
    np.testing.assert_allclose(others["loss"], metrics["loss"], rtol=2e-3)
    for part in (small.ema, small.optimizer):
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(part)} <= {"bfloat16", "int32"}
    for a, b in zip(jax.tree.leaves(plain.ema), jax.tree.leaves(small.ema), strict=True):
        np.testing.assert_allclose(b.astype(jnp.float32), a, atol=2e-2 * max(1, np.abs(a).max()))


def test_parts_of_a_batch_have_the_mean_gradient(mesh):
    """Against the gradients of the parts themselves, with dropout."""
    config, system, params = system_and_params("xar_digits", "model.dropout=0.1")
    batch, key = batch_of(config, 8), jax.random.key(3)
    (loss, _), total = jax.jit(steps._accumulated(system, 4))(params, batch, jnp.int32(0), key)
    one, alone = jax.jit(steps._accumulated(system, 1)), []
    for i in range(4):
        rows = {name: value[i::4] for name, value in batch.items()}
        alone.append(one(params, rows, jnp.int32(0), jax.random.fold_in(key, i)))
    np.testing.assert_allclose(loss, np.mean([value[0][0] for value in alone]), rtol=1e-6)
    parts = [tree.paths(value[1]) for value in alone]
    for path, found in tree.paths(total).items():
        np.testing.assert_allclose(found, np.mean([p[path] for p in parts], 0), atol=1e-6)


def test_parts_take_less_memory():
    config, system, params = system_and_params("xar_digits", "batch_size=8")
    temporary = []
    for parts in (1, 8):
        gradient = jax.jit(steps._accumulated(system, parts))
        arguments = (params, batch_of(config, 8), jnp.int32(0), jax.random.key(0))
        compiled = gradient.lower(*arguments).compile()
        temporary.append(compiled.memory_analysis().temp_size_in_bytes)
    assert temporary[1] < 0.7 * temporary[0]


def test_codes_settle_on_what_all_parts_have_seen():
    config = shrunk("vq_glyphs", "batch_size=8")
    system = build_system(config)
    params = jax.eval_shape(system.init, jax.random.key(0))
    arguments = (params, batch_of(config, 8), jnp.int32(0), jax.random.key(0))
    (_, once), _ = jax.eval_shape(steps._accumulated(system, 1), *arguments)
    (_, parts), _ = jax.eval_shape(steps._accumulated(system, 4), *arguments)
    assert parts["seen"].shape == once["seen"].shape


def test_a_run_goes_on_and_is_read_whatever_it_keeps(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "load_autoencoder", lambda *_: None)
    fields = ["memory.ema='bfloat16'", "memory.moments='bfloat16'", "memory.offload_ema=True"]
    config = shrunk("xar_digits", *fields, "memory.accumulate=2", "steps=4", "checkpoint.every=2")
    ready = setup.prepare(config, training=True)

    def run(folder, steps):
        folder.mkdir(exist_ok=True)
        changed = config.copy_and_resolve_references().unlock()
        changed.steps = steps
        return fit(ready.system, {}, arrays(config), changed, folder, ready.mesh, lambda *_: None)

    (tmp_path / "config.json").write_text(configs.to_json(config))
    state = run(tmp_path, 4)
    model = loading.load("xar_digits", workdir=tmp_path)
    for a, b in zip(jax.tree.leaves(model.params), jax.tree.leaves(state.ema), strict=True):
        assert a.dtype == jnp.float32 and a.sharding.memory_kind == "device"
        np.testing.assert_array_equal(a, b.astype(jnp.float32))
    assert int(run(tmp_path, 4).step) == 4


def test_a_batch_that_parts_do_not_divide_is_refused_with_what_would():
    config = shrunk("xar_digits", "batch_size=8", "memory.accumulate=3")
    with pytest.raises(ConfigError, match=r"3 parts .* x memory\.accumulate: choose 6 or 9"):
        setup.prepare(config, training=True)


def test_dry_run_counts_what_is_kept_small_or_away(capsys):
    arguments = ["--config=xar_b", "--dry_run", "--config.mesh.data=1"]
    main.main([*arguments, "--config.memory.moments=bfloat16", "--config.memory.offload_ema=True"])
    text = capsys.readouterr().out
    assert "average, on the host" in text
    row = next(line for line in text.splitlines() if line.startswith("optimiser"))
    assert f"{4 * 172_638_224 + 4 * 2:,}" in row  # two moments of 2 bytes, two counts
    config = shrunk("xar_digits", "memory.offload_ema=True")
    state = table.state_shapes(config, build_system(config))
    assert not table.on_devices(config, state).ema
