"""Flow matching of entities: what is noised, what is predicted, and how a flow is solved.

    x_t = path(x, e, t),   target = v(x, e, t)                                         (1)

Every entity has its own time t and noise e. In xAR the backbone itself predicts the velocity; in
FlowAR a network of its own does (`heads.flow_network`).

Source: arXiv 2502.20388, equations 6 to 8; OliverRensu/xAR models/xar.py `forward`.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.core.known import Known
from jaxar.core.plan import Plan
from jaxar.core.random import Draws
from jaxar.flow import time
from jaxar.flow.path import Path
from jaxar.flow.solver import SOLVERS, Velocity
from jaxar.typing import Array, Float


class FlowNoise(NamedTuple):
    """Randomness of a loss: a time for each entity, (b, x), and noise for each token, (b, n, c)."""

    times: Array
    noise: Array


@dataclasses.dataclass(frozen=True)
class Flow:
    """Flow matching with one time an entity.

    Attributes:
      path: Interpolant between data and noise.
      time: Law of training times: a function (key, shape) -> times.
    """

    path: Path
    time: Callable[[Array, tuple[int, ...]], Array]

    def noise(self, key: Array, tokens: Float[Array, "b n c"], plan: Plan) -> FlowNoise:
        """Returns a time for each entity and noise for each token."""
        time_key, noise_key = jax.random.split(key)
        times = self.time(time_key, (tokens.shape[0], plan.entities))
        return FlowNoise(times, jax.random.normal(noise_key, tokens.shape))

    def prepare(
        self, tokens: Float[Array, "b n c"], noise: FlowNoise, plan: Plan
    ) -> tuple[Float[Array, "b n c"], Float[Array, "b n c"]]:
        """Returns the noised tokens and the velocities to predict, (1)."""
        t = noise.times[:, plan.entity, None]
        noised = self.path.interpolate(tokens, noise.noise, t)
        return noised, self.path.velocity(tokens, noise.noise, t)


@dataclasses.dataclass(frozen=True)
class Solving:
    """How flows are solved in sampling. Static under `jax.jit`.

    Attributes:
      solver: Name in `SOLVERS`.
      steps: Solver steps for each entity.
      shift: Shift of the solver's times towards noise; 1 for none.
      times: "published", the grid that belongs to the solver, or "two_part", FlowAR's.
      dtype: Of the solver's state: "float32", or "float64" as the released code (needs x64).
    """

    solver: str = "euler_maruyama"
    steps: int = 50
    shift: float = 1.0
    times: str = "published"
    dtype: str = "float32"

    def __post_init__(self):
        if self.solver not in SOLVERS:
            raise ValueError(f"Unknown solver {self.solver!r}: choose one of {sorted(SOLVERS)}.")
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"The number of solver steps must be 1 or more, not {self.steps!r}.")
        if self.shift <= 0:
            raise ValueError(f"The time shift must be above 0, not {self.shift}.")
        if self.times not in ("published", "two_part"):
            raise ValueError(f"The times are 'published' or 'two_part', not {self.times!r}.")
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"The solver's dtype is 'float32' or 'float64', not {self.dtype!r}.")
        if self.dtype == "float64" and not jax.config.jax_enable_x64:  # pyright: ignore
            raise ValueError("A float64 solver needs 64-bit JAX: set JAX_ENABLE_X64=true.")
        self.grid  # noqa: B018 -- too few steps are found here

    @property
    def grid(self) -> np.ndarray:
        """(steps + 1,) times from noise to data."""
        make = SOLVERS[self.solver].grid if self.times == "published" else time.two_part_grid
        return make(self.steps, self.shift)


def solve(
    velocity: Velocity,
    shape: tuple[int, int],
    settings: Solving,
    path: Path,
    draws: Draws,
    known: Known | None,
) -> Float[Array, "b n c"]:
    """Returns one entity: noise carried to data along the velocity.

    Known tokens follow their own straight way from their noise, so that the others see them as in
    training.

    Args:
      velocity: Guided velocity of this entity, with all networks inside.
      shape: (tokens, channels) of the entity.
      settings: Solver and times.
      path: Interpolant, for stochastic solvers.
      draws: normal(0) is the start, normal(1), ... are a stochastic solver's draws.
      known: Tokens of this entity to keep, or None.
    """
    dtype = jnp.dtype(settings.dtype)

    def noise(i):
        return draws.normal(i, shape).astype(dtype)

    start = noise(0)

    def field(x: Array, t: Array) -> Array:
        if known is None:
            return velocity(x, t)
        way = path.interpolate(known.tokens.astype(dtype), start, t)
        return velocity(known._replace(tokens=way).keep(x), t)

    solver = SOLVERS[settings.solver]
    x = solver.solve(field, start, settings.grid, lambda i: noise(1 + i), path)
    return x if known is None else known.keep(x)
