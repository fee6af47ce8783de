"""Training of an autoencoder: likelihood, bottleneck, perceptual distance and a discriminator.

For an image x of N elements, its reconstruction y, and a learned or fixed log-variance s:

    likelihood = (|x - y|_1 + N perceptual_weight d(x, y)) / exp(s) + N s             (1)
    autoencoder = (likelihood + bottleneck + adversarial_weight r g) / N              (2)
    g = -mean D(y),    r = |likelihood'| / (|g'| + 1e-4)                               (3)
    discriminator = (mean relu(1 - D(x)) + mean relu(1 + D(y))) / 2                    (4)
    loss = autoencoder + discriminator                                                (5)

A prime is the gradient with respect to the last kernel of the decoder. (4) treats y as a constant
and (2) treats D as one, so one gradient of (5) holds that of each player. All are means over the
batch. |.|_1 sums over the elements of an image, as in the release, so weights have the same
meaning. `variational` and `quantized` define the bottleneck and its loss. The release does not
divide (2) by N: Adam is invariant to it, but clipping the joint gradient norm would leave (4)
almost no gradient.
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

from jaxar.checks import at_least, require, truth, whole
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
    """An autoencoder and its losses, as a task to train, for any bottleneck.

    Attributes:
      make: make(key) -> the autoencoder with initial values.
      shape: (h, w, c) of an image.
      perceptual_weight: Weight of the perceptual distance, 1 in the release.
      adversarial_weight: Weight of the generator's loss, 0.5 in the release; 0 for no
        discriminator.
      adversarial_start: Step at which generator and discriminator losses begin.
      learned_variance: Whether s is learned; otherwise it is 0. In the release it is a parameter
        that no optimiser updates, so it stays 0.
      discriminator_width: Channels of the discriminator's first layer.
      discriminator_layers: How many times the discriminator halves an image.
      perceptual: Feature network of the perceptual distance.

    A class of it declares what the autoencoder has to be: `needs`, the `offers` of its class, a
    "posterior" for each latent or "codes".
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

    condition = Nothing()

    def __post_init__(self):
        weights = [name for name in vars(self) if name.endswith("_weight")]
        require(
            vars(self),
            **dict.fromkeys(weights, at_least(0)),
            adversarial_start=whole(0),
            learned_variance=truth,
            discriminator_width=whole(1),
            discriminator_layers=whole(1),
        )
        if self.perceptual_weight and self.perceptual is None:
            raise ValueError(
                f"perceptual_weight={self.perceptual_weight} needs a feature network: none is "
                "given, so set it to 0."
            )
        self.require_fits()
        if self.adversarial_weight:  # raises for images that are too small
            images = jax.ShapeDtypeStruct((1, *self.shape), jnp.float32)
            jax.eval_shape(
                lambda key, x: self._make_discriminator(key)(x), jax.random.key(0), images
            )

    def require_fits(self) -> None:
        """Raises ValueError unless images of `shape` fit the network."""
        raise NotImplementedError

    def compress(
        self, network: N, images: Array, draw: Array, encode: Array
    ) -> tuple[Array, Array, dict[str, Array]]:
        """Returns latents, the bottleneck's term of (2), and its metrics.

        Args:
          network: Network bound to the parameters in training.
          images: Images in [-1, 1].
          draw: Randomness of latents.
          encode: Randomness of dropout.
        """
        raise NotImplementedError

    def latents(self, network: N, images: Array, key: Array | None) -> Array:
        """Returns the latents of images: the best ones, or a draw with `key`."""
        raise NotImplementedError

    @functools.cached_property
    def network(self) -> N:
        """The autoencoder's template: a module that holds shapes."""
        return jax.eval_shape(self.make, jax.random.key(0))

    @functools.cached_property
    def discriminator(self) -> PatchDiscriminator:
        """The discriminator's template."""
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
        """The feature network of the perceptual distance, if there is one."""
        return {} if self.perceptual is None else {"perceptual": self.perceptual.frozen}

    def loss(
        self, params: Params, frozen: Mapping[str, Params], batch: dict[str, Any], key: Array
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Returns the training loss, (5), and a metric for each of its terms.

        "reconstruction" is the mean absolute difference per element.

        Args:
          params: Parameters as `init` returns them.
          frozen: Parameters of the frozen networks, by name.
          batch: {"data": (b, h, w, c) float32 in [-1, 1]}, and "step" to apply
            `adversarial_start`; without it the adversarial losses are on.
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
        """Returns the parameters after updates without gradient; by default there are none."""
        return params

    def reconstruct(
        self, params: Params, images: Float[Array | np.ndarray, "b h w c"], key: Array | None = None
    ) -> Float[Array, "b h w c"]:
        """Returns reconstructions in [-1, 1] from the best latents, or from a draw with `key`."""
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
        """N, the number of elements of an image."""
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
        """Returns (1) and its terms."""
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
        """Returns the adversarial part of the loss, and its terms."""
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
      kernel: Kernel of the last convolution.
      features: Its input.
      made: Its output, bias included.
      likelihood: (1) as a function of the output.
      fooling: g as a function of the output.
    """
    kernel, features, made = jax.lax.stop_gradient((kernel, features, made))
    _, pull = jax.vjp(lambda kernel: convolve(features, kernel), kernel)

    def norm(function):
        return jnp.linalg.norm(pull(jax.grad(function)(made).astype(features.dtype))[0])

    return jnp.clip(norm(likelihood) / (norm(fooling) + 1e-4), 0, LARGEST_RATIO)
