"""Laws of flows: conversions cycle, times follow their laws, solvers have their order."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxar.flow.guidance import Guidance, Guide, guided, share_of
from jaxar.flow.path import Cosine, Linear
from jaxar.flow.solver import SOLVERS, euler, euler_maruyama, heun, midpoint, multistep
from jaxar.flow.time import LogitNormal, ShiftedUniform, Uniform, stochastic_grid, uniform_grid

TIMES = [0.1, 0.35, 0.5, 0.9]

paths = pytest.mark.parametrize("path", [Linear(), Cosine()], ids=["linear", "cosine"])


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


# Paths.


@paths
@pytest.mark.parametrize("t", TIMES)
def test_every_prediction_stands_for_the_others(path, t, x64):
    t = jnp.asarray(t)
    x, noise = normal(0, 5), normal(1, 5)
    x_t, v = path.interpolate(x, noise, t), path.velocity(x, noise, t)
    score = path.score_from_velocity(v, x_t, t)

    def same(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)

    same(path.data_from_velocity(v, x_t, t), x)
    same(path.noise_from_velocity(v, x_t, t), noise)
    same(path.velocity_from_data(x, x_t, t), v)
    same(path.velocity_from_noise(noise, x_t, t), v)
    same(path.velocity_from_score(score, x_t, t), v)


@paths
@pytest.mark.parametrize("t", TIMES)
def test_derivatives_are_those_of_the_coefficients(path, t, x64):
    _, _, d_alpha, d_sigma = path.coefficients(jnp.asarray(t))
    for i, derivative in enumerate([d_alpha, d_sigma]):
        slope = jax.grad(lambda t, i=i: path.coefficients(t)[i])(jnp.asarray(t))
        np.testing.assert_allclose(derivative, slope, rtol=1e-12)


@paths
def test_velocity_is_the_speed_of_the_interpolant(path, x64):
    x, noise, t = normal(0, 3), normal(1, 3), jnp.asarray(0.3)
    _, speed = jax.jvp(lambda t: path.interpolate(x, noise, t), (t,), (jnp.ones_like(t),))
    np.testing.assert_allclose(path.velocity(x, noise, t), speed, rtol=1e-12)


@paths
def test_score_is_the_slope_of_the_log_density_around_the_data(path, x64):
    x, noise, t = normal(0, 3), normal(1, 3), jnp.asarray(0.3)
    alpha, sigma, _, _ = path.coefficients(t)
    x_t, v = path.interpolate(x, noise, t), path.velocity(x, noise, t)
    slope = jax.grad(lambda y: jax.scipy.stats.norm.logpdf(y, alpha * x, sigma).sum())(x_t)
    np.testing.assert_allclose(path.score_from_velocity(v, x_t, t), slope, rtol=1e-10)


@paths
def test_a_path_starts_at_data_and_ends_at_noise(path, x64):
    x, noise = normal(0, 5), normal(1, 5)
    np.testing.assert_allclose(path.interpolate(x, noise, jnp.zeros(())), x, atol=1e-15)
    np.testing.assert_allclose(path.interpolate(x, noise, jnp.ones(())), noise, atol=1e-15)


# Times of training.


def unshift(t, shift):
    return t / (shift - (shift - 1) * t)


@pytest.mark.parametrize(
    ("law", "cdf"),
    [
        (Uniform(), lambda t: t),
        (LogitNormal(), lambda t: stats.norm.cdf(np.log(t / (1 - t)))),
        (LogitNormal(-0.7, 0.5), lambda t: stats.norm.cdf(np.log(t / (1 - t)), -0.7, 0.5)),
        (ShiftedUniform(), lambda t: t),
        (ShiftedUniform(3.0), lambda t: unshift(t, 3.0)),
        (ShiftedUniform(0.4), lambda t: unshift(t, 0.4)),
    ],
)
def test_times_follow_their_law(law, cdf):
    count = 20_000
    t = np.asarray(law(jax.random.key(0), (count // 2, 2)))
    assert t.shape == (count // 2, 2) and t.dtype == np.float32
    assert t.min() > 0 and t.max() < 1
    share = cdf(np.sort(t.ravel().astype(np.float64)))
    distance = np.abs(share - (np.arange(count) + 0.5) / count).max()
    assert distance < 2 / math.sqrt(count)  # a right law fails this once in 1,500 keys


@pytest.mark.parametrize("make", [lambda: LogitNormal(0.0, 0.0), lambda: ShiftedUniform(-2.0)])
def test_a_law_refuses_what_is_not_above_zero(make):
    with pytest.raises(ValueError, match=r"above 0, not (0\.0|-2\.0)"):
        make()


# Times of sampling.


@pytest.mark.parametrize("make", [uniform_grid, stochastic_grid])
@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("steps", [2, 5, 50])
def test_a_grid_walks_from_noise_to_data(make, shift, steps):
    grid = make(steps, shift)
    assert grid.shape == (steps + 1,) and grid.dtype == np.float64
    assert grid[0] == 1 and grid[-1] == 0 and (np.diff(grid) < 0).all()


@pytest.mark.parametrize("steps", [2, 5, 50])
def test_steps_are_equal_but_for_the_last_jump_of_the_stochastic_grid(steps):
    np.testing.assert_allclose(np.diff(uniform_grid(steps)), -1 / steps)
    grid = stochastic_grid(steps)
    assert tuple(grid[-2:]) == (0.04, 0.0)
    np.testing.assert_allclose(np.diff(grid[:-1]), -0.96 / (steps - 1))


@pytest.mark.parametrize("make", [uniform_grid, stochastic_grid])
def test_a_larger_shift_stays_longer_in_noise(make):
    low, plain, high = (make(9, shift)[1:-1] for shift in (0.5, 1.0, 3.0))
    assert (low < plain).all() and (plain < high).all()


def test_a_stochastic_grid_needs_two_steps():
    with pytest.raises(ValueError, match="2 steps, not 1"):
        stochastic_grid(1)


# Solvers.


def swing(x, t):
    """A linear field, dx/dt = cos(2 t) x, so that x(0) = x(1) exp(-sin(2) / 2)."""
    return jnp.cos(2 * t) * x


def limping_grid(steps):
    """Every second step is twice as long, so that unequal steps never look equal."""
    lengths = np.resize([1.0, 2.0], steps)
    return 1 - np.append(0, np.cumsum(lengths)) / lengths.sum()


def no_noise(i):
    raise AssertionError("a deterministic solver must not draw noise")


@pytest.mark.parametrize(("solve", "order"), [(euler, 1), (heun, 2), (midpoint, 2), (multistep, 2)])
@pytest.mark.parametrize("grid", [uniform_grid, lambda n: uniform_grid(n, 3.0), limping_grid])
def test_a_solver_has_its_order(solve, order, grid, x64):
    start = jnp.asarray([1.0, -2.0])

    def error(steps):
        end = solve(swing, start, grid(steps), no_noise, Linear())
        return float(jnp.abs(end - start * jnp.exp(-jnp.sin(2.0) / 2)).max())

    errors = [error(steps) for steps in (64, 128, 256)]
    measured = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    np.testing.assert_allclose(measured, order, atol=0.1)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_state_decides_the_dtype(name, dtype, x64):
    seen = []

    def velocity(x, t):
        seen.extend([x.dtype, t.dtype])
        return -x

    solve, grid = SOLVERS[name]
    start = jnp.ones(3, dtype)
    end = solve(velocity, start, grid(3), lambda i: jnp.ones(3, dtype), Linear())
    assert {*seen, end.dtype} == {jnp.dtype(dtype)}


MEAN, DEVIATION = 0.7, 0.3


def gaussian_velocity(path):
    """The exact field for data N(MEAN, DEVIATION^2): velocity of the expected data and noise."""

    def velocity(x_t, t):
        alpha, sigma, _, _ = path.coefficients(t)
        pull = (x_t - alpha * MEAN) / (alpha**2 * DEVIATION**2 + sigma**2)
        return path.velocity(MEAN + alpha * DEVIATION**2 * pull, sigma * pull, t)

    return velocity


@paths
@pytest.mark.parametrize("name", ["heun", "euler_maruyama"])
def test_gaussian_data_come_back(path, name):
    count, steps = 10_000, 250
    start, *draws = np.random.default_rng(0).standard_normal((steps, count), np.float32)
    draws, solver = jnp.stack(draws), SOLVERS[name]

    @jax.jit
    def sample(start, draws):
        field = gaussian_velocity(path)
        return solver.solve(field, start, solver.grid(steps), lambda i: draws[i], path)

    end = np.asarray(sample(jnp.asarray(start), draws), np.float64)
    assert abs(end.mean() - MEAN) < 5 * DEVIATION / math.sqrt(count)
    assert abs(end.std() / DEVIATION - 1) < 5 / math.sqrt(2 * count) + 0.02  # and the last jump


@paths
def test_euler_maruyama_is_its_loop_written_out(path, x64):
    """The draws are taken in order, one for each step but the last."""
    velocity, grid = gaussian_velocity(path), stochastic_grid(5)
    start, draws = normal(0, 4), normal(1, 6, 4)

    def solve(draws):
        return euler_maruyama(velocity, start, grid, lambda i: draws[i], path)

    x = start
    for i, (t, s) in enumerate(itertools.pairwise(jnp.asarray(grid))):
        v = velocity(x, t)
        x = x + (v - t * path.score_from_velocity(v, x, t)) * (s - t)
        if i < 4:
            x = x + jnp.sqrt(2 * t * (t - s)) * draws[i]
    np.testing.assert_allclose(solve(draws), x, rtol=1e-10)

    used = jnp.abs(jax.grad(lambda draws: solve(draws).sum())(draws)).sum(1) > 0
    assert used.tolist() == [True, True, True, True, False, False]


# Guidance.


def weights(rule, entities, guidance=4.0):
    return [float(rule.weight(guidance, share_of(i, entities))) for i in range(entities)]


def test_the_weight_rises_from_one_or_stays():
    np.testing.assert_allclose(weights(Guidance("linear"), 4), [1, 2, 3, 4])
    np.testing.assert_allclose(weights(Guidance("constant"), 4), [4, 4, 4, 4])


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_one_entity_gets_the_full_weight(schedule):
    assert weights(Guidance(schedule), 1) == [4.0]
    assert Guidance(schedule).acts_on(share_of(0, 1))


@pytest.mark.parametrize(("t", "inside"), [(0.1, 0), (0.2, 1), (0.4, 1), (0.6, 1), (0.7, 0)])
def test_guidance_acts_inside_its_interval_ends_included(t, inside):
    guide = Guide(Guidance(low=0.2, high=0.6), 3.0)
    conditional, unconditional = jnp.ones((1, 2)), jnp.zeros((1, 2))

    def both():
        return jnp.concatenate([conditional, unconditional])

    out = jax.jit(lambda t: guided(guide, t, both, lambda: conditional))(t)
    np.testing.assert_allclose(out, 3.0 if inside else 1.0)


def test_without_guidance_nothing_is_mixed():
    out = guided(None, jnp.asarray(0.5), lambda: 1 / 0, lambda: jnp.ones(2))
    np.testing.assert_array_equal(out, jnp.ones(2))


@pytest.mark.parametrize("schedule", ["constant", "linear"])
@pytest.mark.parametrize("entities", [1, 2, 5])
def test_acts_on_tells_where_the_weight_is_not_one(schedule, entities):
    rule = Guidance(schedule)
    acts = [rule.acts_on(share_of(i, entities)) for i in range(entities)]
    assert acts == [weight != 1 for weight in weights(rule, entities)]


def test_guidance_one_is_no_guidance_and_the_entity_may_be_traced():
    rule = Guidance("linear")
    assert weights(rule, 3, guidance=1.0) == [1, 1, 1]
    assert float(jax.jit(lambda i: rule.weight(4.0, share_of(i, 4)))(2)) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (dict(schedule="cosine"), "'cosine'"),
        (dict(low=0.6, high=0.2), "low=0.6, high=0.2"),
        (dict(low=-0.1), "low=-0.1"),
        (dict(high=1.5), "high=1.5"),
    ],
)
def test_a_wrong_rule_is_refused(arguments, said):
    with pytest.raises((ValueError, TypeError)) as error:  # the latter where types are checked
        Guidance(**arguments)
    assert said in str(error.value)
