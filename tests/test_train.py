"""Training: equal to a plain reference, resumed = uninterrupted, sharded = unsharded."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar import checkpoint
from jaxar import config as configs
from jaxar.config import ConfigError
from jaxar.core.random import key_for
from jaxar.parallel import sharding
from jaxar.runs import load as loading
from jaxar.runs import setup
from jaxar.runs import train as training
from jaxar.training.loop import DivergedError, fit
from jaxar.training.optim import decayed, learning_rate, make_optimizer
from jaxar.training.progress import read_history
from jaxar.training.state import ema_decay, init_state
from jaxar.training.step import compile_step, make_step
from jaxar.tree import paths
from tests import reference
from tests.shrink import arrays, shrunk, system_and_params


def optimizer_of(config):
    return make_optimizer(config.optimizer, steps=config.steps, batch_size=config.batch_size)


def batch_of(source, config, step=0):
    rng = np.random.default_rng(step)
    rows = [source.read(int(i), rng) for i in rng.integers(0, len(source), config.batch_size)]
    return {
        "data": jnp.asarray(np.stack([r["data"] for r in rows])),
        "condition": jnp.asarray([r["condition"] for r in rows], jnp.int32),
    }


def test_fifty_steps_equal_a_float64_reference():
    config, system, params = system_and_params(
        "xar_digits", "steps=50", "optimizer.warmup_steps=5", "label_dropout=0"
    )
    source, plan = arrays(config, 40), system.plan
    optimizer = optimizer_of(config)
    state = init_state(system, optimizer, jax.random.key(0))._replace(params=params)
    step = jax.jit(make_step(system, optimizer, ema=config.ema, seed=config.seed))
    rate = learning_rate(config.optimizer, steps=50, batch_size=config.batch_size)
    options = config.optimizer

    ours, theirs = [], []
    draws = []
    for i in range(50):
        batch = batch_of(source, config, i)
        # What the library draws in this step, taken from its own key.
        key = jax.random.fold_in(key_for("train", config.seed), i)
        encode, _, draw, _ = jax.random.split(key, 4)
        tokens = system.entities.cut(batch["data"], encode)
        draws.append((tokens, *system.scheme.noise(None, draw, tokens), batch["condition"]))
        state, metrics = step(state, {}, batch)
        ours.append(float(metrics["loss"]))

    with jax.enable_x64(True):
        exact = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), params)
        adam = reference.AdamW(
            exact, options.beta1, options.beta2, options.weight_decay, options.clip_norm
        )
        gradient = jax.jit(jax.value_and_grad(reference.loss))
        entity, positions = jnp.asarray(plan.entity), jnp.asarray(plan.positions)
        for i, (tokens, times, noise, labels) in enumerate(draws):
            given = [jnp.asarray(np.asarray(a), jnp.float64) for a in (tokens, times, noise)]
            value, gradients = gradient(exact, *given, labels, entity, positions)
            theirs.append(float(value))
            exact = adam.step(exact, gradients, float(rate(i)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert ours[-1] < ours[0]


@pytest.mark.parametrize("data", ["digits", pytest.param("latents", marks=pytest.mark.slow)])
def test_resumed_equals_uninterrupted_bit_for_bit(data, tmp_path, monkeypatch):
    """2 x 20 steps equal 40, with dropout, label dropout and sampled latents."""
    name = {"digits": "xar_digits", "latents": "xar_b"}[data]
    config = shrunk(
        name, "steps=40", "model.dropout=0.1", "model.attention_dropout=0.1", "checkpoint.every=20"
    )
    monkeypatch.setattr(training, "open_source", lambda config, **_: arrays(config))
    once = run(config, tmp_path / "once")

    class Killed(BaseException):
        pass

    save = checkpoint.Checkpoints.save

    def save_and_die(self, step, *rest):
        save(self, step, *rest)
        if step == 20:
            self.wait()
            raise Killed

    monkeypatch.setattr(checkpoint.Checkpoints, "save", save_and_die)
    with pytest.raises(Killed):
        run(config, tmp_path / "twice")
    monkeypatch.setattr(checkpoint.Checkpoints, "save", save)
    twice = run(config, tmp_path / "twice")

    chex.assert_trees_all_equal(once, twice)
    losses = [[r["loss"] for r in read_history(tmp_path / d)] for d in ("once", "twice")]
    assert losses[0] == losses[1]


def run(config, workdir):
    prepared = setup.prepare(config)
    workdir.mkdir(exist_ok=True)
    return fit(prepared.system, {}, arrays(config), config, workdir, prepared.mesh, lambda *_: None)


@pytest.mark.slow
def test_steps_on_many_devices_are_those_of_one():
    config, system, _ = system_and_params(
        "xar_digits", "batch_size=8", "model.heads=4", "model.width=32", "model.mlp_ratio=3"
    )
    optimizer, source = optimizer_of(config), arrays(config, 40)
    results = []
    for sizes in ((1, 1, 1), (2, 2, 2)):
        devices = sharding.make_mesh(dict(zip(sharding.MESH_AXES[1:], sizes, strict=True)))
        step = make_step(system, optimizer, ema=0.9, seed=0)

        def init(key):
            return init_state(system, optimizer, key)

        places = sharding.shardings(jax.eval_shape(init, jax.random.key(1)), devices)
        state = jax.jit(init, out_shardings=places)(jax.random.key(1))
        batch = jax.device_put(batch_of(source, config), sharding.batch_sharding(devices))
        compiled = compile_step(step, state, {}, batch, devices)
        for i in range(3):
            batch = jax.device_put(batch_of(source, config, i), sharding.batch_sharding(devices))
            state, metrics = compiled(state, {}, batch)
        results.append((jax.device_get(metrics), jax.device_get(state.params)))
    (one, params_one), (many, params_many) = results
    np.testing.assert_allclose(many["loss"], one["loss"], rtol=1e-5)
    np.testing.assert_allclose(many["gradient_norm"], one["gradient_norm"], rtol=1e-4)
    for a, b in zip(jax.tree.leaves(params_one), jax.tree.leaves(params_many), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted():
    config, system, _ = system_and_params("xar_digits", "optimizer.warmup_steps=0")
    optimizer, source = optimizer_of(config), arrays(config)
    state = init_state(system, optimizer, jax.random.key(0))
    step = jax.jit(make_step(system, optimizer, ema=0.9, seed=0))
    good, bad = batch_of(source, config), batch_of(source, config)
    bad["data"] = bad["data"].at[0, 0, 0, 0].set(jnp.nan)
    after, metrics = step(state, {}, bad)
    assert int(after.step) == 1 and int(metrics["skipped"]) == 1
    chex.assert_trees_all_equal(
        (state.params, state.ema, state.optimizer), (after.params, after.ema, after.optimizer)
    )
    later, metrics = step(after, {}, good)
    assert int(metrics["skipped"]) == 1 and np.isfinite(metrics["loss"])
    assert any(
        (a != b).any()
        for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(later.params), strict=True)
    )


def test_a_run_of_nothing_finite_stops_with_advice(tmp_path, monkeypatch):
    config = shrunk("xar_digits", "steps=40")
    source = arrays(config)
    source._data[:] = np.nan
    prepared = setup.prepare(config)
    with pytest.raises(DivergedError, match="learning_rate"):
        fit(prepared.system, {}, source, config, tmp_path, prepared.mesh, lambda *_: None)


@pytest.mark.parametrize("steps", [10, 100, 1001])
def test_the_rate_follows_the_run(steps):
    options = configs.load("xar_digits").optimizer.unlock()
    options.warmup_steps, options.decay_fraction = steps // 8, 0.25
    rate = learning_rate(options, steps=steps, batch_size=512)
    values = np.asarray([float(rate(i)) for i in range(steps)])
    peak = options.base_learning_rate * 2
    assert values[0] == (0 if options.warmup_steps else peak)
    assert values.max() == pytest.approx(peak)
    assert values[-1] == pytest.approx(options.final_learning_rate, rel=1e-4)
    start = math.ceil(0.75 * (steps - 1))
    np.testing.assert_allclose(values[options.warmup_steps : start], peak, rtol=1e-5)
    assert (np.diff(values[start:]) <= 0).all()


def test_decay_spares_biases_and_scales_only():
    _, _, params = system_and_params("xar_b")
    for path, flag in paths(decayed(params)).items():
        assert flag == (path.rsplit("/", 1)[1] not in ("bias", "scale")), path
    # The release decays class embeddings and learned positions: they are matrices there.
    assert paths(decayed(params))["classes/table"]


def test_the_average_warms_up():
    steps = jnp.arange(200_000)
    decay = ema_decay(0.9999, steps)
    assert float(decay[0]) == pytest.approx(0.1)
    assert (jnp.diff(decay) >= 0).all()
    assert float(decay[-1]) == pytest.approx(0.9999)


def test_checkpoints_keep_the_newest_and_every_mth(tmp_path):
    kept = checkpoint.Checkpoints(tmp_path, keep=2, keep_every=4)
    for step in range(1, 8):
        kept.save(step, {"a": jnp.full(3, step)}, {"data": "x"})
    kept.wait()
    assert kept.steps() == [4, 6, 7]
    assert kept.record(7) == {"data": "x"}
    kept.close()


def test_restoring_another_model_lists_the_differences(tmp_path):
    store = checkpoint.Checkpoints(tmp_path)
    store.save(1, {"a": jnp.zeros(3), "b": jnp.zeros(2)}, {})
    store.wait()
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {
        "a": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=place),
        "b": jax.ShapeDtypeStruct((2,), jnp.int32, sharding=place),
        "c": jax.ShapeDtypeStruct((1,), jnp.float32, sharding=place),
    }
    with pytest.raises(ConfigError) as caught:
        store.restore(1, wanted)
    text = str(caught.value)
    assert "a has shape (3,) instead of (4,)" in text
    assert "b has dtype float32 instead of int32" in text
    assert "c is missing" in text
    store.close()


def test_a_workdir_of_another_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "open_source", lambda config, **_: arrays(config))
    training.train(shrunk("xar_digits"), workdir=tmp_path)
    with pytest.raises(ConfigError, match=r"model\.width: 32 here, 16 there"):
        training.train(shrunk("xar_digits", "model.width=32"), workdir=tmp_path)
    with pytest.raises(ConfigError, match="'xar_digits', not of 'xar_b'"):
        loading.load("xar_b", workdir=tmp_path)
    monkeypatch.setattr(training, "open_source", lambda config, **_: arrays(config, count=13))
    with pytest.raises(ConfigError, match="other data"):
        training.train(shrunk("xar_digits", "steps=6"), workdir=tmp_path)


def test_a_checkpoint_that_was_cut_short_is_none(tmp_path):
    (tmp_path / checkpoint.FOLDER / "20.orbax-checkpoint-tmp").mkdir(parents=True)
    assert not checkpoint.exist(tmp_path)
    (tmp_path / checkpoint.FOLDER / "20").mkdir()
    assert checkpoint.exist(tmp_path)
