"""Training of an autoencoder whose bottleneck is a Gaussian for each latent.

    bottleneck = kl_weight KL                                                          (1)

KL sums over all elements of an image's latents. `autoencoder` has the rest of the loss.
"""

import dataclasses

import jax.numpy as jnp

from jaxar.objectives.autoencoder import Autoencoding
from jaxar.tokenizers import posterior
from jaxar.tokenizers.autoencoders.kl import KLAutoencoder
from jaxar.typing import Array


@dataclasses.dataclass(frozen=True, eq=False)
class VariationalAutoencoding(Autoencoding[KLAutoencoder]):
    """A KL autoencoder and its losses; the metric "kl" is in nats an image.

    Attributes:
      kl_weight: Weight of the divergence, 1e-6 in the release.
    """

    kl_weight: float = 1e-6

    needs = "posterior"

    def require_fits(self) -> None:
        """Raises ValueError unless images of `shape` fit the network."""
        self.network.latents(self.shape)

    def compress(
        self, network: KLAutoencoder, images: Array, draw: Array, encode: Array
    ) -> tuple[Array, Array, dict[str, Array]]:
        """Returns latents drawn from the posterior, (1), and the divergence."""
        moments = network.moments(images, encode)
        divergence = jnp.mean(posterior.divergence(moments))
        latents = posterior.sample(moments, draw)
        return latents, self.kl_weight * divergence, {"kl": divergence}

    def latents(self, network: KLAutoencoder, images: Array, key: Array | None) -> Array:
        """Returns the mean of the latents, or a draw with `key`."""
        moments = network.moments(images)
        return posterior.split(moments)[0] if key is None else posterior.sample(moments, key)
