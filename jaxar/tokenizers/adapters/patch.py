"""Patches of raw pixels: the tokenizer of small images."""

import dataclasses

import jax.numpy as jnp

from jaxar.checks import require, whole
from jaxar.core.plan import Grid
from jaxar.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class Patch:
    """Splits an image into patches of height x width pixels; a token is one patch.

    Attributes:
      height: Rows of a patch.
      width: Columns of a patch.
    """

    height: int = 1
    width: int = 1

    def __post_init__(self):
        require(vars(self), height=whole(1), width=whole(1))

    def latents(self, shape: tuple[int, int, int]) -> tuple[Grid, int]:
        """Returns the grid of patches and the channels of each.

        Raises:
          ValueError: the patch does not divide the image.
        """
        h, w, c = shape
        if h % self.height or w % self.width:
            raise ValueError(
                f"Patches of {self.height} x {self.width} pixels do not divide images of "
                f"{h} x {w}: choose a height that divides {h} and a width that divides {w}."
            )
        return (h // self.height, w // self.width), self.height * self.width * c

    def encode(self, data: Float[Array, "b h w c"], key: Array) -> Float[Array, "b h2 w2 c2"]:
        """Returns the patches; in each, pixels are in raster order and channels last."""
        b, h, w, c = data.shape
        (rows, columns), channels = self.latents((h, w, c))
        x = data.reshape(b, rows, self.height, columns, self.width, c)
        return x.swapaxes(2, 3).reshape(b, rows, columns, channels)

    def decode(self, latents: Float[Array, "b h2 w2 c2"]) -> Float[Array, "b h w c"]:
        """Returns the images composed of the patches, clipped to [-1, 1]."""
        b, rows, columns, _ = latents.shape
        x = latents.reshape(b, rows, columns, self.height, self.width, -1).swapaxes(2, 3)
        image = x.reshape(b, rows * self.height, columns * self.width, -1)
        return jnp.clip(image, -1, 1)
