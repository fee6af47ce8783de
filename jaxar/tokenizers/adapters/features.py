"""Cached feature maps of an autoencoder with a quantizer: taken as they are."""

import dataclasses

from jaxar.core.plan import Grid
from jaxar.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class FeatureMap:
    """Data are what the quantizer was made for; it turns them into codes."""

    def latents(self, shape: tuple[int, int, int]) -> tuple[Grid, int]:
        """Returns grid and channels of the data."""
        h, w, c = shape
        return (h, w), c

    def encode(self, data: Float[Array, "b h w c"], key: Array) -> Float[Array, "b h w c"]:
        """Returns the data."""
        return data

    def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns the latents, as the autoencoder's decoder takes them."""
        return latents
