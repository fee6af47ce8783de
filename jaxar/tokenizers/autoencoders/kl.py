"""The variational autoencoder behind the latents of MAR and xAR."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from jaxar.checks import below_one, one_of, require, sizes, whole
from jaxar.nn.conv import Conv
from jaxar.nn.layers import DTYPES
from jaxar.nn.module import Module
from jaxar.nn.pyramid import Decoder, Encoder
from jaxar.tree import paths
from jaxar.typing import Array, Float
from jaxar.weights.tables import Row, Transform, convert, convolution, linear, same


class KLAutoencoder(Module):
    """A variational autoencoder: images to moments of Gaussian latents, and latents to images.

    The defaults are the released KL-16 autoencoder. Its code sets attention at resolution 16 of
    images of 256, which is level 4 for any image size.
    Source: LTH14/mar models/vae.py `AutoencoderKL`; arXiv 2112.10752.
    """

    offers = "posterior"

    def __init__(
        self,
        *,
        image_channels: int = 3,
        width: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        blocks: int = 2,
        encoder_attention: Sequence[int] = (4,),
        channels: int = 16,
        dropout: float = 0.0,
        dtype: str = "float32",
        key: Array,
    ):
        """Makes the autoencoder.

        Args:
          image_channels: Channels of an image.
          width: Channels of the first convolution.
          multipliers: Level i is 2^i times smaller and has width x multipliers[i] channels.
          blocks: Residual blocks per level of the encoder; the decoder has one more.
          encoder_attention: Encoder levels with attention; the decoder levels have none.
          channels: Channels of a latent.
          dropout: Dropout rate inside residual blocks in training.
          dtype: "float32", or "bfloat16" for all but parameters and norms.
          key: Randomness of the initial values.

        Raises:
          ValueError: an argument is invalid.
        """
        require(
            locals(),
            image_channels=whole(1),
            width=whole(1),
            multipliers=sizes(),
            blocks=whole(1),
            channels=whole(1),
            dropout=below_one,
            dtype=one_of(*DTYPES),
        )
        encoder, decoder, moments, latents = jax.random.split(key, 4)
        shared: dict[str, Any] = dict(
            width=width, multipliers=multipliers, blocks=blocks, dropout=dropout
        )
        self.image_channels, self.channels, self.dtype = image_channels, channels, dtype
        self.factor = 2 ** (len(multipliers) - 1)
        self.encoder = Encoder(
            image_channels, 2 * channels, attention=encoder_attention, key=encoder, **shared
        )
        self.to_moments = Conv(2 * channels, 2 * channels, 1, key=moments)
        self.from_latents = Conv(channels, channels, 1, key=latents)
        self.decoder = Decoder(channels, image_channels, key=decoder, **shared)

    def latents(self, shape: tuple[int, int, int]) -> tuple[tuple[int, int], int]:
        """Returns the grid and the channels of the latents of images of `shape` = (h, w, c).

        Raises:
          ValueError: the images do not fit this autoencoder.
        """
        h, w, c = shape
        if c != self.image_channels:
            raise ValueError(f"Images must have {self.image_channels} channels, not {c}.")
        if h % self.factor or w % self.factor or not h * w:
            raise ValueError(
                f"Images of {h} x {w} do not fit: height and width must be multiples of "
                f"{self.factor}."
            )
        return (h // self.factor, w // self.factor), self.channels

    def moments(
        self, images: Float[Array, "b h w c"], key: Array | None = None
    ) -> Float[Array, "b h2 w2 c2"]:
        """Returns float32 mean, then log-variance, along the channels; see `posterior`.

        Args:
          images: In [-1, 1], (b, h, w, c); the moments are `factor` times smaller.
          key: Randomness of dropout, or None for none.

        Raises:
          ValueError: height, width or channels do not fit.
        """
        _, h, w, c = images.shape
        self.latents((h, w, c))
        x = self.encoder(images.astype(DTYPES[self.dtype]), key)
        return self.to_moments(x).astype(jnp.float32)

    def record(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """Returns what a latent cache stores for images: the moments."""
        return self.moments(images)

    def decode(
        self, latents: Float[Array, "b h w c"], key: Array | None = None
    ) -> Float[Array, "b h2 w2 c2"]:
        """Returns float32 images, roughly in [-1, 1] and not clipped.

        Args:
          latents: Unscaled latents, as sampled from the moments.
          key: Randomness of dropout, or None for none.
        """
        return self.render(self.hidden(latents, key))

    def hidden(
        self, latents: Float[Array, "b h w c"], key: Array | None = None
    ) -> Float[Array, "b h2 w2 d"]:
        """Returns the input of the decoder's last convolution; see `decode`.

        Raises:
          ValueError: the latents have the wrong number of channels.
        """
        if latents.shape[-1] != self.channels:
            raise ValueError(
                f"Latents must have {self.channels} channels, not {latents.shape[-1]}."
            )
        x = self.from_latents(latents.astype(DTYPES[self.dtype]))
        return self.decoder.features(x, key)

    def render(self, hidden: Float[Array, "b h w d"]) -> Float[Array, "b h w c"]:
        """Returns the images that the last convolution computes from `hidden`."""
        return self.decoder.last(hidden).astype(jnp.float32)


# Released weights: LTH14/mar. The table translates one of our paths to the release's key word by
# word, so it holds for any width, number of levels and number of blocks.

WORDS = {
    "first": "conv_in",
    "last_norm": "norm_out",
    "last": "conv_out",
    "blocks": "block",
    "attentions": "attn",
    "norm_1": "norm1",
    "conv_1": "conv1",
    "norm_2": "norm2",
    "conv_2": "conv2",
    "shortcut": "nin_shortcut",
    "middle": "mid",
    "before": "block_1",
    "attention": "attn_1",
    "after": "block_2",
    "project": "proj_out",
    "to_moments": "quant_conv",
    "from_latents": "post_quant_conv",
    "kernel": "weight",
    "scale": "weight",
}
"""Our words that the release spells differently."""

STACKS = {
    "encoder": {"levels": "down", "resample": "downsample"},
    "decoder": {"levels": "up", "resample": "upsample"},
}
"""Words that depend on the first word of the path."""

LOSS = ("loss.*",)
"""The discriminator and the feature network of the release's training."""

TRANSFORMS: dict[int, Transform] = {1: same, 2: same, 3: linear, 4: convolution}
"""By number of axes of our leaf: 1, 2 biases and scales; 3 linear maps by head; 4 kernels."""


def rows(template: Any) -> list[Row]:
    """Returns the table for a parameter tree of arrays or shapes."""
    return [
        Row(key_of(path), path, TRANSFORMS[len(leaf.shape)])
        for path, leaf in paths(template).items()
    ]


def key_of(path: str, more: Mapping[str, str] = MappingProxyType({})) -> str:
    """Returns the key of the release for one of our paths; `more` adds words to `WORDS`."""
    words = path.split("/")
    spelling = WORDS | STACKS.get(words[0], {}) | dict(more)
    return ".".join(spelling.get(word, word) for word in words)


def from_state_dict(state: Mapping[str, Any], template: Any) -> dict[str, Any]:
    """Returns the parameters of a released state dict.

    Args:
      state: Arrays by key of the release.
      template: Parameter tree of the model, arrays or shapes.

    Raises:
      WeightsError: lists every unused, missing and misshapen key.
    """
    return convert(state, rows(template), template, ignore=LOSS)
