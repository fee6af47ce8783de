"""A next-X system: tokens, scheme, network and condition, joined into pure functions.

    init(key) -> params                                       what is trained
    loss(params, frozen, batch, key) -> (loss, metrics)       what is minimised
    sample(params, frozen, keys, condition, ...) -> data      what comes out

Nothing here knows a mesh or a file.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxar.core.condition import Condition, classes_of
from jaxar.core.known import Known
from jaxar.core.plan import Plan
from jaxar.core.random import Draws
from jaxar.core.task import Frozen
from jaxar.nn.module import as_used, bind, params_of
from jaxar.schemes.base import Request, Scheme, Settings, request_for
from jaxar.tokenizers.tokens import Entities
from jaxar.typing import Array, Float, Params


@dataclasses.dataclass(frozen=True, eq=False)
class System:
    """Parts of a generative model and the functions they make together.

    Attributes:
      network: Template of the network: a module that holds shapes.
      make: make(key) -> the network with initial values.
      scheme: How the network is trained and sampled.
      condition: What data are generated from.
      shape: Of one example of the data, such as (h, w, c).
      autoencoder: Template of the network that turns data into tokens, where the tokens cannot be
        made without its parameters; else None.
      shows: What pictures of the system show: it can `sample`.
    """

    network: Any
    make: Callable[[Array], Any]
    scheme: Scheme
    condition: Condition
    shape: tuple[int, ...]
    autoencoder: Any = None

    shows = "samples"

    @property
    def entities(self) -> Entities:
        """From data to tokens and back."""
        return self.scheme.entities

    @property
    def plan(self) -> Plan:
        """The entities' order."""
        return self.entities.plan

    @property
    def num_classes(self) -> int:
        """Number of classes, where the condition is a label."""
        return classes_of(self.condition, "This")

    @property
    def frozen(self) -> dict[str, Frozen]:
        """The autoencoder, where tokens are made with its parameters."""
        if self.autoencoder is None:
            return {}
        return {"autoencoder": Frozen(params_of(self.autoencoder), "vq_autoencoder")}

    def bound(self, frozen: Mapping[str, Params]) -> "System":
        """Returns the system whose tokens are made with frozen parameters, inside a program."""
        if self.autoencoder is None:
            return self
        scheme: Any = self.scheme
        entities = self.entities.attach(bind(self.autoencoder, frozen["autoencoder"]))
        return dataclasses.replace(self, scheme=dataclasses.replace(scheme, entities=entities))

    def init(self, key: Array) -> Params:
        """Returns initial parameters, float32."""
        return params_of(self.make(key))

    def loss(
        self, params: Params, frozen: Mapping[str, Params], batch: dict[str, Any], key: Array
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Returns the training loss and metrics of a batch.

        Args:
          params: Parameters as `init` returns them.
          frozen: Parameters of the frozen networks, by name.
          batch: {"data": (b, ...) float32, "condition": a value of the condition}.
          key: Randomness of latents, dropped conditions, noise and dropout.
        """
        encode, drop_condition, draw, dropout = jax.random.split(key, 4)
        scheme = self.bound(frozen).scheme
        tokens = scheme.entities.cut(batch["data"], encode)
        condition = self.condition.drop(batch["condition"], drop_condition)
        network = bind(self.network, params)
        noise = scheme.noise(network, draw, tokens)
        loss = scheme.loss(network, tokens, condition, noise, dropout)
        return loss, {"loss": loss}

    def settle(self, params: Params, seen: Array | None, key: Array) -> Params:
        """Returns the parameters: gradients move all of them."""
        return params

    def sample(
        self,
        params: Params,
        frozen: Mapping[str, Params],
        keys: Array,
        condition: Any,
        guidance: Array | float,
        settings: Settings,
        known: Known | None = None,
    ) -> Float[Array, "b ..."]:
        """Returns generated data, one example a key.

        Args:
          params: Parameters.
          frozen: Parameters of the frozen networks, by name.
          keys: (b,) one key an example: a result does not depend on the batch it is drawn in.
          condition: A value of the condition.
          guidance: Weight of classifier-free guidance, 1 or more; 1 for none.
          settings: Everything static.
          known: Tokens to keep.
        """
        system = self.bound(frozen)
        draws = Draws(keys)
        request = request_for(self.condition, condition, guidance, draws, settings, known)
        return system.entities.paste(system.sample_tokens(params, request))

    def sample_tokens(self, params: Params, request: Request) -> Array:
        """Returns the generated tokens of all entities, in the plan's order; see `bound`."""
        network = bind(self.network, as_used(self.network, params))
        return self.scheme.sample(network, request)
