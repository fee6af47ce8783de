"""Solvers that carry noise at t = 1 to data at t = 0 along a velocity field.

Each is a function (velocity, x, grid, noise, path) -> x at grid[-1]:

  velocity(x, t): the field at state x and scalar time t, in the dtype of x.
  x: the state at grid[0], which is the noise draw itself.
  grid: (steps + 1,) decreasing times in float64, fixed at trace time.
  noise(i): the i-th standard normal draw shaped as x; used by stochastic solvers only.
  path: the interpolant, for stochastic solvers.

The dtype of x is the dtype of the whole solve: float32, or float64 as in the released xAR code.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.flow import time
from jaxar.flow.path import Path
from jaxar.typing import Array

Velocity = Callable[[Array, Array], Array]
NoiseSource = Callable[[Any], Array]


def euler(velocity: Velocity, x: Array, grid: np.ndarray, noise: NoiseSource, path: Path) -> Array:
    """First order: x += (s - t) v(x, t)."""

    def step(x, t, s, i):
        return x + (s - t) * velocity(x, t)

    return _walk(step, x, grid)


def heun(velocity: Velocity, x: Array, grid: np.ndarray, noise: NoiseSource, path: Path) -> Array:
    """Second order, two evaluations a step: the mean of the slopes at both ends."""

    def step(x, t, s, i):
        v = velocity(x, t)
        return x + (s - t) * (v + velocity(x + (s - t) * v, s)) / 2

    return _walk(step, x, grid)


def midpoint(
    velocity: Velocity, x: Array, grid: np.ndarray, noise: NoiseSource, path: Path
) -> Array:
    """Second order, two evaluations a step: the slope half-way."""

    def step(x, t, s, i):
        half = x + (s - t) / 2 * velocity(x, t)
        return x + (s - t) * velocity(half, (t + s) / 2)

    return _walk(step, x, grid)


def multistep(
    velocity: Velocity, x: Array, grid: np.ndarray, noise: NoiseSource, path: Path
) -> Array:
    """Second order, one evaluation a step: Adams-Bashforth with the slope of the step before.

    The first step is Euler's. Steps may be unequal: with r the ratio of this step to the last,
    x += dt ((1 + r/2) v - r/2 v_last).
    """
    steps = np.diff(grid)
    ratio = jnp.asarray(np.append(0.0, steps[1:] / steps[:-1]), x.dtype)

    def step(carry, t, s, i):
        x, last = carry
        v = velocity(x, t)
        half = ratio[i] / 2
        return x + (s - t) * ((1 + half) * v - half * last), v

    return _walk(step, (x, jnp.zeros_like(x)), grid)[0]


def euler_maruyama(
    velocity: Velocity, x: Array, grid: np.ndarray, noise: NoiseSource, path: Path
) -> Array:
    """The released xAR sampler: a reverse SDE whose last step is without noise.

    dx = (v - g^2/2 score) dt + g dW with g(t)^2 = 2t. The release repeats a cell's context in its
    last step if there are just two steps; this one does not.
    Source: OliverRensu/xAR models/sampler.py `euler_maruyama_sampler`, after SiT.
    """
    last = len(grid) - 2

    def step(x, t, s, i):
        dt, squared = s - t, 2 * t
        v = velocity(x, t)
        drift = v - squared / 2 * path.score_from_velocity(v, x, t)
        amount = jnp.where(i < last, jnp.sqrt(squared * jnp.abs(dt)), 0)
        return x + drift * dt + amount * noise(jnp.minimum(i, last - 1))

    return _walk(step, x, grid)


class Solver(NamedTuple):
    """A solver and the grid of times it was published with."""

    solve: Callable[..., Array]
    grid: Callable[..., np.ndarray]


SOLVERS = {
    "euler": Solver(euler, time.uniform_grid),
    "heun": Solver(heun, time.uniform_grid),
    "midpoint": Solver(midpoint, time.uniform_grid),
    "multistep": Solver(multistep, time.uniform_grid),
    "euler_maruyama": Solver(euler_maruyama, time.stochastic_grid),
}


def _walk(step: Callable[..., Any], carry: Any, grid: np.ndarray) -> Any:
    """Returns the carry after step(carry, t, s, i) over all neighbours (t, s) of the grid."""
    dtype = jax.tree.leaves(carry)[0].dtype
    times = jnp.asarray(grid, dtype)

    def body(carry, i):
        return step(carry, times[i], times[i + 1], i), None

    return jax.lax.scan(body, carry, jnp.arange(len(grid) - 1))[0]
