"""The autoencoder with a discrete latent: images to levels of codes, and back."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.nn.conv import Conv
from jaxar.nn.layers import DTYPES
from jaxar.nn.module import Module
from jaxar.nn.pyramid import Decoder, Encoder
from jaxar.tokenizers.autoencoders import kl
from jaxar.tokenizers.quantizers.residual import LevelCodes, MultiScaleQuantizer
from jaxar.tokenizers.quantizers.vector import Quantizer
from jaxar.tree import paths
from jaxar.typing import Array, Float
from jaxar.weights.tables import Row, Transform, convert


class VQAutoencoder(Module):
    """An image to codes of several levels, and codes to an image.

    The defaults are VAR's tokenizer of 256 x 256 images; the last level gives the size of an image.
    Source: FoundationVision/VAR models/vqvae.py `VQVAE`, models/basic_vae.py; arXiv 2404.02905.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        *,
        levels: Sequence[int | Sequence[int]] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
        phis: int = 4,
        beta: float = 0.25,
        image_channels: int = 3,
        width: int = 160,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        blocks: int = 2,
        attention: Sequence[int] = (4,),
        dropout: float = 0.0,
        dtype: str = "float32",
        key: Array,
    ):
        """Makes the autoencoder.

        Args:
          quantizer: Of the vectors; it decides the channels.
          levels: Grids of the codes; see `MultiScaleQuantizer`, also for the next two.
          phis: How many convolutions the levels share.
          beta: Weight of the commitment.
          image_channels: Channels of an image.
          width: Channels of the first convolution.
          multipliers: Level i of the networks is 2^i times smaller than the image and has width x
            multipliers[i] channels.
          blocks: Residual blocks of a level of the encoder; the decoder has one more.
          attention: Levels with attention, in encoder and decoder.
          dropout: Rate inside residual blocks in training.
          dtype: "float32", or "bfloat16" for all but parameters, norms and the quantizer.
          key: Randomness of the initial values.

        Raises:
          ValueError: an argument makes no sense.
        """
        if dtype not in DTYPES:
            raise ValueError(f"The dtype is one of {list(DTYPES)}, not {dtype!r}.")
        if min(image_channels, width) < 1:
            raise ValueError(
                f"image_channels={image_channels} and width={width} must be at least 1."
            )
        first, second, third, to_features, from_features = jax.random.split(key, 5)
        channels = quantizer.channels
        shared: dict[str, Any] = dict(
            width=width,
            multipliers=multipliers,
            blocks=blocks,
            attention=attention,
            dropout=dropout,
        )
        self.image_channels, self.dtype = image_channels, dtype
        self.factor = 2 ** (len(multipliers) - 1)
        self.encoder = Encoder(image_channels, channels, key=first, **shared)
        self.to_features = Conv(channels, channels, key=to_features)
        self.quantizer = MultiScaleQuantizer(
            quantizer,
            levels=levels,
            phis=phis,
            beta=beta,
            key=second,
        )
        self.from_features = Conv(channels, channels, key=from_features)
        self.decoder = Decoder(channels, image_channels, key=third, **shared)

    def require_fits(self, shape: tuple[int, int, int]) -> None:
        """Returns None if images of `shape` = (h, w, c) have codes of these levels.

        Raises:
          ValueError: they have not.
        """
        h, w = (self.factor * side for side in self.quantizer.grid)
        if shape != (h, w, self.image_channels):
            raise ValueError(
                f"Images must be {(h, w, self.image_channels)}, {self.factor} times the last "
                f"level of {self.quantizer.grid}, not {shape}."
            )

    def features(
        self, images: Float[Array, "b h w c"], key: Array | None = None
    ) -> Float[Array, "b h2 w2 c2"]:
        """Returns the float32 map that is quantized.

        Args:
          images: In [-1, 1].
          key: Randomness of dropout, or None for none.

        Raises:
          ValueError: height, width or channels do not fit.
        """
        _, h, w, c = images.shape
        self.require_fits((h, w, c))
        x = self.encoder(images.astype(DTYPES[self.dtype]), key)
        return self.to_features(x).astype(jnp.float32)

    def record(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """Returns what a cache keeps of images: the features."""
        return self.features(images)

    def encode(self, images: Float[Array, "b h w c"]) -> LevelCodes:
        """Returns the codes of images in [-1, 1] by level, from coarse to fine.

        Raises:
          ValueError: see `features`.
        """
        return self.quantizer.encode(self.features(images))

    def decode(self, quantized: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """Returns images in [-1, 1] of what codes stand for, see `quantizer.decode`."""
        return jnp.clip(self.render(self.hidden(quantized)), -1, 1)

    def reconstruct(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns what the codes of images in [-1, 1] stand for, in [-1, 1].

        Raises:
          ValueError: see `features`.
        """
        return self.decode(self.quantizer.decode(self.encode(images)))

    def hidden(
        self, quantized: Float[Array, "b h w c"], key: Array | None = None
    ) -> Float[Array, "b h2 w2 d"]:
        """Returns what the decoder's last convolution sees of a quantized map.

        Args:
          quantized: What codes stand for, as the quantizer decodes them.
          key: Randomness of dropout, or None for none.
        """
        x = self.from_features(quantized.astype(DTYPES[self.dtype]))
        return self.decoder.features(x, key)

    def render(self, hidden: Float[Array, "b h w d"]) -> Float[Array, "b h w c"]:
        """Returns the float32 images that the last convolution makes of `hidden`, not clipped."""
        return self.decoder.last(hidden).astype(jnp.float32)


# Released weights: FoundationVision/VAR. The networks are spelled as those of KL-16; attention has
# its query, key and value fused, one after the other along the outputs, and the quantizer has words
# of its own.

WORDS = {"to_features": "quant_conv", "from_features": "post_quant_conv"}
"""Words of the networks that are not in `kl.WORDS`."""

CODEBOOK = ("quantizer/quantizer/codebook", "quantize.embedding.weight")
PHIS = ("quantizer/phis/", "quantize.quant_resi.qresi_ls.")
"""Beginnings of the paths and keys of the quantizer."""

FUSED = {"q": 0, "k": 1, "v": 2}
"""Which third of the fused map each of ours is."""

BUFFERS = ("quantize.ema_vocab_hit_SV",)
"""How often each code was chosen in the release's training."""


def rows(template: Any) -> list[Row]:
    """Returns the table for a parameter tree of arrays or shapes."""
    return [_row(path, len(leaf.shape)) for path, leaf in paths(template).items()]


def from_state_dict(state: Mapping[str, Any], template: Any) -> dict[str, Any]:
    """Returns the parameters that a released state dict holds.

    Args:
      state: Arrays by key of the release.
      template: Parameter tree of the model, arrays or shapes.

    Raises:
      WeightsError: lists every unused, missing and misshapen key.
    """
    return convert(state, rows(template), template, ignore=BUFFERS)


def _row(path: str, axes: int) -> Row:
    """Returns the row of one of our leaves."""
    transform = kl.TRANSFORMS[axes]
    if path == CODEBOOK[0]:
        return Row(CODEBOOK[1], path)
    if path.startswith(PHIS[0]):
        rest = path.removeprefix(PHIS[0]).replace("kernel", "weight")
        return Row(PHIS[1] + rest.replace("/", "."), path, transform)
    *before, part, leaf = path.split("/")
    if part in FUSED:
        transform = functools.partial(_third, FUSED[part], transform)
        part = "qkv"
    return Row(kl.key_of("/".join([*before, part, leaf]), WORDS), path, transform)


def _third(
    number: int, transform: Transform, array: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Returns what the transform makes of one third of the outputs.

    Raises:
      ValueError: there are no three, or the third does not fit.
    """
    if len(array) % 3:
        raise ValueError(f"{array.shape} is not three maps")
    return transform(np.split(array, 3)[number], shape)
