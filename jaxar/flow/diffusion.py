"""Discrete-time diffusion with learned variances, as in MAR's head.

With betas beta_1 ... beta_T, alpha_t = 1 - beta_t and the products a_t = alpha_1 ... alpha_t:

    x_t = sqrt(a_t) x + sqrt(1 - a_t) e                                                (1)
    q(x_{t-1} | x_t, x) = N(c_1 x + c_2 x_t, b_t),    b_t = beta_t (1 - a_{t-1}) / (1 - a_t)   (2)
    c_1 = beta_t sqrt(a_{t-1}) / (1 - a_t),    c_2 = (1 - a_{t-1}) sqrt(alpha_t) / (1 - a_t)
    log variance = v log beta_t + (1 - v) log b_t,    v = (output + 1) / 2             (3)
    loss = mean (e - e')^2 + KL(q || p) in bits                                        (4)

For each element a network predicts the noise e' and v, which interpolates between the two bounds of
the variance. The second term of (4) trains the variance only. Steps are numbered from 0: step t is
t + 1 above.

Source: arXiv 2102.09672, equations 15 to 17; LTH14/mar diffusion/gaussian_diffusion.py, respace.py.
"""

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.typing import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """The cosine schedule with `steps` steps; sampling may use fewer.

    Attributes:
      steps: Training steps of the diffusion, T.
    """

    steps: int = 1000

    @functools.cached_property
    def betas(self) -> np.ndarray:
        """(T,) float64, from a_t = cos^2((t / T + 0.008) / 1.008 pi / 2), at most 0.999."""
        level = [
            math.cos((t / self.steps + 0.008) / 1.008 * math.pi / 2) ** 2
            for t in range(self.steps + 1)
        ]
        return np.array([min(1 - b / a, 0.999) for a, b in itertools.pairwise(level)])

    @functools.cached_property
    def products(self) -> np.ndarray:
        """(T,) a_t."""
        return np.cumprod(1 - self.betas)

    def noised(
        self, x: Float[Array, "... c"], t: Int[Array, "..."], noise: Float[Array, "... c"]
    ) -> Float[Array, "... c"]:
        """Returns x_t, (1)."""
        keep, add = _at(np.sqrt(self.products), t), _at(np.sqrt(1 - self.products), t)
        return keep * x + add * noise

    def loss(
        self,
        output: Float[Array, "... c2"],
        x: Float[Array, "... c"],
        x_t: Float[Array, "... c"],
        t: Int[Array, "..."],
        noise: Float[Array, "... c"],
    ) -> Float[Array, "..."]:
        """Returns (4), a mean over the channels.

        At step 0 the second term is the likelihood of x in bins of width 1 / 127.5, those of 8-bit
        pixels; the released code keeps it for latents.

        Args:
          output: Predicted noise, then v of (3) as 2 v - 1.
          x: Data.
          x_t: Noised data.
          t: Steps, 0 <= t < T.
          noise: The noise in `x_t`.
        """
        predicted, between = jnp.split(output, 2, -1)
        error = jnp.mean(jnp.square(noise - predicted), -1)
        chain = self.chain(np.arange(self.steps))
        mean, log_variance = chain.backward(jax.lax.stop_gradient(predicted), between, x_t, t)
        true_mean, true_log_variance = chain.posterior(x, x_t, t)
        divergence = jnp.mean(_normal_kl(true_mean, true_log_variance, mean, log_variance), -1)
        likelihood = -jnp.mean(_bin_log_likelihood(x, mean, 0.5 * log_variance), -1)
        bound = jnp.where(t == 0, likelihood, divergence) / math.log(2)
        return error + bound

    def respaced(self, steps: int) -> "Chain":
        """Returns the chain of `steps` evenly spaced steps, including the first and the last.

        Raises:
          ValueError: `steps` is below 1 or above T.
        """
        if not 1 <= steps <= self.steps:
            raise ValueError(f"The diffusion has 1 to {self.steps} steps, not {steps}.")
        stride = (self.steps - 1) / (steps - 1) if steps > 1 else 1.0
        # Accumulated, then rounded half to even, as in the release: a product rounds differently.
        places, place = [], 0.0
        for _ in range(steps):
            places.append(round(place))
            place += stride
        return self.chain(np.array(places))

    def chain(self, steps: np.ndarray) -> "Chain":
        """Returns the chain of these steps only, in ascending order."""
        a = self.products[steps]
        betas = 1 - a / np.append(1.0, a[:-1])
        return Chain(betas, steps)


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """The sampling steps of a diffusion.

    Attributes:
      betas: (s,) float64 betas of this chain's steps.
      steps: (s,) numbers of these steps in training.
    """

    betas: np.ndarray
    steps: np.ndarray

    @functools.cached_property
    def products(self) -> np.ndarray:
        """(s,) a_t."""
        return np.cumprod(1 - self.betas)

    @functools.cached_property
    def _before(self) -> np.ndarray:
        return np.append(1.0, self.products[:-1])

    @functools.cached_property
    def _log_variance(self) -> np.ndarray:
        """(s,) log b_t; step 0, where it is minus infinity, uses the value of step 1."""
        variance = self.betas * (1 - self._before) / (1 - self.products)
        first = variance[1] if len(variance) > 1 else self.betas[0]
        return np.log(np.append(first, variance[1:]))

    def posterior(self, x: Array, x_t: Array, t: Any) -> tuple[Array, Array]:
        """Returns mean and log variance of (2) at step t of this chain."""
        rest = 1 - self.products
        first = _at(self.betas * np.sqrt(self._before) / rest, t)
        second = _at((1 - self._before) * np.sqrt(1 - self.betas) / rest, t)
        return first * x + second * x_t, _at(self._log_variance, t)

    def backward(
        self, noise: Array, between: Array, x_t: Array, t: Any, clip: float = 0.0
    ) -> tuple[Array, Array]:
        """Returns mean and log variance of p(x_{t-1} | x_t), by (2) and (3).

        Args:
          noise: Predicted noise.
          between: 2 v - 1 of (3), the interpolation of the log variance.
          x_t: Noised data.
          t: Step of this chain.
          clip: Bound on the data implied by the noise; 0 for none.
        """
        inverse = _at(np.sqrt(1 / self.products), t)
        x = inverse * x_t - _at(np.sqrt(1 / self.products - 1), t) * noise
        if clip:
            x = jnp.clip(x, -clip, clip)
        mean, low = self.posterior(x, x_t, t)
        share = (between + 1) / 2
        return mean, share * _at(np.log(self.betas), t) + (1 - share) * low

    def sample(
        self, network: Any, noise: Any, temperature: float = 1.0, clip: float = 0.0
    ) -> Float[Array, "..."]:
        """Returns data drawn by ancestral sampling.

        Args:
          network: network(x_t, training step) -> predicted noise, then 2 v - 1 of (3).
          noise: noise(0) is the initial state; noise(1), ... are the noise of the steps.
          temperature: Factor on the noise of the steps.
          clip: Bound on predicted data; 0 for none.
        """
        count, numbers = len(self.steps), jnp.asarray(self.steps)

        def step(x, i):
            t = count - 1 - i
            predicted, between = jnp.split(network(x, numbers[t]), 2, -1)
            mean, log_variance = self.backward(predicted, between, x, t, clip)
            amount = jnp.where(t > 0, temperature, 0.0) * jnp.exp(0.5 * log_variance)
            return mean + amount * noise(1 + i), None

        return jax.lax.scan(step, noise(0), jnp.arange(count))[0]


def _at(table: np.ndarray, t: Any) -> Array:
    """Returns the table's entries at t, float32, shaped to broadcast against (..., c)."""
    return jnp.asarray(table, jnp.float32)[t][..., None]


def _normal_kl(mean: Array, log_variance: Array, mean_2: Array, log_variance_2: Array) -> Array:
    """Returns KL(first || second) of two normal distributions, in nats."""
    square = jnp.square(mean - mean_2) * jnp.exp(-log_variance_2)
    return 0.5 * (
        -1 + log_variance_2 - log_variance + jnp.exp(log_variance - log_variance_2) + square
    )


def _bin_log_likelihood(x: Array, mean: Array, log_deviation: Array) -> Array:
    """Returns the normal log probability of the bin [x - 1 / 255, x + 1 / 255].

    The bins of x beyond -0.999 and 0.999 extend to infinity. The normal CDF is the tanh
    approximation of GELU, as in the release.
    """

    def below(y):
        return 0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))

    inverse = jnp.exp(-log_deviation)
    upper, lower = below(inverse * (x - mean + 1 / 255)), below(inverse * (x - mean - 1 / 255))
    inside = jnp.where(x < -0.999, upper, jnp.where(x > 0.999, 1 - lower, upper - lower))
    return jnp.log(jnp.maximum(inside, 1e-12))
