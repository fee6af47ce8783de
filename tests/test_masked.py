"""The masked context and MAR: masked tokens matter to nothing, kept ones are a set."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.assembly import build_settings
from jaxar.core import plan
from jaxar.core.known import Known
from jaxar.core.plan import unmasking
from jaxar.core.random import Draws
from jaxar.heads.diffusion import Denoising
from jaxar.nn.module import bind
from jaxar.schemes.base import Settings, request_for
from jaxar.schemes.masked import Masked
from jaxar.tokenizers.adapters.moments import Moments
from jaxar.tokenizers.tokens import Latents
from tests.given import Given, loss_given, sample_given
from tests.shrink import system_and_params


@pytest.fixture(scope="module")
def setting():
    """A tiny MAR of 16 tokens, with values in the parts that start at zero."""
    _, system, params = system_and_params("mar_digits")
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    moved = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return system, jax.tree.unflatten(tree, moved)


def batch_of(system, batch=2):
    """Returns tokens, labels and an order for each example."""
    n = system.plan.tokens
    tokens = jax.random.normal(jax.random.key(0), (batch, n, system.entities.channels))
    keys = jax.random.split(jax.random.key(1), batch)
    order = jax.vmap(lambda key: jax.random.permutation(key, n))(keys)
    return tokens, jnp.arange(batch) % system.num_classes, order


def compilations():
    """Returns a list that grows with every program that is compiled from now on."""
    found = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: found.append(event) if "backend_compile" in event else None
    )
    return found


# The network.


@pytest.mark.parametrize("kept", [0, 1, 7, 16])
def test_only_kept_tokens_have_influence(setting, kept):
    system, params = setting
    tokens, labels, order = batch_of(system)
    network = bind(system.network, params).backbone

    def total(tokens):
        hidden = network(tokens, labels, order, kept, system.plan.tokens)
        return jnp.sum(hidden * jax.random.normal(jax.random.key(2), hidden.shape))

    influence = jnp.abs(jax.jit(jax.grad(total))(tokens)).sum(-1)
    influence = jnp.take_along_axis(influence, order, 1)
    assert (influence[:, :kept] > 0).all()
    assert (influence[:, kept:] == 0).all()


def test_kept_tokens_are_a_set(setting):
    """Neither their order, nor that of the masked ones, nor the room for them matters."""
    system, params = setting
    tokens, labels, order = batch_of(system)
    network, kept, n = bind(system.network, params).backbone, 5, system.plan.tokens
    expected = network(tokens, labels, order, kept, n)
    other = jnp.concatenate([order[:, :kept][:, ::-1], jnp.roll(order[:, kept:], 3, 1)], 1)
    np.testing.assert_allclose(network(tokens, labels, other, kept, n), expected, atol=1e-5)
    for room in (kept, 8):
        close = network(tokens, labels, order, kept, room)
        np.testing.assert_allclose(close, expected, atol=1e-5)
    assert not np.allclose(network(tokens, labels, order, kept + 1, n), expected, atol=1e-3)


def test_the_class_and_its_absence_matter(setting):
    system, params = setting
    tokens, _, order = batch_of(system, 3)
    labels = jnp.asarray([0, 9, system.num_classes])
    tokens, order = tokens[:1].repeat(3, 0), order[:1].repeat(3, 0)
    hidden = bind(system.network, params).backbone(tokens, labels, order, 3, 16)
    assert min(jnp.abs(hidden[i] - hidden[j]).max() for i, j in [(0, 1), (0, 2), (1, 2)]) > 1e-3


# The loss.


def test_the_loss_is_the_mean_over_masked_tokens(setting):
    system, params = setting
    tokens, labels, _ = batch_of(system)
    network = bind(system.network, params)
    noise = system.scheme.noise(network, jax.random.key(3), tokens)
    kept = system.plan.tokens - int(noise.masked)
    hidden = network.backbone(tokens, labels, noise.order, kept, kept)
    each = network.head.loss(hidden, tokens, noise.head, system.plan)
    masked = np.stack([each[i, noise.order[i, kept:]] for i in range(2)])
    loss = loss_given(system, params, tokens, labels, noise)
    np.testing.assert_allclose(loss, masked.mean(), rtol=1e-5)


def test_every_share_of_masked_tokens_is_one_program(setting):
    system, params = setting
    tokens, labels, _ = batch_of(system)
    noise = system.scheme.noise(bind(system.network, params), jax.random.key(3), tokens)
    loss = jax.jit(functools.partial(loss_given, system))
    numbers = [jnp.asarray(n, jnp.int32) for n in (16, 12, 8)]
    loss(params, tokens, labels, noise._replace(masked=numbers[0]))
    compiled = compilations()
    losses = {float(loss(params, tokens, labels, noise._replace(masked=n))) for n in numbers}
    assert not compiled and len(losses) == 3
    loss(params, tokens, labels, noise._replace(masked=16.0))
    assert compiled, "the listener must notice a compilation"


@pytest.mark.parametrize(("lowest", "deviation"), [(0.7, 0.25), (0.2, 1.0)])
def test_the_share_of_masked_tokens(setting, lowest, deviation):
    """Its law is the normal one around 1, cut to [lowest, 1]; orders are uniform."""
    from scipy.stats import truncnorm

    system, _ = setting
    tokens = plan.token((4, 8))
    context = Masked(Latents(Moments(1.0), tokens, 2), lowest, deviation)
    network = bind(system.network, setting[1])
    data = jnp.zeros((1, 32, 2))
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.jit(jax.vmap(lambda key: context.noise(network, key, data)))(keys)
    masked = np.asarray(drawn.masked)
    assert masked.min() >= math.ceil(32 * lowest) == 32 - context.most_kept
    assert masked.max() == 32
    law = truncnorm((lowest - 1) / deviation, 0, loc=1, scale=deviation)
    assert context.usually_kept == pytest.approx(32 * (1 - law.mean()))
    for count in range(33 - context.most_kept, 32):
        wanted = law.cdf(count / 32)
        error = 4 * math.sqrt(wanted * (1 - wanted) / len(masked))
        assert abs((masked <= count).mean() - wanted) <= error
    first = np.bincount(np.asarray(drawn.order)[:, 0, 0], minlength=32) / len(masked)
    np.testing.assert_allclose(first, 1 / 32, atol=5 * math.sqrt(1 / 32 / len(masked)))


@pytest.mark.parametrize("wrong", [{"lowest": 0.0}, {"lowest": 1.0}, {"deviation": 0.0}])
def test_shares_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be above 0"):
        Masked(Latents(Moments(1.0), plan.token((2, 2)), 2), **wrong)
    with pytest.raises(ValueError, match="plan=token"):
        Masked(Latents(Moments(1.0), plan.image((2, 2)), 2))


# The walk.


def released_sizes(tokens, iterations):
    """The release's loop, as a mask."""
    masked, sizes = tokens, []
    for step in range(iterations):
        left = math.floor(tokens * math.cos(math.pi / 2 * (step + 1) / iterations))
        left = max(1, min(masked - 1, left))
        if step == iterations - 1:
            left = 0
        sizes.append(masked - left)
        masked = left
    return sizes


@pytest.mark.parametrize("tokens", [1, 2, 16, 63, 256])
def test_unmasking(tokens):
    for iterations in {1, 2, 3, tokens // 4, tokens // 2, tokens - 1, tokens}:
        if 1 <= iterations <= tokens:
            sizes = unmasking(tokens, iterations)
            assert list(sizes) == released_sizes(tokens, iterations)
            assert len(sizes) == iterations and sum(sizes) == tokens and min(sizes) >= 1
    assert unmasking(tokens, tokens) == (1,) * tokens
    for wrong in (0, tokens + 1):
        with pytest.raises(ValueError, match=f"1 to {tokens} iterations"):
            unmasking(tokens, wrong)


def settings_of(iterations, guided=True, steps=3):
    return Settings(Denoising(steps), guided=guided, iterations=iterations)


def sampler(system, **options):
    return functools.partial(system.sample, settings=settings_of(**options))


def equations(jaxpr):
    """Returns how many operations a program has; the inside of a loop counts once."""
    inner = jax.tree.leaves([list(e.params.values()) for e in jaxpr.eqns])
    inner = [x.jaxpr if hasattr(x, "consts") else x for x in inner]
    return len(jaxpr.eqns) + sum(equations(x) for x in inner if hasattr(x, "eqns"))


def test_the_program_does_not_grow_with_iterations(setting):
    system, params = setting
    keys, labels = jax.random.split(jax.random.key(1), 2), jnp.asarray([0, 1])

    def size(iterations):
        made = jax.make_jaxpr(sampler(system, iterations=iterations))(params, {}, keys, labels, 2.0)
        return equations(made.jaxpr)

    assert abs(size(16) - size(8)) < 0.01 * size(8)  # but for a few numbers in tables


def test_one_program_serves_all_requests(setting):
    system, params = setting
    sample = jax.jit(sampler(system, iterations=5))
    made = [sample(params, {}, jax.random.split(jax.random.key(0), 2), jnp.asarray([0, 1]), 2.0)]
    keys, labels = jax.random.split(jax.random.key(7), 2), jnp.asarray([3, system.num_classes])
    compiled = compilations()
    made.append(sample(params, {}, keys, labels, 3.0))
    assert not compiled
    assert not np.allclose(*made)
    sample(params, {}, keys[:1], labels[:1], 3.0)
    assert compiled, "the listener must notice a compilation"


def test_the_walk_is_the_network_asked_again_and_again(setting):
    """Iteration by iteration, with only as much room as there are kept tokens."""
    system, params = setting
    _, labels, order = batch_of(system)
    n, channels, iterations = system.plan.tokens, system.entities.channels, 6
    numbers = jax.random.normal(jax.random.key(4), (iterations, 4, 2, n, channels))

    def noise(iteration, number, shape):
        return numbers[iteration, number][:, : shape[0]]

    given = Given(normal_of=noise, order=order)
    settings = settings_of(iterations, steps=3)
    out = sample_given(system, params, labels, 2.5, settings, given)

    network = bind(system.network, params)
    chain, batch = network.head.diffusion.respaced(3), jnp.arange(2)[:, None]
    tokens, start = jnp.zeros((2, n, channels)), 0
    null = jnp.full_like(labels, system.num_classes)
    for i, size in enumerate(unmasking(n, iterations)):
        left = max(n - start - size, 1)
        weight = 1 + (2.5 - 1) * (n - left) / n
        chosen = order[:, start : start + size]
        hidden = [
            network.backbone(tokens, label, order, start, start)[batch, chosen]
            for label in (labels, null)
        ]

        def predict(x, step, hidden=hidden, weight=weight):
            with_class, without = (network.head(x, step, h) for h in hidden)
            mixed = without + weight * (with_class - without)
            return mixed.at[..., channels:].set(with_class[..., channels:])

        drawn = chain.sample(predict, lambda k, i=i, size=size: numbers[i, k][:, :size])
        tokens = tokens.at[batch, chosen].set(drawn)
        start += size
    np.testing.assert_allclose(out, tokens, rtol=1e-4, atol=1e-4 * jnp.abs(tokens).max())


def test_guidance_of_one_needs_no_unconditional_half(setting):
    system, params = setting
    keys, labels = jax.random.split(jax.random.key(1), 2), jnp.asarray([0, 1])
    a, b = (jax.jit(sampler(system, iterations=4, guided=g)) for g in (True, False))
    a, b = (f(params, {}, keys, labels, 1.0) for f in (a, b))
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * jnp.abs(a).max())


def test_an_example_depends_on_its_key_alone(setting):
    system, params = setting
    keys, labels = jax.random.split(jax.random.key(1), 3), jnp.asarray([0, 1, 1])
    sample = jax.jit(sampler(system, iterations=5))
    together, alone = (sample(params, {}, keys[s], labels[s], 2.0) for s in (slice(3), slice(1, 2)))
    np.testing.assert_allclose(alone[0], together[1], atol=1e-4 * jnp.abs(together).max())
    assert not np.allclose(together[1], together[2])


def test_known_tokens_are_kept_and_revealed_first(setting):
    """All other tokens depend on each of them, and nothing on what stands beside the mask."""
    system, params = setting
    n, count = system.plan.tokens, 4
    labels, keys = jnp.asarray([2]), jax.random.split(jax.random.key(3), 1)
    mask = jnp.zeros((1, n), bool).at[0, jnp.asarray([3, 15, 0, 8])].set(True)
    values = jax.random.normal(jax.random.key(4), (1, n, system.entities.channels))

    @jax.jit
    def sample(values):
        settings = settings_of(n, steps=2)
        request = request_for(
            system.condition, labels, 2.0, Draws(keys), settings, Known(values, mask)
        )
        return system.sample_tokens(params, request)

    np.testing.assert_array_equal(sample(values)[mask], values[mask])
    influence = jax.jit(jax.jacobian(lambda values: jnp.abs(sample(values)).sum(-1)[0]))(values)
    influence = jnp.abs(influence[:, 0]).sum(-1)  # of each token on each
    known = np.flatnonzero(mask[0])
    unknown = np.flatnonzero(~mask[0])
    assert len(known) == count
    assert (influence[np.ix_(unknown, known)] > 0).all()
    assert (influence[:, unknown] == 0).all()


def test_the_settings_of_a_config(setting):
    config, _, _ = system_and_params("mar_digits")
    settings = build_settings(config, iterations=7, temperature=0.9)
    assert settings.iterations == 7
    assert settings.draw == Denoising(config.sample.steps, 0.9, config.sample.clip)
    with pytest.raises(ValueError, match="'solver'"):
        build_settings(config, solver="euler")
