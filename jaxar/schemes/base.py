"""What a scheme offers: the loss of a batch of tokens, and the walk that draws them."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.core.cache import view
from jaxar.core.condition import Condition, stacked
from jaxar.core.known import Known
from jaxar.core.random import Draws
from jaxar.core.visibility import Layout, Visibility, started
from jaxar.flow.guidance import Guidance, Guide, share_of
from jaxar.nn.module import Module
from jaxar.schemes.walk import EntityStep
from jaxar.tokenizers.tokens import Entities
from jaxar.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to sample. Static under `jax.jit`; the amount of guidance is an argument instead.

    Attributes:
      draw: How the head draws: `Solving`, `Choosing` or `Denoising`.
      guidance: Rule of the guidance weight.
      guided: False leaves the unconditional half of the work out: guidance 1.
      iterations: Of unmasking, where the scheme is masked; None for one a token.
    """

    draw: Any
    guidance: Guidance = dataclasses.field(default_factory=Guidance)
    guided: bool = True
    iterations: int | None = None


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be drawn.

    Attributes:
      values: Values of the condition that guidance contrasts, the full one first; each has the
        batch as its first axis. A pass of the network has one copy of an example for each.
      guidance: Weight of classifier-free guidance, 1 or more; may be traced.
      draws: Randomness, one key an example.
      settings: Everything static.
      known: Tokens of the plan to keep, or None.
    """

    values: tuple[Any, ...]
    guidance: Any
    draws: Draws
    settings: Settings
    known: Known | None = None

    @property
    def batch(self) -> int:
        """Examples that are drawn."""
        return self.draws.examples

    @property
    def rows(self) -> int:
        """Examples in a pass of the network, counting all branches."""
        return self.batch * len(self.values)

    @property
    def condition(self) -> Any:
        """The full condition."""
        return self.values[0]

    @property
    def branches(self) -> Any:
        """The values of all branches as one, along the batch."""
        return stacked(self.values)

    def repeated(self, x: Array) -> Array:
        """Returns x once for each branch, along the batch."""
        return stacked([x] * len(self.values))

    def guide(self, share: Any) -> Guide | None:
        """Returns the guidance at a share of the walk in [0, 1], which may be traced."""
        rule = self.settings.guidance
        if len(self.values) == 1:
            return None
        return Guide(rule, rule.weight(self.guidance, share), len(self.values))

    def guide_of(self, step: EntityStep, entities: int) -> Guide | None:
        """Returns the guidance of an entity; None where the rule has no effect on the first one.

        The program knows which entity is the first, so its unconditional half is left out.
        """
        least = share_of(min(step.visible, 1), entities)
        if not self.settings.guidance.acts_on(least):
            return None
        return self.guide(share_of(step.entity, entities))

    def fixed(self, start: Any, size: int) -> Known | None:
        """Returns the known tokens among those from place `start` on."""
        if self.known is None:
            return None
        return Known(*(jax.lax.dynamic_slice_in_dim(x, start, size, 1) for x in self.known))


def request_for(
    condition: Condition,
    value: Any,
    guidance: Any,
    draws: Draws,
    settings: Settings,
    known: Known | None = None,
) -> Request:
    """Returns the request for a value of a condition, with the branches that guidance needs."""
    values = condition.branches(value) if settings.guided else [value]
    return Request(tuple(values), guidance, draws, settings, known)


class BackboneWithHead(Module):
    """A backbone that gives each token a hidden vector, and a head that reads it."""

    def __init__(self, backbone: Any, head: Any):
        """Joins the two."""
        self.backbone, self.head = backbone, head


@runtime_checkable
class Scheme(Protocol):
    """How a bound network is trained and sampled. Static."""

    @property
    def entities(self) -> Entities:
        """From data to tokens and back."""
        ...

    def noise(self, network: Any, key: Array, tokens: Array) -> Any:
        """Returns all randomness of a loss except dropout, any tree of arrays."""
        ...

    def loss(
        self, network: Any, tokens: Array, condition: Any, noise: Any, key: Array | None
    ) -> Float[Array, ""]:
        """Returns the loss of a batch; dropout only where a key is given."""
        ...

    def sample(self, network: Any, request: Request) -> Array:
        """Returns the tokens of all entities, (b, n, ...), in the plan's order."""
        ...


def look(cache: Any, start: Any, size: int, visible: int) -> tuple[Layout, Any]:
    """Returns the layout of an entity at `start`, and what it may look at of a cache.

    Args:
      cache: Tree of nodes of `core.cache`.
      start: Place of the entity's first token, one or (b,); may be traced.
      size: Its tokens.
      visible: Fixed number of places of the cache to look at; those before `start` are valid.
    """
    place = jnp.asarray(start)[..., None] + jnp.arange(size)
    if visible == 0:
        return Layout(place, (size,), None), None
    seen = view(cache, visible)
    if isinstance(start, int) and start == visible:
        return Layout(place, (size,), None), seen
    own = np.full(size, -1)
    written = jnp.broadcast_to(jnp.asarray(start)[..., None], place.shape)
    keys = np.concatenate([np.arange(visible), own])
    return Layout(place, (size,), Visibility(started, (written,), (keys,))), seen
