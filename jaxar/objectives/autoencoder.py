"""Training of an autoencoder: likelihood, bottleneck, perceptual distance and a discriminator.

With N numbers in an image x and its reconstruction y, s a learned or fixed log-variance:

    likelihood = (|x - y|_1 + N perceptual_weight d(x, y)) / exp(s) + N s             (1)
    autoencoder = (likelihood + bottleneck + adversarial_weight r g) / N              (2)
    g = -mean D(y),    r = |likelihood'| / (|g'| + 1e-4)                               (3)
    discriminator = (mean relu(1 - D(x)) + mean relu(1 + D(y))) / 2                    (4)
    loss = autoencoder + discriminator                                                (5)

A dash is the gradient with respect to the last kernel of the decoder. (4) sees y as a constant and
(2) sees D as one, so one gradient of (5) holds that of each player. All are means over the batch;
|.|_1 sums over the numbers of an image, as released, so that weights mean the same. What the
bottleneck is, and what it costs, is said by `variational` and by `quantized`. The release does not
divide (2) by N: Adam does not notice, but clipping by the norm of both gradients together would
leave (4) nothing.
Source: CompVis/latent-diffusion ldm/modules/losses/contperceptual.py `LPIPSWithDiscriminator`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.core.condition import Nothing
from jaxar.core.task import Frozen
from jaxar.nn.conv import convolve
from jaxar.nn.module import bind, params_of
from jaxar.objectives.discriminator import PatchDiscriminator, discriminator_loss, generator_loss
from jaxar.objectives.perceptual import PerceptualNetwork, perceptual_distance
from jaxar.tokenizers.autoencoders.kl import KLAutoencoder
from jaxar.tokenizers.autoencoders.vq import VQAutoencoder
from jaxar.typing import Array, Float, Params

LARGEST_RATIO = 1e4


N = TypeVar("N", KLAutoencoder, VQAutoencoder)


@dataclasses.dataclass(frozen=True, eq=False)
class Autoencoding(Generic[N]):
    """An autoencoder and its losses, as the training loop takes a system, whatever its bottleneck.

    Attributes:
      make: make(key) -> the autoencoder with initial values.
      shape: (h, w, c) of an image.
      perceptual_weight: Of the perceptual distance, 1 in the release.
      adversarial_weight: Of the generator's loss, 0.5 in the release; 0 for no discriminator.
      adversarial_start: Step at which both players of the adversarial game begin.
      learned_variance: Whether s is learned. In the release it is a parameter that no optimiser
        has: it stays 0, as here without.
      discriminator_width: Of its first layer.
      discriminator_layers: How often it halves an image.
      perceptual: Feature network of the perceptual distance.
    """

    make: Callable[[Array], N]
    shape: tuple[int, int, int]
    perceptual_weight: float = 0.0
    adversarial_weight: float = 0.0
    adversarial_start: int = 0
    learned_variance: bool = False
    discriminator_width: int = 64
    discriminator_layers: int = 3
    perceptual: PerceptualNetwork | None = None

    shows = "reconstructions"
    condition = Nothing()

    def __post_init__(self):
        weights = [getattr(self, name) for name in vars(self) if name.endswith("_weight")]
        if min(weights) < 0 or self.adversarial_start < 0:
            raise ValueError("The weights of losses and adversarial_start must be at least 0.")
        if min(self.discriminator_width, self.discriminator_layers) < 1:
            raise ValueError("discriminator_width and discriminator_layers must be at least 1.")
        if self.perceptual_weight and self.perceptual is None:
            raise ValueError(
                f"perceptual_weight={self.perceptual_weight} needs a feature network: none is "
                "given, so set it to 0."
            )
        self.require_fits()
        if self.adversarial_weight:  # and those that are too small
            images = jax.ShapeDtypeStruct((1, *self.shape), jnp.float32)
            jax.eval_shape(
                lambda key, x: self._make_discriminator(key)(x), jax.random.key(0), images
            )

    def require_fits(self) -> None:
        """Returns None if images of `shape` are for the network.

        Raises:
          ValueError: they are not.
        """
        raise NotImplementedError

    def compress(
        self, network: N, images: Array, draw: Array, encode: Array
    ) -> tuple[Array, Array, dict[str, Array]]:
        """Returns latents, the bottleneck's part of (2), and its metrics.

        Args:
          network: With the parameters in training.
          images: In [-1, 1].
          draw: Randomness of latents.
          encode: Randomness of dropout.
        """
        raise NotImplementedError

    def latents(self, network: N, images: Array, key: Array | None) -> Array:
        """Returns what the decoder gets of images: the best latents, or a draw with `key`."""
        raise NotImplementedError

    @functools.cached_property
    def network(self) -> N:
        """Template of the autoencoder: a module that holds shapes."""
        return jax.eval_shape(self.make, jax.random.key(0))

    @functools.cached_property
    def discriminator(self) -> PatchDiscriminator:
        """Template of the discriminator."""
        return jax.eval_shape(self._make_discriminator, jax.random.key(0))

    def init(self, key: Array) -> Params:
        """Returns initial parameters, float32, by player: "autoencoder", "discriminator"."""
        own, other = jax.random.split(key)
        params = {"autoencoder": params_of(self.make(own))}
        if self.learned_variance:  # called a bias, so that weight decay leaves it alone
            params["log_variance"] = {"bias": jnp.zeros(())}
        if self.adversarial_weight:
            params["discriminator"] = params_of(self._make_discriminator(other))
        return params

    @property
    def frozen(self) -> dict[str, Frozen]:
        """The network of the perceptual distance, where there is one."""
        return {} if self.perceptual is None else {"perceptual": self.perceptual.frozen}

    def loss(
        self, params: Params, frozen: Mapping[str, Params], batch: dict[str, Any], key: Array
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Returns the training loss, (5), and a metric for each of its terms.

        "reconstruction" is the mean absolute difference of a number.

        Args:
          params: Parameters as `init` returns them.
          frozen: Parameters of the frozen networks, by name.
          batch: {"data": (b, h, w, c) float32 in [-1, 1]}, and "step" where `adversarial_start`
            matters: without it the game has begun.
          key: Randomness of latents and dropout.
        """
        images = batch["data"]
        draw, encode, decode = jax.random.split(key, 3)
        network = bind(self.network, params["autoencoder"])
        latents, cost, found = self.compress(network, images, draw, encode)
        hidden = network.hidden(latents, decode)
        made = network.render(hidden)

        likelihood, metrics = self._likelihood(params, frozen, images, made)
        loss, metrics = (likelihood + cost) / self._numbers, {**metrics, **found}
        if self.adversarial_weight:
            begun = jnp.float32(batch.get("step", self.adversarial_start) >= self.adversarial_start)
            game, seen = self._game(params, frozen, network, images, hidden, made)
            loss, metrics = loss + begun * game, {**metrics, **seen}
        return loss, {"loss": loss, **metrics}

    def settle(self, params: Params, seen: Array | None, key: Array) -> Params:
        """Returns the parameters with those set that no gradient moves: here there are none."""
        return params

    def reconstruct(
        self, params: Params, images: Float[Array | np.ndarray, "b h w c"], key: Array | None = None
    ) -> Float[Array, "b h w c"]:
        """Returns images in [-1, 1] from their best latents, or from a draw with `key`."""
        return self._reconstruct(params["autoencoder"], jnp.asarray(images), key)

    @functools.cached_property
    def _reconstruct(self) -> Callable[..., Array]:
        def run(params: Params, images: Array, key: Array | None) -> Array:
            network = bind(self.network, params)
            made = network.render(network.hidden(self.latents(network, images, key)))
            return jnp.clip(made, -1, 1)

        return jax.jit(run)

    @property
    def _numbers(self) -> int:
        """N, the numbers in an image."""
        return math.prod(self.shape)

    def _make_discriminator(self, key: Array) -> PatchDiscriminator:
        return PatchDiscriminator(
            self.shape[-1],
            width=self.discriminator_width,
            layers=self.discriminator_layers,
            key=key,
        )

    def _likelihood(
        self, params: Params, frozen: Mapping[str, Params], images: Array, made: Array
    ) -> tuple[Array, dict[str, Array]]:
        """Returns (1) and its parts."""
        total = reconstruction = jnp.mean(jnp.abs(images - made))
        metrics = {"reconstruction": reconstruction}
        if self.perceptual is not None and self.perceptual_weight:
            maps = functools.partial(self.perceptual.maps, frozen["perceptual"])
            distance = jnp.mean(perceptual_distance(maps, images, made))
            total = total + self.perceptual_weight * distance
            metrics["perceptual"] = distance
        if self.learned_variance:
            log_variance = params["log_variance"]["bias"]
            total = total * jnp.exp(-log_variance) + log_variance
            metrics["log_variance"] = log_variance
        return total * self._numbers, metrics

    def _game(
        self,
        params: Params,
        frozen: Mapping[str, Params],
        network: N,
        images: Array,
        hidden: Array,
        made: Array,
    ) -> tuple[Array, dict[str, Array]]:
        """Returns what the adversarial game adds to the loss, and its parts."""
        judge = bind(self.discriminator, params["discriminator"])
        constant = jax.lax.stop_gradient
        still = bind(self.discriminator, constant(params["discriminator"]))

        fooling = generator_loss(still(made))
        judging = discriminator_loss(judge(images), judge(constant(made)))
        ratio = balance(
            network.decoder.last.kernel[...],
            hidden,
            made,
            lambda made: self._likelihood(constant(params), frozen, images, made)[0],
            lambda made: generator_loss(still(made)),
        )
        metrics = {"generator": fooling, "discriminator": judging, "ratio": ratio}
        return self.adversarial_weight * ratio * fooling / self._numbers + judging, metrics


def balance(
    kernel: Array,
    features: Array,
    made: Array,
    likelihood: Callable[[Array], Any],
    fooling: Callable[[Array], Any],
) -> Float[Array, ""]:
    """Returns r of (3), a constant in [0, 10,000].

    Args:
      kernel: Of the last convolution.
      features: Its input.
      made: What it made of them, with its bias.
      likelihood: (1) as a function of what was made.
      fooling: g as a function of the same.
    """
    kernel, features, made = jax.lax.stop_gradient((kernel, features, made))
    _, pull = jax.vjp(lambda kernel: convolve(features, kernel), kernel)

    def norm(function):
        return jnp.linalg.norm(pull(jax.grad(function)(made).astype(features.dtype))[0])

    return jnp.clip(norm(likelihood) / (norm(fooling) + 1e-4), 0, LARGEST_RATIO)
