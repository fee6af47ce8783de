"""Cached moments of a variational autoencoder: training without pixels."""

import dataclasses

from jaxar.checks import above, require
from jaxar.core.plan import Grid
from jaxar.tokenizers import posterior
from jaxar.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class Moments:
    """Samples latents from stored Gaussians, with new noise each time a record is read.

    The data are mean and log-variance along the channels, see `jaxar.tokenizers.posterior`.
    Source: LTH14/mar engine_mar.py.

    Attributes:
      scale: Factor that scales latents to unit variance: 0.2325 for MAR's KL-16 autoencoder.
    """

    scale: float = 0.2325

    def __post_init__(self):
        require(vars(self), scale=above(0))

    def latents(self, shape: tuple[int, int, int]) -> tuple[Grid, int]:
        """Returns the grid and half the channels.

        Raises:
          ValueError: the number of channels is odd.
        """
        h, w, c = shape
        if c % 2:
            raise ValueError(f"Moments need an even number of channels, not {c}.")
        return (h, w), c // 2

    def encode(self, data: Float[Array, "b h w c"], key: Array) -> Float[Array, "b h w c2"]:
        """Returns (mean + standard deviation x noise) x scale."""
        return posterior.sample(data, key) * self.scale

    def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns the input of the autoencoder's decoder: latents divided by the scale."""
        return latents / self.scale
