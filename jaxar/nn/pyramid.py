"""Encoder and decoder of convolutional autoencoders: levels of residual blocks, each half the size.

Level 0 has the size of the image, level i is 2^i times smaller. The height and width of images must
be multiples of 2^(levels - 1).
Source: CompVis/latent-diffusion ldm/modules/diffusionmodules/model.py `Encoder`, `Decoder`, as in
LTH14/mar models/vae.py; VAR's VQVAE is of the same family.
"""

from collections.abc import Callable, Sequence

import jax

from jaxar.checks import require, sizes, whole
from jaxar.nn.conv import Conv, Downsample, GroupNorm, ResidualBlock, SpatialAttention, Upsample
from jaxar.nn.layers import split_or_none
from jaxar.nn.module import Module, Series
from jaxar.typing import Array, Float


class Level(Module):
    """Residual blocks of one width, each optionally followed by attention, then a resampling."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        blocks: int,
        *,
        attention: bool,
        resample: Callable[..., Module] | None,
        key: Array,
    ):
        """Makes the level; `resample(channels, key=key)` makes the layer after the blocks."""
        last, *keys = jax.random.split(key, 1 + 2 * blocks)
        widths = [inputs] + [outputs] * blocks
        self.blocks = Series(
            ResidualBlock(widths[i], outputs, key=keys[2 * i]) for i in range(blocks)
        )
        self.attentions = Series(
            SpatialAttention(outputs, key=keys[2 * i + 1])
            for i in range(blocks if attention else 0)
        )
        self.resample = resample(outputs, key=last) if resample else None

    def __call__(
        self, x: Float[Array, "b h w c"], rate: float = 0.0, key: Array | None = None
    ) -> Float[Array, "b h2 w2 d"]:
        """Returns the output of the level, with dropout if a key is given."""
        attentions = [*self.attentions] or [None] * len(self.blocks)
        keys = split_or_none(key, len(self.blocks))
        for block, attention, key in zip(self.blocks, attentions, keys, strict=True):
            x = block(x, rate, key)
            x = x if attention is None else attention(x)
        return x if self.resample is None else self.resample(x)


class Middle(Module):
    """Two residual blocks with attention between them, at the smallest level."""

    def __init__(self, channels: int, *, key: Array):
        """Makes the three layers."""
        before, attention, after = jax.random.split(key, 3)
        self.before = ResidualBlock(channels, channels, key=before)
        self.attention = SpatialAttention(channels, key=attention)
        self.after = ResidualBlock(channels, channels, key=after)

    def __call__(
        self, x: Float[Array, "b h w c"], rate: float = 0.0, key: Array | None = None
    ) -> Float[Array, "b h w c"]:
        """Returns the output, with dropout if a key is given."""
        first, second = split_or_none(key, 2)
        return self.after(self.attention(self.before(x, rate, first)), rate, second)


class Encoder(Module):
    """Maps an image to a feature map of the smallest level."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        attention: Sequence[int] = (),
        dropout: float = 0.0,
        key: Array,
    ):
        """Makes the encoder.

        Args:
          inputs: Channels of an image.
          outputs: Channels of the output.
          width: Channels of the first convolution.
          multipliers: Level i has width x multipliers[i] channels.
          blocks: Residual blocks per level.
          attention: Levels with attention after each block.
          dropout: Dropout rate inside residual blocks if a key is given.
          key: Randomness of the initial values.

        Raises:
          ValueError: there are no levels or blocks, or `attention` names a missing level.
        """
        check_levels(multipliers, blocks, attention)
        first, last, middle, *keys = jax.random.split(key, 3 + len(multipliers))
        widths = [width, *(width * m for m in multipliers)]
        smallest = len(multipliers) - 1
        self.dropout = dropout
        self.first = Conv(inputs, width, key=first)
        self.levels = Series(
            Level(
                widths[i],
                widths[i + 1],
                blocks,
                attention=i in attention,
                resample=Downsample if i < smallest else None,
                key=keys[i],
            )
            for i in range(len(multipliers))
        )
        self.middle = Middle(widths[-1], key=middle)
        self.last_norm = GroupNorm(widths[-1])
        self.last = Conv(widths[-1], outputs, key=last)

    def __call__(
        self, x: Float[Array, "b h w c"], key: Array | None = None
    ) -> Float[Array, "b h2 w2 d"]:
        """Returns the feature map of the smallest level, with dropout if a key is given."""
        middle, *keys = split_or_none(key, 1 + len(self.levels))
        x = self.first(x)
        for level, key in zip(self.levels, keys, strict=True):
            x = level(x, self.dropout, key)
        x = self.middle(x, self.dropout, middle)
        return self.last(jax.nn.silu(self.last_norm(x)))


class Decoder(Module):
    """Maps the smallest level to an image, with one block more per level than the encoder."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        attention: Sequence[int] = (),
        dropout: float = 0.0,
        key: Array,
    ):
        """Makes the decoder; the arguments equal those of its encoder.

        Args:
          inputs: Channels of the smallest level.
          outputs: Channels of an image.
          width: Level i has width x multipliers[i] channels.
          multipliers: See `width`; from the level of the image to the smallest.
          blocks: Residual blocks per level minus one: the number in the encoder.
          attention: Levels with attention after each block.
          dropout: Dropout rate inside residual blocks if a key is given.
          key: Randomness of the initial values.

        Raises:
          ValueError: there are no levels or blocks, or `attention` names a missing level.
        """
        check_levels(multipliers, blocks, attention)
        first, last, middle, *keys = jax.random.split(key, 3 + len(multipliers))
        widths = [width * m for m in multipliers]
        widths.append(widths[-1])  # input channels of the smallest level
        self.dropout = dropout
        self.first = Conv(inputs, widths[-1], key=first)
        self.middle = Middle(widths[-1], key=middle)
        self.levels = Series(
            Level(
                widths[i + 1],
                widths[i],
                blocks + 1,
                attention=i in attention,
                resample=Upsample if i else None,
                key=keys[i],
            )
            for i in range(len(multipliers))
        )
        self.last_norm = GroupNorm(widths[0])
        self.last = Conv(widths[0], outputs, key=last)

    def features(
        self, x: Float[Array, "b h w c"], key: Array | None = None
    ) -> Float[Array, "b h2 w2 d"]:
        """Returns the input of the last convolution, with dropout if a key is given."""
        middle, *keys = split_or_none(key, 1 + len(self.levels))
        x = self.middle(self.first(x), self.dropout, middle)
        for level, key in zip(reversed([*self.levels]), keys, strict=True):
            x = level(x, self.dropout, key)
        return jax.nn.silu(self.last_norm(x))

    def __call__(
        self, x: Float[Array, "b h w c"], key: Array | None = None
    ) -> Float[Array, "b h2 w2 d"]:
        """Returns the image, with dropout if a key is given."""
        return self.last(self.features(x, key))


def check_levels(multipliers: Sequence[int], blocks: int, attention: Sequence[int]) -> None:
    """Raises ValueError unless the arguments of a pyramid are valid."""
    require(locals(), multipliers=sizes(), blocks=whole(1))
    levels = len(multipliers)
    wrong = [level for level in attention if not 0 <= level < levels]
    if wrong:
        raise ValueError(f"There is no level {wrong[0]} to attend at, only 0 to {levels - 1}.")
