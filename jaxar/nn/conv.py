"""Layers of convolutional autoencoders, channels last.

Parameters are float32. Every layer computes in the dtype of its input, norms in float32.
Source: CompVis/latent-diffusion ldm/modules/diffusionmodules/model.py, the layers behind the
autoencoders of MAR (KL-16) and VAR.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxar.nn.attention import attend
from jaxar.nn.dropout import dropout
from jaxar.nn.layers import Linear
from jaxar.nn.module import Module, Param
from jaxar.typing import Array, Float

Padding = tuple[tuple[int, int], tuple[int, int]]
"""Zeros added: ((above, below), (left, right))."""

GROUPS = 32


def fan_in_uniform(key: Array, inputs: int, outputs: int) -> Array:
    """Returns an (inputs, outputs) matrix, uniform within 1 / sqrt(inputs): PyTorch's law."""
    bound = 1 / math.sqrt(inputs)
    return jax.random.uniform(key, (inputs, outputs), minval=-bound, maxval=bound)


def affine_uniform(key: Array, inputs: int, outputs: int) -> Array:
    """Returns a kernel by `fan_in_uniform` and below it a bias: (inputs + 1, outputs).

    PyTorch gives both one law. One draw for the two makes a third of the random operations, whose
    unrolled rounds are nearly all there is to compile when a network is made.
    """
    bound = 1 / math.sqrt(inputs)
    return jax.random.uniform(key, (inputs + 1, outputs), minval=-bound, maxval=bound)


def convolve(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "i j c d"],
    stride: int = 1,
    padding: Padding | None = None,
) -> Float[Array, "b h2 w2 d"]:
    """Returns the convolution of x; without a padding, half the kernel on all sides.

    At stride 1 an odd kernel then keeps height and width.
    """
    if padding is None:
        above, left = kernel.shape[0] // 2, kernel.shape[1] // 2
        padding = ((above, above), (left, left))
    return jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


class Conv(Module):
    """A convolution with a square kernel of shape (size, size, inputs, outputs) and a bias."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int = 3,
        *,
        stride: int = 1,
        padding: Padding | None = None,
        bias: bool = True,
        init: Callable[[Array, int, int], Array] = affine_uniform,
        key: Array,
    ):
        """Takes kernel and bias from the (fan-in + 1, outputs) numbers of `init(key, fan-in, ...)`.

        See `convolve` for the padding.
        """
        drawn = init(key, size * size * inputs, outputs)
        self.stride, self.padding = stride, padding
        self.kernel = Param(drawn[:-1].reshape(size, size, inputs, outputs))
        self.bias = Param(drawn[-1]) if bias else None

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """Returns the convolution plus the bias."""
        y = convolve(x, self.kernel[...], self.stride, self.padding)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class GroupNorm(Module):
    """Norm over space and the channels of a group, with a learned scale and bias."""

    epsilon = 1e-6

    def __init__(self, channels: int, groups: int | None = None):
        """Starts at scale one and bias zero; see `groups_of` where no `groups` are given.

        Raises:
          ValueError: the groups do not divide the channels.
        """
        self.groups = groups_of(channels) if groups is None else groups
        if self.groups < 1 or channels % self.groups:
            raise ValueError(f"{self.groups} groups do not divide {channels} channels.")
        self.scale = Param(jnp.ones(channels))
        self.bias = Param(jnp.zeros(channels))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns the normalised input times the scale plus the bias, computed in float32."""
        b, h, w, c = x.shape
        y = x.astype(jnp.float32).reshape(b, h * w, self.groups, c // self.groups)
        y = y - jnp.mean(y, (1, 3), keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), (1, 3), keepdims=True) + self.epsilon)
        return (y.reshape(x.shape) * self.scale[...] + self.bias[...]).astype(x.dtype)


def groups_of(channels: int) -> int:
    """Returns 32, as the released networks, where that divides the channels.

    Elsewhere the largest power of two that leaves at least four channels in a group, or one group:
    a channel that is normalised alone loses its contrast with the others.
    """
    if channels % GROUPS == 0:
        return GROUPS
    groups = math.gcd(channels, GROUPS)
    while groups > 1 and channels < 4 * groups:
        groups //= 2
    return groups


class ResidualBlock(Module):
    """x + conv(dropout(silu(norm(conv(silu(norm(x))))))).

    Where the widths differ, a convolution of one pixel stands before the sum.
    """

    def __init__(self, inputs: int, outputs: int, *, key: Array):
        """Makes two convolutions of 3 x 3, and the shortcut where it is needed."""
        first, second, short = jax.random.split(key, 3)
        self.norm_1 = GroupNorm(inputs)
        self.conv_1 = Conv(inputs, outputs, key=first)
        self.norm_2 = GroupNorm(outputs)
        self.conv_2 = Conv(outputs, outputs, key=second)
        self.shortcut = None if inputs == outputs else Conv(inputs, outputs, 1, key=short)

    def __call__(
        self, x: Float[Array, "b h w c"], rate: float = 0.0, key: Array | None = None
    ) -> Float[Array, "b h w d"]:
        """Returns the sum, with dropout where a key is given."""
        y = self.conv_1(jax.nn.silu(self.norm_1(x)))
        y = self.conv_2(dropout(jax.nn.silu(self.norm_2(y)), rate, key))
        return (x if self.shortcut is None else self.shortcut(x)) + y


class SpatialAttention(Module):
    """x + attention over all pixels of norm(x), with one head."""

    def __init__(self, channels: int, *, key: Array):
        """Makes maps to query, key and value, and the output projection."""
        q, k, v, project = jax.random.split(key, 4)
        self.norm = GroupNorm(channels)
        self.q = Linear(channels, (1, channels), key=q, init=fan_in_uniform)
        self.k = Linear(channels, (1, channels), key=k, init=fan_in_uniform)
        self.v = Linear(channels, (1, channels), key=v, init=fan_in_uniform)
        self.project = Linear((1, channels), channels, key=project, init=fan_in_uniform)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns the sum."""
        b, h, w, c = x.shape
        y = self.norm(x).reshape(b, h * w, c)
        y = self.project(attend(self.q(y), self.k(y), self.v(y)))
        return x + y.reshape(b, h, w, c)


class Downsample(Module):
    """Half the height and width: a convolution of stride 2, padded below and right alone."""

    def __init__(self, channels: int, *, key: Array):
        """Makes the convolution of 3 x 3."""
        self.conv = Conv(channels, channels, stride=2, padding=((0, 1), (0, 1)), key=key)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Returns (b, h / 2, w / 2, c), for even h and w."""
        return self.conv(x)


class Upsample(Module):
    """Twice the height and width: each pixel repeated, then a convolution."""

    def __init__(self, channels: int, *, key: Array):
        """Makes the convolution of 3 x 3."""
        self.conv = Conv(channels, channels, key=key)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Returns (b, 2 h, 2 w, c)."""
        return self.conv(jnp.repeat(jnp.repeat(x, 2, 1), 2, 2))
