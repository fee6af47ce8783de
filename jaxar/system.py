"""A system: entities, network and context, joined into three pure functions.

    init(key) -> params                            what is trained
    loss(params, batch, key) -> (loss, metrics)    what is minimised
    sample(params, keys, labels, ...) -> data      what comes out

Nothing here knows a mesh or a file.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxar.core.plan import Plan
from jaxar.core.random import Draws
from jaxar.heads.base import Known
from jaxar.nn.module import as_used, bind, params_of
from jaxar.schemes.base import Context, Request, Settings
from jaxar.tokenizers.tokens import Entities
from jaxar.typing import Array, Float, Int, Params


@runtime_checkable
class Trainable(Protocol):
    """What training needs of a system, of whatever kind.

    Attributes:
      shows: What its pictures show: "samples", or "reconstructions" of the data.
    """

    shows: str

    def init(self, key: Array) -> Params:
        """Returns initial parameters."""
        ...

    def loss(
        self, params: Params, batch: dict[str, Array], key: Array
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Returns the loss of a batch, {"data", "label", "step"}, and metrics.

        Metrics are numbers, but for "seen": what `settle` is to know of the batch, if anything.
        """
        ...

    def settle(self, params: Params, seen: Array | None, key: Array) -> Params:
        """Returns the parameters with those set that no gradient moves, such as averages.

        Args:
          params: After the optimiser's update.
          seen: That of the loss's metrics, or None.
          key: That of the loss.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class System:
    """Parts of a generative model and the functions they make together.

    Attributes:
      network: Template of the network: a module that holds shapes.
      make: make(key) -> the network with initial values.
      context: How the network is asked about an entity, in training and in sampling.
      num_classes: Labels lie in [0, num_classes).
      label_dropout: Share of labels replaced by "no class" in training.
      shape: (h, w, c) of one example of the data.
      shows: What pictures of the system show: it can `sample`.
    """

    network: Any
    make: Callable[[Array], Any]
    context: Context
    num_classes: int
    label_dropout: float
    shape: tuple[int, int, int]

    shows = "samples"

    @property
    def entities(self) -> Entities:
        """From data to tokens and back."""
        return self.context.entities

    @property
    def plan(self) -> Plan:
        """The entities' order."""
        return self.entities.plan

    @property
    def needs_autoencoder(self) -> bool:
        """Whether data become tokens by parameters of an autoencoder, which are to be attached."""
        return self.entities.needs_autoencoder

    def attach(self, autoencoder: Any) -> "System":
        """Returns the system with an autoencoder's parameters, where it needs them."""
        context: Any = self.context
        entities = self.entities.attach(autoencoder)
        return dataclasses.replace(self, context=dataclasses.replace(context, entities=entities))

    def init(self, key: Array) -> Params:
        """Returns initial parameters, float32."""
        return params_of(self.make(key))

    def loss(
        self, params: Params, batch: dict[str, Array], key: Array
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Returns the training loss and metrics of a batch.

        Args:
          params: Parameters as `init` returns them.
          batch: {"data": (b, h, w, c) float32, "label": (b,) int32}.
          key: Randomness of latents, label dropout, noise and dropout.
        """
        encode, label, draw, drop = jax.random.split(key, 4)
        tokens = self.entities.cut(batch["data"], encode)
        dropped = jax.random.bernoulli(label, self.label_dropout, batch["label"].shape)
        labels = jnp.where(dropped, self.num_classes, batch["label"])
        network = bind(self.network, params)
        noise = self.context.noise(network, draw, tokens)
        loss = self.context.loss(network, tokens, labels, noise, drop)
        return loss, {"loss": loss}

    def settle(self, params: Params, seen: Array | None, key: Array) -> Params:
        """Returns the parameters: gradients move all of them."""
        return params

    def loss_of(
        self,
        params: Params,
        tokens: Array,
        labels: Int[Array, " b"],
        noise: Any,
        key: Array | None = None,
    ) -> Float[Array, ""]:
        """Returns the loss for given randomness; dropout only where a key is given."""
        return self.context.loss(bind(self.network, params), tokens, labels, noise, key)

    def sample(
        self,
        params: Params,
        keys: Array,
        labels: Int[Array, " b"],
        guidance: Array | float,
        settings: Settings,
        known: Known | None = None,
    ) -> Float[Array, "b h w c"]:
        """Returns generated data, one example a label.

        Args:
          params: Parameters.
          keys: (b,) one key an example: a result does not depend on the batch it is drawn in.
          labels: Classes in [0, num_classes]; num_classes stands for "no class".
          guidance: Weight of classifier-free guidance, 1 or more; 1 for none.
          settings: Everything static.
          known: Tokens to keep.
        """
        request = Request(labels, guidance, Draws(keys), settings, known)
        return self.entities.paste(self.sample_tokens(params, request))

    def sample_tokens(self, params: Params, request: Request) -> Array:
        """Returns the generated tokens of all entities, in the plan's order."""
        network = bind(self.network, as_used(self.network, params))
        return self.context.sample(network, request)
