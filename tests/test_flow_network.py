"""FlowAR: its flow network sees one entity, its trunk those before; the cache tells the truth."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.core import plan
from jaxar.core.condition import Label
from jaxar.core.known import Known
from jaxar.core.random import Draws
from jaxar.core.visibility import Layout
from jaxar.flow.guidance import Guidance, Guide, share_of
from jaxar.flow.path import Linear
from jaxar.flow.time import Uniform, two_part_grid
from jaxar.heads.base import Turn
from jaxar.heads.flow import Flow, FlowNoise, Solving
from jaxar.heads.flow_network import FlowNetwork
from jaxar.nn.compute import Compute
from jaxar.nn.module import bind, params_of
from jaxar.schemes.base import BackboneWithHead, Settings
from jaxar.schemes.shifted import Shifted
from jaxar.system import System
from jaxar.systems.image.flowar import FlowAR
from jaxar.tokenizers.adapters.patch import Patch
from jaxar.tokenizers.tokens import Latents
from tests.given import Given, sample_given

CHANNELS, HIDDEN, CLASSES, BATCH = 3, 16, 4, 2

PLANS = {
    "squares": plan.scale((4, 4), sizes=(1, 2, 4)),
    "rectangles": plan.scale((3, 5), sizes=((1, 2), (2, 3), (2, 5), (3, 5))),
    "coarse start": plan.scale((4, 4), sizes=(2, 4)),
    "one scale": plan.scale((3, 2), sizes=((3, 2),)),
    "cells": plan.cell((4, 4), height=2, width=2),
    "tokens": plan.token((2, 3)),
}
VARIANTS = pytest.mark.parametrize("cross", [False, True], ids=["modulated", "cross"])
EVERY_PLAN = pytest.mark.parametrize("name", PLANS)


def made(entities, cross, key):
    trunk, head = jax.random.split(key)
    return BackboneWithHead(
        FlowAR(entities, CHANNELS, Label(CLASSES), width=HIDDEN, depth=(1, 2), heads=2, key=trunk),
        FlowNetwork(
            entities,
            HIDDEN,
            CHANNELS,
            flow=Flow(Linear(), Uniform()),
            width=24,
            depth=2,
            heads=3,
            cross=cross,
            key=head,
        ),
    )


@functools.cache
def system_of(name, cross):
    """Returns a system and parameters that make every part matter: none is zero."""
    entities = PLANS[name]
    make = functools.partial(made, entities, cross)
    template = jax.eval_shape(make, jax.random.key(0))
    scheme = Shifted(Latents(Patch(), entities, CHANNELS))
    system = System(template, make, scheme, Label(CLASSES, 0.1), (*entities.grid, CHANNELS))
    leaves, tree = jax.tree.flatten(system.init(jax.random.key(1)))
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return system, jax.tree.unflatten(tree, moved)


def head_of(name, cross):
    system, params = system_of(name, cross)
    return bind(system.network, params).head


def drawn(entities, seed=3):
    """Returns tokens, hidden vectors and noise of a loss."""
    keys = jax.random.split(jax.random.key(seed), 4)
    tokens = jax.random.normal(keys[0], (BATCH, entities.tokens, CHANNELS))
    hidden = jax.random.normal(keys[1], (BATCH, entities.tokens, HIDDEN))
    times = jax.random.uniform(keys[2], (BATCH, entities.entities), minval=0.2, maxval=0.8)
    return tokens, hidden, FlowNoise(times, jax.random.normal(keys[3], tokens.shape))


@VARIANTS
@pytest.mark.parametrize("name", [pytest.param("rectangles", marks=pytest.mark.slow), "cells"])
def test_an_entity_does_not_see_another(name, cross):
    """Its loss depends on its own noise and conditions, all of them, and on no other's."""
    entities, head = PLANS[name], head_of(name, cross)
    tokens, hidden, noise = (jax.tree.map(lambda x: x[:1], x) for x in drawn(entities))

    def losses(own):
        loss = head.loss(own["hidden"], tokens, noise._replace(noise=own["noise"]), entities)[0]
        return jnp.stack([loss[start:stop].sum() for start, stop in entities.spans()])

    influence = jax.jit(jax.jacobian(losses))({"hidden": hidden, "noise": noise.noise})
    inside = np.arange(entities.entities)[:, None] == entities.entity
    for gradient in influence.values():
        reached = jnp.abs(gradient[:, 0]).sum(-1) > 0
        np.testing.assert_array_equal(reached, inside)


@VARIANTS
@EVERY_PLAN
def test_loss_of_all_entities_is_that_of_each(name, cross):
    """Equation (1): entities one by one, each weighted by its size over that of the last."""
    entities, head = PLANS[name], head_of(name, cross)
    tokens, hidden, noise = drawn(entities)
    total = 0.0
    for i, (start, stop) in enumerate(entities.spans()):
        own, t = slice(start, stop), noise.times[:, i : i + 1]
        x, e = tokens[:, own], noise.noise[:, own]
        noised = (1 - t[..., None]) * x + t[..., None] * e
        layout = Layout(np.arange(start, stop), (stop - start,), None)
        velocity = head(noised, t, hidden[:, own], layout)
        weight = (stop - start) / entities.sizes[-1]
        total += weight * jnp.mean(jnp.square(velocity - (e - x)))
    loss = jnp.mean(head.loss(hidden, tokens, noise, entities))
    np.testing.assert_allclose(loss, total, rtol=1e-5)


def test_the_loss_draws_a_time_for_each_entity():
    entities, head = PLANS["squares"], head_of("squares", False)
    tokens, _, _ = drawn(entities)
    noise = head.noise(jax.random.key(0), tokens, entities)
    assert noise.times.shape == (BATCH, 3)
    assert noise.noise.shape == tokens.shape
    assert len(np.unique(noise.times)) == noise.times.size


@pytest.mark.parametrize(
    ("steps", "times"),
    [
        (2, [1, 0.25, 0]),
        (8, [1, 1 - 0.7 / 3, 1 - 1.4 / 3, 0.3, 0.25, 0.1875, 0.125, 0.0625, 0]),
        (9, [1, 1 - 0.7 / 3, 1 - 1.4 / 3, 0.3, 0.25, 0.1875, 0.125, 0.0625, 0]),
        (25, [*(1 - 0.7 * i / 11 for i in range(12)), *(0.25 - 0.25 * i / 12 for i in range(13))]),
        (50, [1 - i / 50 for i in range(51)]),
    ],
)
def test_two_part_grid(steps, times):
    grid = two_part_grid(steps)
    assert grid.dtype == np.float64
    np.testing.assert_allclose(grid, times, atol=1e-15)


def test_times_of_flowar_h_end_its_interval_as_in_the_release():
    """With 50 steps one time is 0.7, where guidance begins: PyTorch's is not above it either."""
    assert two_part_grid(50)[15] == 0.7
    assert bool(Guidance(high=0.7).inside(jnp.float32(two_part_grid(50)[15])))


def test_two_part_grid_needs_a_step_for_each_part():
    with pytest.raises(ValueError, match="at least 2 steps, not 1"):
        two_part_grid(1)


def turn_of(entities, guide, *, entity=-1, place=None, known=None, seed=5):
    start, stop = entities.spans()[entity]
    place = np.arange(start, stop) if place is None else place
    draws = Draws(jax.random.split(jax.random.key(seed), BATCH))
    return Turn(place, 1.0, guide, draws, Solving("euler", 2, times="two_part"), known)


@VARIANTS
def test_guidance_outside_its_interval_is_none(cross):
    """The two steps are taken at times 1 and 0.25."""
    entities, head = PLANS["squares"], head_of("squares", cross)
    hidden = jax.random.normal(jax.random.key(4), (2 * BATCH, entities.sizes[-1], HIDDEN))

    def draw(low, high):
        guide = Guide(Guidance("linear", low, high), 3.0)
        return head.draw(hidden, turn_of(entities, guide))

    alone = head.draw(hidden[:BATCH], turn_of(entities, None))
    np.testing.assert_allclose(draw(0.3, 0.9), alone, atol=1e-6)

    start = turn_of(entities, None).draws.normal(0, alone.shape[1:])

    def step(x, t, weight):
        layout = Layout(turn_of(entities, None).place, (entities.sizes[-1],), None)
        times = jnp.full((BATCH, 1), t)
        yes, no = (head(x, times, h, layout) for h in jnp.split(hidden, 2))
        return no + weight * (yes - no)

    half = start - 0.75 * step(start, 1.0, 1.0)
    late = half - 0.25 * step(half, 0.25, 3.0)
    np.testing.assert_allclose(draw(0.0, 0.9), late, atol=1e-4)
    half = start - 0.75 * step(start, 1.0, 3.0)
    throughout = half - 0.25 * step(half, 0.25, 3.0)
    np.testing.assert_allclose(draw(0.0, 1.0), throughout, atol=1e-4)
    assert not np.allclose(alone, late, atol=1e-2)


def test_known_tokens_are_kept():
    entities, head = PLANS["squares"], head_of("squares", True)
    hidden = jax.random.normal(jax.random.key(4), (BATCH, 16, HIDDEN))
    mask = jnp.arange(16) % 3 == 0
    values = jax.random.normal(jax.random.key(6), (BATCH, 16, CHANNELS))
    known = Known(values, jnp.broadcast_to(mask, (BATCH, 16)))
    tokens = head.draw(hidden, turn_of(entities, None, known=known))
    np.testing.assert_array_equal(tokens[:, mask], values[:, mask])
    free = head.draw(hidden, turn_of(entities, None))
    assert not np.allclose(tokens[:, ~mask], free[:, ~mask], atol=1e-3)


@VARIANTS
def test_tokens_that_are_entities_do_not_see_each_other_when_drawn_together(cross):
    """Wherever they stand, and each example may have places of its own: masked contexts need it."""
    entities, head = PLANS["tokens"], head_of("tokens", cross)
    hidden = jax.random.normal(jax.random.key(4), (BATCH, 3, HIDDEN))
    place = jnp.asarray([[5, 0, 2], [1, 3, 4]])
    together = head.draw(hidden, turn_of(entities, None, place=place))

    def influence(hidden):
        drawn = head.draw(hidden, turn_of(entities, None, place=place))
        return jnp.abs(drawn).sum((0, 2))

    reached = jnp.abs(jax.jacobian(influence)(hidden)).sum((1, 3)) > 0
    np.testing.assert_array_equal(reached, np.eye(3, dtype=bool))
    moved = head.draw(hidden, turn_of(entities, None, place=place[:, ::-1]))
    np.testing.assert_allclose(moved, together, atol=1e-6)


@EVERY_PLAN
def test_inputs_of_all_entities_are_those_of_each(name):
    system, _ = system_of(name, False)
    entities, levels = system.entities, PLANS[name]
    tokens, _, _ = drawn(levels)
    state, parts = entities.begin(BATCH), []
    for i, (start, stop) in enumerate(levels.spans()):
        if i:
            parts.append(entities.next_inputs(state, i))
        state = entities.follow(state, tokens[:, start:stop], i)
    inputs = entities.inputs(tokens)
    assert inputs.shape == (BATCH, levels.tokens - levels.sizes[0], CHANNELS)
    if parts:
        np.testing.assert_array_equal(inputs, jnp.concatenate(parts, 1))


def test_inputs_of_a_level_by_hand():
    """Cubic enlargement of (a, b) to four cells, then the means of overlapping pairs.

    The centres of the four cells lie at -1/4, 1/4, 3/4 and 5/4; with slope -3/4 the kernel is
    0.87890625, 0.26171875, -0.10546875 and -0.03515625 at distances of 1, 3, 5 and 7 quarters.
    """
    levels = plan.scale((1, 4), sizes=((1, 1), (1, 2), (1, 3), (1, 4)))
    entities = Latents(Patch(), levels, 1)
    a, b = 2.0, -1.0
    inputs = entities.inputs(jnp.asarray([5, a, b, 0, 0, 0, 0, 0, 0, 0])[None, :, None])[0, :, 0]
    near, far = 0.87890625 - 0.10546875, 0.26171875 - 0.03515625  # beyond the edge cells repeat
    edge = 0.87890625 + 0.26171875 - 0.03515625
    cells = [edge * a + (1 - edge) * b, near * a + far * b]
    cells += [far * a + near * b, (1 - edge) * a + edge * b]
    np.testing.assert_allclose(inputs[:2], [5, 5], rtol=1e-6)
    pairs = [(x + y) / 2 for x, y in itertools.pairwise(cells)]
    np.testing.assert_allclose(inputs[2:5], pairs, rtol=1e-6)
    np.testing.assert_array_equal(inputs[5:], 0)


@EVERY_PLAN
def test_the_trunk_is_causal_by_gradient(name):
    """The condition of an entity depends on the entities before it, and on no others."""
    system, params = system_of(name, False)
    levels, backbone = PLANS[name], bind(system.network, params).backbone
    tokens, _, _ = drawn(levels)

    def conditions(tokens):
        inputs = system.entities.inputs(tokens)
        hidden, _ = backbone(inputs, jnp.zeros(1, int), levels.layout())
        return jnp.stack([jnp.abs(hidden[0, a:b]).sum() for a, b in levels.spans()])

    reached = jnp.abs(jax.jit(jax.jacobian(conditions))(tokens[:1])[:, 0]).sum(-1) > 0
    before = levels.entity < np.arange(levels.entities)[:, None]
    np.testing.assert_array_equal(reached, before)


@VARIANTS
@EVERY_PLAN
def test_cached_sampling_is_one_block_causal_pass(name, cross):
    """One Euler step from t = 1 moves an entity by its velocity, so the walk can be read off.

    The trunk sees all sampled tokens in one pass; its conditions give the same velocities.
    """
    system, params = system_of(name, cross)
    levels, labels, guidance = PLANS[name], jnp.asarray([1, 0]), 1.7
    _, _, (_, draws) = drawn(levels)

    def noise(entity, number, shape):
        start = jnp.asarray(levels.offsets)[entity]
        return jax.lax.dynamic_slice_in_dim(draws, start, shape[0], 1)

    settings = Settings(Solving("euler", 1), guidance=Guidance("linear"))
    final = sample_given(system, params, labels, guidance, settings, Given(normal_of=noise))

    @jax.jit
    def velocities(labels):
        network = bind(system.network, params)
        hidden, _ = network.backbone(system.entities.inputs(final), labels, levels.layout())
        parts = []
        for start, stop in levels.spans():
            own = slice(start, stop)
            layout = Layout(np.arange(start, stop), (stop - start,), None)
            parts.append(network.head(draws[:, own], jnp.ones((BATCH, 1)), hidden[:, own], layout))
        return jnp.concatenate(parts, 1)

    yes, no = velocities(labels), velocities(jnp.full_like(labels, CLASSES))
    shares = np.array([share_of(i, levels.entities) for i in range(levels.entities)])
    weights = (1 + (guidance - 1) * shares)[levels.entity][:, None]
    np.testing.assert_allclose(final, draws - (no + weights * (yes - no)), atol=1e-4)
    assert not np.allclose(yes, no, atol=1e-2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@VARIANTS
def test_remat_and_dtype_change_no_result(cross, dtype):
    entities = PLANS["squares"]
    tokens, hidden, noise = drawn(entities)
    params = params_of(head_of("squares", cross))
    sizes = dict(flow=Flow(Linear(), Uniform()), width=24, depth=2, heads=3, cross=cross)

    def gradient(dtype, remat):
        make = functools.partial(
            FlowNetwork, entities, HIDDEN, CHANNELS, **sizes, compute=Compute(dtype, remat)
        )
        template = jax.eval_shape(lambda key: make(key=key), jax.random.key(0))

        def loss(params):
            return jnp.mean(bind(template, params).loss(hidden, tokens, noise, entities))

        return jax.jit(jax.grad(loss))(params)

    exact = jax.tree.leaves(gradient("float32", "none"))
    other = jax.tree.leaves(gradient(dtype, "projections"))
    assert all(leaf.dtype == jnp.float32 for leaf in other)
    apart = sum(float(jnp.vdot(a - b, a - b)) for a, b in zip(exact, other, strict=True)) ** 0.5
    whole = sum(float(jnp.vdot(a, a)) for a in exact) ** 0.5
    assert apart <= {"float32": 1e-4, "bfloat16": 0.15}[dtype] * whole
