"""The distance of images as a feature network sees them."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxar.core.task import Frozen
from jaxar.typing import Array, Float, Params

Features = Callable[[Array], Sequence[Array]]
"""features(images in [-1, 1]) -> maps, each (b, h, w, c), of any network with frozen weights."""


@runtime_checkable
class PerceptualNetwork(Protocol):
    """A frozen network whose maps of two images are compared."""

    @property
    def frozen(self) -> Frozen:
        """Its shapes, and who reads the file of its weights."""
        ...

    def maps(self, params: Params, images: Float[Array, "b h w c"]) -> Sequence[Array]:
        """Returns maps, each (b, h, w, c), of images in [-1, 1]."""
        ...


def no_features() -> None:
    """Returns no feature network: images are compared by their pixels alone."""


def perceptual_distance(
    features: Features, a: Float[Array, "b h w c"], b: Float[Array, "b h w c"]
) -> Float[Array, " b"]:
    """Returns the mean over maps and places of the squared distance of unit features, in [0, 4].

    LPIPS without its learned weights of channels, and with a mean over maps for its sum.
    Source: arXiv 1801.03924, equation 1.
    """
    pairs = zip(features(a), features(b), strict=True)
    return jnp.mean(jnp.stack([_distance(_unit(x), _unit(y)) for x, y in pairs]), 0)


def _unit(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Returns features of length one at each place; nothing stays nothing."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), -1, keepdims=True) + 1e-10)


def _distance(x: Float[Array, "b h w c"], y: Float[Array, "b h w c"]) -> Float[Array, " b"]:
    return jnp.mean(jnp.sum(jnp.square(x - y), -1), (1, 2))
