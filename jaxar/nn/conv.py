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
"""Zero padding: ((above, below), (left, right))."""

GROUPS = 32


def fan_in_uniform(key: Array, inputs: int, outputs: int) -> Array:
    """Returns (inputs, outputs), uniform within 1 / sqrt(inputs): PyTorch's initializer."""
    bound = 1 / math.sqrt(inputs)
    return jax.random.uniform(key, (inputs, outputs), minval=-bound, maxval=bound)


def affine_uniform(key: Array, inputs: int, outputs: int) -> Array:
    """Returns (inputs + 1, outputs): a kernel as of `fan_in_uniform`, and a last row of biases.

    PyTorch draws both from the same distribution. One draw for both leaves a third of the random
    operations, whose unrolled rounds dominate compilation when a network is initialized.
    """
    bound = 1 / math.sqrt(inputs)
    return jax.random.uniform(key, (inputs + 1, outputs), minval=-bound, maxval=bound)


def convolve(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "i j c d"],
    stride: int = 1,
    padding: Padding | None = None,
) -> Float[Array, "b h2 w2 d"]:
    """Returns the convolution of x; the default padding is half the kernel on all sides.

    With the default, an odd kernel at stride 1 keeps height and width.
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
        """Takes kernel and bias from `init(key, fan-in, outputs)` of shape (fan-in + 1, outputs).

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
    """Group norm, over space and the channels of a group, with a learned scale and bias."""

    epsilon = 1e-6

    def __init__(self, channels: int, groups: int | None = None):
        """Initializes the scale to one and the bias to zero; `groups_of` gives the default groups.

        Raises:
          ValueError: the groups do not divide the channels.
        """
        self.groups = groups_of(channels) if groups is None else groups
        if self.groups < 1 or channels % self.groups:
            raise ValueError(f"{self.groups} groups do not divide {channels} channels.")
        self.scale = Param(jnp.ones(channels))
        self.bias = Param(jnp.zeros(channels))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns the normalised input times the scale, plus the bias, computed in float32."""
        b, h, w, c = x.shape
        y = x.astype(jnp.float32).reshape(b, h * w, self.groups, c // self.groups)
        y = y - jnp.mean(y, (1, 3), keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), (1, 3), keepdims=True) + self.epsilon)
        return (y.reshape(x.shape) * self.scale[...] + self.bias[...]).astype(x.dtype)


def groups_of(channels: int) -> int:
    """Returns the number of groups: 32 if it divides the channels, as in the released networks.

    Otherwise it is the largest power of two, at most 32, that divides the channels into groups of
    at least four, or 1. Small groups would remove the contrast between channels.
    """
    if channels % GROUPS == 0:
        return GROUPS
    groups = math.gcd(channels, GROUPS)
    while groups > 1 and channels < 4 * groups:
        groups //= 2
    return groups


class ResidualBlock(Module):
    """A residual block: x + conv(dropout(silu(norm(conv(silu(norm(x))))))).

    If the widths differ, a 1 x 1 convolution maps x before the sum.
    """

    def __init__(self, inputs: int, outputs: int, *, key: Array):
        """Makes two 3 x 3 convolutions, and the shortcut if the widths differ."""
        first, second, short = jax.random.split(key, 3)
        self.norm_1 = GroupNorm(inputs)
        self.conv_1 = Conv(inputs, outputs, key=first)
        self.norm_2 = GroupNorm(outputs)
        self.conv_2 = Conv(outputs, outputs, key=second)
        self.shortcut = None if inputs == outputs else Conv(inputs, outputs, 1, key=short)

    def __call__(
        self, x: Float[Array, "b h w c"], rate: float = 0.0, key: Array | None = None
    ) -> Float[Array, "b h w d"]:
        """Returns the block's output, with dropout if a key is given."""
        y = self.conv_1(jax.nn.silu(self.norm_1(x)))
        y = self.conv_2(dropout(jax.nn.silu(self.norm_2(y)), rate, key))
        return (x if self.shortcut is None else self.shortcut(x)) + y


class SpatialAttention(Module):
    """Residual attention over all pixels with one head: x + attention(norm(x))."""

    def __init__(self, channels: int, *, key: Array):
        """Makes the projections to query, key and value, and the output projection."""
        q, k, v, project = jax.random.split(key, 4)
        self.norm = GroupNorm(channels)
        self.q = Linear(channels, (1, channels), key=q, init=fan_in_uniform)
        self.k = Linear(channels, (1, channels), key=k, init=fan_in_uniform)
        self.v = Linear(channels, (1, channels), key=v, init=fan_in_uniform)
        self.project = Linear((1, channels), channels, key=project, init=fan_in_uniform)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns x plus the attention's output."""
        b, h, w, c = x.shape
        y = self.norm(x).reshape(b, h * w, c)
        y = self.project(attend(self.q(y), self.k(y), self.v(y)))
        return x + y.reshape(b, h, w, c)


class Downsample(Module):
    """Halves height and width by a convolution of stride 2, padded only below and right."""

    def __init__(self, channels: int, *, key: Array):
        """Makes the 3 x 3 convolution."""
        self.conv = Conv(channels, channels, stride=2, padding=((0, 1), (0, 1)), key=key)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Returns (b, h / 2, w / 2, c), for even h and w."""
        return self.conv(x)


class Upsample(Module):
    """Doubles height and width: repeats each pixel, then applies a convolution."""

    def __init__(self, channels: int, *, key: Array):
        """Makes the 3 x 3 convolution."""
        self.conv = Conv(channels, channels, key=key)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Returns (b, 2 h, 2 w, c)."""
        return self.conv(jnp.repeat(jnp.repeat(x, 2, 1), 2, 2))
