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
    """An image to the moments of a Gaussian for each latent, and latents to an image.

    The defaults are the released KL-16 autoencoder. Its code asks for attention at a resolution of
    16 in images of 256, which is level 4 whatever the image.
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
          blocks: Residual blocks of a level of the encoder; the decoder has one more.
          encoder_attention: Levels of the encoder with attention; in the decoder none has.
          channels: Numbers in a latent.
          dropout: Rate inside residual blocks in training.
          dtype: "float32", or "bfloat16" for all but parameters and norms.
          key: Randomness of the initial values.

        Raises:
          ValueError: an argument makes no sense.
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
          ValueError: the images are not of this autoencoder.
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
        """Returns what a cache keeps of images: the moments."""
        return self.moments(images)

    def decode(
        self, latents: Float[Array, "b h w c"], key: Array | None = None
    ) -> Float[Array, "b h2 w2 c2"]:
        """Returns float32 images, about in [-1, 1] and not clipped.

        Args:
          latents: Unscaled, as drawn from the moments.
          key: Randomness of dropout, or None for none.
        """
        return self.render(self.hidden(latents, key))

    def hidden(
        self, latents: Float[Array, "b h w c"], key: Array | None = None
    ) -> Float[Array, "b h2 w2 d"]:
        """Returns what the decoder's last convolution sees; see `decode`.

        Raises:
          ValueError: the latents have other channels.
        """
        if latents.shape[-1] != self.channels:
            raise ValueError(
                f"Latents must have {self.channels} channels, not {latents.shape[-1]}."
            )
        x = self.from_latents(latents.astype(DTYPES[self.dtype]))
        return self.decoder.features(x, key)

    def render(self, hidden: Float[Array, "b h w d"]) -> Float[Array, "b h w c"]:
        """Returns the images that the last convolution makes of `hidden`."""
        return self.decoder.last(hidden).astype(jnp.float32)


# Released weights: LTH14/mar. The networks are unrolled, so the table is one of words: a path of
# ours becomes the key of the release word by word, at any width, number of levels and of blocks.

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
"""Words that depend on the first one of the path."""

LOSS = ("loss.*",)
"""The discriminator and the feature network of the release's training."""

TRANSFORMS: dict[int, Transform] = {1: same, 2: same, 3: linear, 4: convolution}
"""By the axes of our leaf: biases and scales, also of one head; maps with their head; kernels."""


def rows(template: Any) -> list[Row]:
    """Returns the table for a parameter tree of arrays or shapes."""
    return [
        Row(key_of(path), path, TRANSFORMS[len(leaf.shape)])
        for path, leaf in paths(template).items()
    ]


def key_of(path: str, more: Mapping[str, str] = MappingProxyType({})) -> str:
    """Returns the key of the release for one of our paths; `more` are words beside `WORDS`."""
    words = path.split("/")
    spelling = WORDS | STACKS.get(words[0], {}) | dict(more)
    return ".".join(spelling.get(word, word) for word in words)


def from_state_dict(state: Mapping[str, Any], template: Any) -> dict[str, Any]:
    """Returns the parameters that a released state dict holds.

    Args:
      state: Arrays by key of the release.
      template: Parameter tree of the model, arrays or shapes.

    Raises:
      WeightsError: lists every unused, missing and misshapen key.
    """
    return convert(state, rows(template), template, ignore=LOSS)
