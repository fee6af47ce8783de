"""Training of an autoencoder whose bottleneck is a quantizer.

    bottleneck = N quantization_weight quantization                                    (1)

N is the number of numbers in an image and "quantization" the quantizer's own loss, a mean: see
`tokenizers.residual` and `autoencoder` for the rest.
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

    Metrics are "quantization", and for level k from 1 on "usage_k", the share of the vocabulary in
    the batch, and "perplexity_k".

    Attributes:
      quantization_weight: Of the quantizer's loss beside the mean absolute difference.
      level_dropout: Share of examples that are decoded from their first levels alone, as many as a
        fair die says: then each level adds what it can, and coarse ones learn to say more.
        Source: quantizer dropout of SoundStream, arXiv 2107.03312.
    """

    quantization_weight: float = 1.0
    level_dropout: float = 0.0

    needs = "codes"

    def __post_init__(self):
        require(vars(self), level_dropout=share)
        super().__post_init__()

    def require_fits(self) -> None:
        """Returns None if images of `shape` are for the network; else raises ValueError."""
        self.network.require_fits(self.shape)

    def compress(
        self, network: VQAutoencoder, images: Array, draw: Array, encode: Array
    ) -> tuple[Array, Array, dict[str, Array]]:
        """Returns the quantized map with a gradient straight through, (1), and the use of codes."""
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
        """Returns how many levels each example is decoded from, or None for all."""
        if not self.level_dropout:
            return None
        which, few = jax.random.split(key)
        levels = len(network.quantizer.grids)
        drop = jax.random.bernoulli(which, self.level_dropout, (batch,))
        return jnp.where(drop, jax.random.randint(few, (batch,), 1, levels + 1), levels)

    def latents(self, network: VQAutoencoder, images: Array, key: Array | None) -> Array:
        """Returns what the codes of images stand for; nothing is drawn."""
        return network.quantizer.decode(network.encode(images))

    def settle(self, params: Params, seen: Array | None, key: Array) -> Params:
        """Returns the parameters with a codebook that is an average, and with dead codes restarted.

        Args:
          params: After the optimiser's update.
          seen: The features of the batch, or None where the quantizer does not settle.
          key: That of the loss.
        """
        if seen is None:
            return params
        network = bind(self.network, params["autoencoder"])
        network.quantizer.settle(seen, jax.random.fold_in(key, 1))
        return {**params, "autoencoder": params_of(network)}
