"""Cached feature maps of an autoencoder with a quantizer, passed through unchanged."""

import dataclasses

from jaxar.core.plan import Grid
from jaxar.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class FeatureMap:
    """The data are encoder features, which the quantizer turns into codes."""

    def latents(self, shape: tuple[int, int, int]) -> tuple[Grid, int]:
        """Returns grid and channels of the data."""
        h, w, c = shape
        return (h, w), c

    def encode(self, data: Float[Array, "b h w c"], key: Array) -> Float[Array, "b h w c"]:
        """Returns the data."""
        return data

    def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns the latents, the input of the autoencoder's decoder."""
        return latents
