"""Training of an autoencoder whose bottleneck is a quantizer.

    bottleneck = N quantization_weight quantization                                    (1)

N is the number of elements of an image and "quantization" the quantizer's own loss, a mean (see
`tokenizers.quantizers.residual`). `autoencoder` has the rest of the loss.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxar.checks import require, share
from jaxar.nn.module import bind, params_of
from jaxar.objectives.autoencoder import Autoencoding
from jaxar.tokenizers.autoencoders.vq import VQAutoencoder
from jaxar.tokenizers.quantizers.vector import perplexity, usage
from jaxar.typing import Array, Params


@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedAutoencoding(Autoencoding[VQAutoencoder]):
    """A VQ autoencoder and its losses.

    Metrics are "quantization" and, for levels k = 1, 2, ..., "usage_k", the fraction of the
    vocabulary used in the batch, and "perplexity_k".

    Attributes:
      quantization_weight: Weight of the quantizer's loss relative to the mean absolute difference.
      level_dropout: Fraction of examples decoded from their first levels only. Their number of
        levels is uniform, so coarse levels learn to carry more.
        Source: quantizer dropout of SoundStream, arXiv 2107.03312.
    """

    quantization_weight: float = 1.0
    level_dropout: float = 0.0

    needs = "codes"

    def __post_init__(self):
        require(vars(self), level_dropout=share)
        super().__post_init__()

    def require_fits(self) -> None:
        """Raises ValueError unless images of `shape` fit the network."""
        self.network.require_fits(self.shape)

    def compress(
        self, network: VQAutoencoder, images: Array, draw: Array, encode: Array
    ) -> tuple[Array, Array, dict[str, Array]]:
        """Returns the quantized map with a straight-through gradient, (1), and code usage."""
        features = network.features(images, encode)
        codes, quantized, loss = network.quantizer.quantize(
            features, self._levels(network, draw, len(images))
        )
        vocabulary, metrics = network.quantizer.vocabulary, {"quantization": loss}
        if network.quantizer.quantizer.settles:
            metrics["seen"] = features
        for level, own in enumerate(codes, 1):
            metrics[f"usage_{level}"] = usage(own, vocabulary)
            metrics[f"perplexity_{level}"] = perplexity(own, vocabulary)
        return quantized, self._numbers * self.quantization_weight * loss, metrics

    def _levels(self, network: VQAutoencoder, key: Array, batch: int) -> Array | None:
        """Returns the number of levels each example is decoded from, or None for all."""
        if not self.level_dropout:
            return None
        which, few = jax.random.split(key)
        levels = len(network.quantizer.grids)
        drop = jax.random.bernoulli(which, self.level_dropout, (batch,))
        return jnp.where(drop, jax.random.randint(few, (batch,), 1, levels + 1), levels)

    def latents(self, network: VQAutoencoder, images: Array, key: Array | None) -> Array:
        """Returns the quantized map of the images; `key` is not used."""
        return network.quantizer.decode(network.encode(images))

    def settle(self, params: Params, seen: Array | None, key: Array) -> Params:
        """Returns the parameters with the averaged codebook updated and dead codes restarted.

        Args:
          params: Parameters after the optimiser's update.
          seen: Features of the batch, or None if the quantizer does not settle.
          key: The key that the loss used.
        """
        if seen is None:
            return params
        network = bind(self.network, params["autoencoder"])
        network.quantizer.settle(seen, jax.random.fold_in(key, 1))
        return {**params, "autoencoder": params_of(network)}
