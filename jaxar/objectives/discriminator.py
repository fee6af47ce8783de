"""The discriminator of adversarial autoencoders, and the adversarial losses."""

import jax
import jax.numpy as jnp

from jaxar.nn.conv import Conv, GroupNorm
from jaxar.nn.module import Module, Series
from jaxar.typing import Array, Float

SIZE = 4
SLOPE = 0.2
PADDING = ((1, 1), (1, 1))


def small_normal(key: Array, inputs: int, outputs: int) -> Array:
    """Returns (inputs + 1, outputs): a kernel from N(0, 0.02^2), and a last row of zero biases."""
    return jnp.pad(0.02 * jax.random.normal(key, (inputs, outputs)), ((0, 1), (0, 0)))


class PatchDiscriminator(Module):
    """PatchGAN: a logit for each overlapping patch of an image, above 0 for real.

    The release uses batch norm; group norm makes an example's logits independent of the batch and
    of the devices it is sharded over.
    Source: CompVis/taming-transformers taming/modules/discriminator/model.py `NLayerDiscriminator`;
    arXiv 1611.07004.
    """

    def __init__(self, channels: int, *, width: int = 64, layers: int = 3, key: Array):
        """Makes `layers` convolutions that halve the image, and two that do not.

        Args:
          channels: Channels of an image.
          width: Channels of the first layer; each next one has twice as many, up to 8 x `width`.
          layers: How many times the image is halved.
          key: Randomness of the initial values.
        """
        first, last, *keys = jax.random.split(key, 2 + layers)
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        self.layers = layers
        self.first = _conv(channels, width, stride=2, key=first)
        self.convs = Series(
            _conv(widths[i], widths[i + 1], stride=2 if i < layers - 1 else 1, bias=False, key=key)
            for i, key in enumerate(keys)
        )
        self.norms = Series(GroupNorm(width) for width in widths[1:])
        self.last = _conv(widths[-1], 1, stride=1, key=last)

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 1"]:
        """Returns the logits of all patches.

        Raises:
          ValueError: the images are too small for a single patch.
        """
        _, h, w, _ = images.shape
        smallest = 3 * 2**self.layers
        if min(h, w) < smallest:
            raise ValueError(
                f"Images of {h} x {w} are too small for a discriminator of {self.layers} layers, "
                f"which needs {smallest} x {smallest}."
            )
        x = jax.nn.leaky_relu(self.first(images), SLOPE)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = jax.nn.leaky_relu(norm(conv(x)), SLOPE)
        return self.last(x)


def generator_loss(made: Float[Array, "..."]) -> Float[Array, ""]:
    """Returns minus the mean logit of generated images: low where they are classified as real."""
    return -jnp.mean(made)


def discriminator_loss(real: Float[Array, "..."], made: Float[Array, "..."]) -> Float[Array, ""]:
    """Returns the hinge loss of the logits of real and generated images; 1 if all are 0."""
    return 0.5 * (jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + made)))


def _conv(inputs: int, outputs: int, *, stride: int, bias: bool = True, key: Array) -> Conv:
    return Conv(
        inputs,
        outputs,
        SIZE,
        stride=stride,
        padding=PADDING,
        bias=bias,
        init=small_normal,
        key=key,
    )
