"""Every config, shrunk: it initialises, steps, samples and restores; its cache tells the truth."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar import config as configs
from jaxar.flow.guidance import Guidance, share_of
from jaxar.heads.flow import FlowNoise, Solving
from jaxar.nn.module import bind
from jaxar.runs import load as loading
from jaxar.runs import setup
from jaxar.runs import train as training
from jaxar.runs.model import Model
from jaxar.schemes.base import Settings
from tests.given import Given, sample_given
from tests.shrink import NAMES, arrays, shrunk, system_and_params, with_autoencoder

KINDS = [name for name in NAMES if name.startswith("xar_digits")]
"""One config for each entity; the paper's models are the cell again, at another size."""


SIZES = ("xar_l", "xar_h", "flowar_l", "flowar_h", "mar_l", "mar_h")
SIZES += ("var_d20", "var_d24", "var_d30", "var_d36")
"""Shrunk, these are the configs that they are made from, but for settings of sampling."""

COSTLY = ("vq_digits", "vq_glyphs", "flowar_s", "mar_b", "var_d16", "xar_glyphs")
COSTLY += ("xar_digits_image", "xar_digits_subsample", "xar_digits_token")
"""Others are made of their parts, or other tests train them."""


@pytest.mark.parametrize("name", NAMES)
def test_config_is_valid_and_named_as_its_file(name):
    config = configs.load(name)
    configs.check(config)
    assert config.name == name


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SIZES + COSTLY)) for name in NAMES],
)
def test_trains_samples_and_restores(name, tmp_path, monkeypatch):
    config = with_autoencoder(shrunk(name), tmp_path / "autoencoder")
    monkeypatch.setattr(training, "open_source", lambda config, **_: arrays(config))
    trained = training.train(config, workdir=tmp_path)
    if trained.system.shows == "samples":
        made = trained.sample([0, 1, 0, 1], seed=3)
    else:
        made = trained.system.reconstruct(trained.params, np.zeros((2, *trained.system.shape)))
    assert np.isfinite(made).all()

    restored = loading.load(name, workdir=tmp_path)
    assert restored.step == config.steps
    chex.assert_trees_all_equal(trained.params, restored.params)


@pytest.mark.parametrize("name", KINDS)
def test_cached_sampling_is_one_block_causal_pass(name):
    """The law of the sampler: what each entity saw through the cache, it sees in one full pass.

    One Euler step from t = 1 moves an entity by its velocity. So from the sampled tokens, the
    velocities of the walk can be read off, and compared with those of a whole pass in which the
    other entities stand clean at time 0.
    """
    _, system, params = system_and_params(name)
    plan, batch = system.plan, 2
    labels, guidance = jnp.asarray([1, 0]), 1.7
    draws = jax.random.normal(jax.random.key(5), (batch, plan.tokens, system.entities.channels))

    def noise(entity, number, shape):
        start = jnp.asarray(plan.offsets)[entity]
        return jax.lax.dynamic_slice_in_dim(draws, start, shape[0], 1)

    settings = Settings(Solving("euler", 1), guidance=Guidance("linear"))
    final = sample_given(system, params, labels, guidance, settings, Given(normal_of=noise))

    @jax.jit
    def velocity(tokens, times, labels):
        return bind(system.network, params)(tokens, times, labels, plan.layout())[0]

    null = jnp.full_like(labels, system.num_classes)
    for i in range(plan.entities):
        own = slice(plan.offsets[i], plan.offsets[i + 1])
        tokens = final.at[:, own].set(draws[:, own])
        times = jnp.zeros((batch, plan.entities)).at[:, i].set(1.0)
        conditional = velocity(tokens, times, labels)[:, own]
        unconditional = velocity(tokens, times, null)[:, own]
        weight = settings.guidance.weight(guidance, share_of(i, plan.entities))
        v = unconditional + weight * (conditional - unconditional)
        np.testing.assert_allclose(final[:, own], draws[:, own] - v, atol=2e-5)


@pytest.mark.parametrize("name", KINDS)
def test_an_image_depends_on_its_key_alone(name):
    _, system, params = system_and_params(name)
    keys = jax.random.split(jax.random.key(1), 3)
    labels = jnp.asarray([0, 1, 1])
    settings = Settings(Solving("euler_maruyama", 3))
    sample = jax.jit(functools.partial(system.sample, settings=settings))
    together = sample(params, keys, labels, 2.0)
    alone = sample(params, keys[1:2], labels[1:2], 2.0)
    np.testing.assert_allclose(alone[0], together[1], atol=1e-5)
    assert not np.allclose(together[1], together[2])


def test_guidance_of_one_needs_no_unconditional_half():
    _, system, params = system_and_params("xar_digits")
    keys, labels = jax.random.split(jax.random.key(1), 2), jnp.asarray([0, 1])
    guided, plain = (Settings(Solving("heun", 2), guided=g) for g in (True, False))
    a = jax.jit(functools.partial(system.sample, settings=guided))(params, keys, labels, 1.0)
    b = jax.jit(functools.partial(system.sample, settings=plain))(params, keys, labels, 1.0)
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("context", ["noisy", "clean"])
@pytest.mark.parametrize("name", KINDS)
def test_prediction_is_causal_by_gradient(name, context):
    """What is predicted of an entity depends on itself and the past, never on the future."""
    _, system, params = system_and_params(name, f"context={context}")
    plan = system.plan
    tokens = jax.random.normal(jax.random.key(2), (1, plan.tokens, system.entities.channels))
    noise = jax.random.normal(jax.random.key(3), tokens.shape)
    times = jax.random.uniform(jax.random.key(4), (1, plan.entities), minval=0.2, maxval=0.8)
    model = bind(system.network, params)

    def predictions(tokens):
        noised, _ = system.scheme.flow.prepare(tokens, FlowNoise(times, noise), plan)
        seen, seen_times, layout = system.scheme.inputs(tokens, noised, times)
        out = model(seen, seen_times, jnp.zeros(1, int), layout)[0]
        out = out[0, -plan.tokens :]
        return jnp.stack([jnp.abs(out[plan.entity == i]).sum() for i in range(plan.entities)])

    influence = jnp.abs(jax.jacobian(predictions)(tokens)[:, 0]).sum(-1)
    for i in range(plan.entities):
        past, future = plan.entity <= i, plan.entity > i
        assert (influence[i, past] > 0).all()
        assert (influence[i, future] == 0).all()


def test_teacher_forcing_equals_noisy_context_where_the_past_is_clean():
    """With all earlier entities at time 0, both contexts see the same."""
    _, noisy, params = system_and_params("xar_digits")
    _, clean, _ = system_and_params("xar_digits", "context=clean")
    plan, last = noisy.plan, noisy.plan.entities - 1
    tokens = jax.random.normal(jax.random.key(2), (2, plan.tokens, noisy.entities.channels))
    noise = jax.random.normal(jax.random.key(3), tokens.shape)
    times = jnp.zeros((2, plan.entities)).at[:, last].set(0.6)
    model, labels, own = bind(noisy.network, params), jnp.zeros(2, int), plan.entity == last
    outputs = []
    for system in (noisy, clean):
        noised, target = system.scheme.flow.prepare(tokens, FlowNoise(times, noise), plan)
        seen, seen_times, layout = system.scheme.inputs(tokens, noised, times)
        out = model(seen, seen_times, labels, layout)[0]
        outputs.append(out[:, -plan.tokens :][:, own])
        np.testing.assert_allclose(target, noise - tokens, atol=1e-6)
    np.testing.assert_allclose(*outputs, atol=1e-5)


def test_second_call_does_not_compile_again():
    config, system, params = system_and_params("xar_digits")
    model = Model(config, system, params, setup.prepare(config).mesh)
    model.sample([1, 2], steps=2, guidance=2.0)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    model.sample([3, 4], steps=2, guidance=3.0, seed=7)
    assert not compiled
    model.sample([3, 4, 5], steps=2)
    assert compiled, "the listener must notice a compilation"


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([10], {}, r"\[0, 10\).*10"),
        ([-1], {}, r"\[0, 10\).*-1"),
        (np.asarray([0.5]), {}, "whole numbers"),
        (np.ones((1, 1), int), {}, "whole numbers"),
        ([], {}, "whole numbers"),
        ([1], {"guidance": 0.5}, "1 or more"),
        ([1], {"guidance": float("nan")}, "1 or more"),
        ([1], {"steps": 0}, "1 or more"),
        ([1], {"steps": 1}, "at least 2"),
        ([1], {"solver": "rk45"}, "euler_maruyama"),
        ([1], {"first": -1}, "0 or more"),
        ([1], {"seed": -1}, "seed must lie"),
    ],
)
def test_bad_requests_name_the_range(labels, options, message):
    config, system, params = system_and_params("xar_digits")
    model = Model(config, system, params, setup.prepare(config).mesh)
    with pytest.raises(ValueError, match=message):
        model.sample(labels, **options)
