"""The diagonal Gaussian posterior of a variational autoencoder.

Moments are mean and log-variance, concatenated along the channels. They hold the encoder's raw
log-variance; every function here clips it to [-30, 20].
Source: LTH14/mar models/vae.py `DiagonalGaussianDistribution`.
"""

import jax
import jax.numpy as jnp

from jaxar.typing import Array, Float


def split(
    moments: Float[Array, "b h w c2"],
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
    """Returns mean and clipped log-variance."""
    mean, log_variance = jnp.split(moments, 2, -1)
    return mean, jnp.clip(log_variance, -30, 20)


def sample(moments: Float[Array, "b h w c2"], key: Array) -> Float[Array, "b h w c"]:
    """Returns mean + standard deviation x noise."""
    mean, log_variance = split(moments)
    return mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)


def divergence(moments: Float[Array, "b h w c2"]) -> Float[Array, " b"]:
    """Returns KL(posterior || N(0, 1)) in nats, summed over the latents of each example."""
    mean, log_variance = split(moments)
    terms = jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance
    return 0.5 * jnp.sum(terms, (1, 2, 3))
