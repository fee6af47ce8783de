"""The perceptual distance of images: the distance of their features in a frozen network."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxar.core.task import Frozen
from jaxar.typing import Array, Float, Params

Features = Callable[[Array], Sequence[Array]]
"""features(images in [-1, 1]) -> feature maps (b, h, w, c) of a frozen network."""


@runtime_checkable
class PerceptualNetwork(Protocol):
    """A frozen network whose feature maps of two images are compared."""

    @property
    def frozen(self) -> Frozen:
        """Its parameter shapes, and the reader of its weights file."""
        ...

    def maps(self, params: Params, images: Float[Array, "b h w c"]) -> Sequence[Array]:
        """Returns feature maps, each (b, h, w, c), of images in [-1, 1]."""
        ...


def no_features() -> None:
    """Returns None, for no feature network: images are compared by pixels only."""


def perceptual_distance(
    features: Features, a: Float[Array, "b h w c"], b: Float[Array, "b h w c"]
) -> Float[Array, " b"]:
    """Returns the squared distance of unit features, averaged over maps and positions, in [0, 4].

    This is LPIPS without the learned channel weights, and with a mean over maps in place of a sum.
    Source: arXiv 1801.03924, equation 1.
    """
    pairs = zip(features(a), features(b), strict=True)
    return jnp.mean(jnp.stack([_distance(_unit(x), _unit(y)) for x, y in pairs]), 0)


def _unit(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Returns features of unit length at each position; zero vectors stay zero."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), -1, keepdims=True) + 1e-10)


def _distance(x: Float[Array, "b h w c"], y: Float[Array, "b h w c"]) -> Float[Array, " b"]:
    return jnp.mean(jnp.sum(jnp.square(x - y), -1), (1, 2))
