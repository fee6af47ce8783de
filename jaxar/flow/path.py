"""Interpolants between data and noise, and conversions between prediction targets.

    x_t = alpha(t) x + sigma(t) e                                                        (1)
    v   = alpha'(t) x + sigma'(t) e         velocity, dx_t / dt                          (2)
    s   = -e / sigma(t)                     score of x_t                                 (3)

t = 0 is data x, t = 1 is noise e ~ N(0, 1). Solving (1) and (2) for x and e, with
D = alpha sigma' - sigma alpha':  x = (sigma' x_t - sigma v) / D,  e = (alpha v - alpha' x_t) / D.

Source: arXiv 2401.08740 (SiT), section 2; OliverRensu/xAR models/flow.py and models/sampler.py.
"""

import dataclasses

import jax.numpy as jnp

from jaxar.typing import Array


@dataclasses.dataclass(frozen=True)
class Path:
    """An interpolant; subclasses define the four coefficients. Times must broadcast against x."""

    def coefficients(self, t: Array) -> tuple[Array, Array, Array, Array]:
        """Returns alpha, sigma and their derivatives alpha', sigma' at time t in [0, 1]."""
        raise NotImplementedError

    def interpolate(self, x: Array, noise: Array, t: Array) -> Array:
        """Returns x_t, equation (1)."""
        alpha, sigma, _, _ = self.coefficients(t)
        return alpha * x + sigma * noise

    def velocity(self, x: Array, noise: Array, t: Array) -> Array:
        """Returns v, equation (2): the target of flow matching."""
        _, _, d_alpha, d_sigma = self.coefficients(t)
        return d_alpha * x + d_sigma * noise

    def data_from_velocity(self, v: Array, x_t: Array, t: Array) -> Array:
        """Returns the data x that velocity v at x_t implies."""
        alpha, sigma, d_alpha, d_sigma = self.coefficients(t)
        return (d_sigma * x_t - sigma * v) / (alpha * d_sigma - sigma * d_alpha)

    def noise_from_velocity(self, v: Array, x_t: Array, t: Array) -> Array:
        """Returns the noise e that velocity v at x_t implies."""
        alpha, sigma, d_alpha, d_sigma = self.coefficients(t)
        return (alpha * v - d_alpha * x_t) / (alpha * d_sigma - sigma * d_alpha)

    def score_from_velocity(self, v: Array, x_t: Array, t: Array) -> Array:
        """Returns the score, equation (3); infinite at t = 0."""
        return -self.noise_from_velocity(v, x_t, t) / self.coefficients(t)[1]

    def velocity_from_data(self, x: Array, x_t: Array, t: Array) -> Array:
        """Returns the velocity for predicted data x; undefined at t = 0."""
        alpha, sigma, _, _ = self.coefficients(t)
        return self.velocity(x, (x_t - alpha * x) / sigma, t)

    def velocity_from_noise(self, noise: Array, x_t: Array, t: Array) -> Array:
        """Returns the velocity for predicted noise; undefined at t = 1."""
        alpha, sigma, _, _ = self.coefficients(t)
        return self.velocity((x_t - sigma * noise) / alpha, noise, t)

    def velocity_from_score(self, score: Array, x_t: Array, t: Array) -> Array:
        """Returns the velocity for a predicted score; undefined at t = 1."""
        return self.velocity_from_noise(-self.coefficients(t)[1] * score, x_t, t)


@dataclasses.dataclass(frozen=True)
class Linear(Path):
    """x_t = (1 - t) x + t e: rectified flow, the path of xAR, FlowAR and SD3."""

    def coefficients(self, t: Array) -> tuple[Array, Array, Array, Array]:
        """Returns 1 - t, t, -1, 1."""
        one = jnp.ones_like(t)
        return 1 - t, t, -one, one


@dataclasses.dataclass(frozen=True)
class Cosine(Path):
    """x_t = cos(pi t / 2) x + sin(pi t / 2) e: preserves unit variance."""

    def coefficients(self, t: Array) -> tuple[Array, Array, Array, Array]:
        """Returns cos, sin and their derivatives at pi t / 2."""
        half_pi = jnp.pi / 2
        cos, sin = jnp.cos(half_pi * t), jnp.sin(half_pi * t)
        return cos, sin, -half_pi * sin, half_pi * cos
