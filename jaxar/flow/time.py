"""Laws of the training time, and grids of sampling times.

Times run from 0 (data) to 1 (noise). A law is drawn once per entity and example in training; a grid
is a decreasing sequence that a solver walks when sampling.
"""

import dataclasses

import jax
import numpy as np

from jaxar.typing import Array


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Times uniform on [0, 1): FlowAR's law."""

    def __call__(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Returns float32 times of the given shape."""
        return jax.random.uniform(key, shape)


@dataclasses.dataclass(frozen=True)
class LogitNormal:
    """sigmoid(mu + sigma z), z ~ N(0, 1): xAR's law with mu 0, sigma 1.

    Source: arXiv 2403.03206, section 3.1; OliverRensu/xAR models/xar.py `sample_logit_normal`.
    """

    mu: float = 0.0
    sigma: float = 1.0

    def __post_init__(self):
        if self.sigma <= 0:
            raise ValueError(f"The logit-normal sigma must be above 0, not {self.sigma}.")

    def __call__(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Returns float32 times of the given shape."""
        return jax.nn.sigmoid(self.mu + self.sigma * jax.random.normal(key, shape))


@dataclasses.dataclass(frozen=True)
class ShiftedUniform:
    """Uniform times moved towards noise: t -> shift t / (1 + (shift - 1) t).

    Larger latents need a larger shift; 1 changes nothing. Source: arXiv 2403.03206, section 5.3.2.
    """

    shift: float = 1.0

    def __post_init__(self):
        if self.shift <= 0:
            raise ValueError(f"The time shift must be above 0, not {self.shift}.")

    def __call__(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Returns float32 times of the given shape."""
        return shift_time(jax.random.uniform(key, shape), self.shift)


def shift_time(t, shift: float):
    """Returns the times t, moved towards noise by `shift`; 0 and 1 stay where they are."""
    return shift * t / (1 + (shift - 1) * t)


def uniform_grid(steps: int, shift: float = 1.0) -> np.ndarray:
    """Returns steps + 1 float64 times from 1 to 0, equally spaced before the shift."""
    return shift_time(np.linspace(1, 0, steps + 1), shift)


def stochastic_grid(steps: int, shift: float = 1.0, last: float = 0.04) -> np.ndarray:
    """Returns steps + 1 float64 times: 1 to `last` equally spaced, then 0.

    The jump from `last` to 0 avoids the score near data, where it has no bound.
    Source: OliverRensu/xAR models/sampler.py `euler_maruyama_sampler`, arXiv 2401.08740.
    """
    if steps < 2:
        raise ValueError(f"This solver needs at least 2 steps, not {steps}.")
    return shift_time(np.append(np.linspace(1, last, steps), 0.0), shift)


def two_part_grid(steps: int, shift: float = 1.0) -> np.ndarray:
    """Returns FlowAR's float64 times: half of them from 1 to 0.3, the others from 0.25 to 0.

    An odd number of steps counts as the even one below, and 50 steps are equally spaced, as in the
    release. Source: wangqiang9/FlowAR models/sampler.py `euler_sampler`.
    """
    if steps < 2:
        raise ValueError(f"This grid needs at least 2 steps, not {steps}.")
    if steps == 50:
        return uniform_grid(steps, shift)
    half = steps // 2
    return shift_time(np.append(np.linspace(1, 0.3, half), np.linspace(0.25, 0, half + 1)), shift)
