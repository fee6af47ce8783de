"""The head of xAR: flow matching inside an entity, conditioned on noisy earlier entities.

    x_t = path(x, e, t),   loss = mean (backbone(x_t, t, class) - v(x, e, t))^2          (1)

Every entity has its own time t and noise e. Under *noisy context learning* an entity sees itself
and the earlier *noised* entities, so the network meets its own kind of errors in training; the
alternative is *teacher forcing*, where it sees the clean earlier entities (two streams).

Source: arXiv 2502.20388, section 3.3 and equations 6 to 8; OliverRensu/xAR models/xar.py `forward`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.flow.path import Path
from jaxar.flow.solver import Solver, Velocity
from jaxar.plan import Layout, Plan
from jaxar.typing import Array, Float


class Inputs(NamedTuple):
    """What the backbone sees in training: tokens, the time of each segment, and their layout."""

    tokens: Array
    times: Array
    layout: Layout


@dataclasses.dataclass(frozen=True)
class FlowHead:
    """Flow matching with one time an entity.

    Attributes:
      path: Interpolant between data and noise.
      time: Law of training times: a function (key, shape) -> times.
      context: "noisy" (the paper) or "clean" (teacher forcing), for earlier entities in training.
    """

    path: Path
    time: Callable[[Array, tuple[int, ...]], Array]
    context: Literal["noisy", "clean"] = "noisy"

    def __post_init__(self):
        if self.context not in ("noisy", "clean"):
            raise ValueError(f"The context must be 'noisy' or 'clean', not {self.context!r}.")

    def draw(
        self, key: Array, plan: Plan, tokens: Float[Array, "b n c"]
    ) -> tuple[Float[Array, "b x"], Float[Array, "b n c"]]:
        """Returns a time for each entity and noise for each token."""
        time_key, noise_key = jax.random.split(key)
        times = self.time(time_key, (tokens.shape[0], plan.entities))
        return times, jax.random.normal(noise_key, tokens.shape)

    def prepare(
        self,
        plan: Plan,
        tokens: Float[Array, "b n c"],
        times: Float[Array, "b x"],
        noise: Float[Array, "b n c"],
    ) -> tuple[Inputs, Float[Array, "b n c"]]:
        """Returns the backbone's inputs and the velocity it should predict."""
        t = times[:, plan.entity, None]
        noised = self.path.interpolate(tokens, noise, t)
        target = self.path.velocity(tokens, noise, t)
        if self.context == "noisy":
            return Inputs(noised, times, plan.layout()), target
        streams = jnp.concatenate([tokens, noised], 1)
        clean = jnp.concatenate([jnp.zeros_like(times), times], 1)
        return Inputs(streams, clean, plan.two_streams()), target

    def loss(
        self, prediction: Float[Array, "b n c"], target: Float[Array, "b m c"]
    ) -> Float[Array, ""]:
        """Returns the mean squared error, equation (1), over the noised tokens, in float32."""
        prediction = prediction[:, -target.shape[1] :]
        return jnp.mean(jnp.square(prediction.astype(jnp.float32) - target))

    def sample(
        self,
        velocity: Velocity,
        noise: Callable[[Any], Array],
        solver: Solver,
        grid: np.ndarray,
        dtype: Any,
    ) -> Array:
        """Returns one entity: noise(0) carried to data along the velocity.

        Args:
          velocity: Guided velocity of this entity, with backbone and cache inside.
          noise: noise(0) is the start, noise(1), ... are a stochastic solver's draws.
          solver: Entry of `SOLVERS`.
          grid: Times of the solver.
          dtype: Of the solver's state.
        """
        start = noise(0).astype(dtype)
        return solver.solve(velocity, start, grid, lambda i: noise(1 + i).astype(dtype), self.path)
