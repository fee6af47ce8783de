"""What a context offers: the loss of a batch of tokens, and the walk that draws them."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxar.core.plan import Layout
from jaxar.core.random import Draws
from jaxar.flow.guidance import Guidance, Guide, share_of, twice
from jaxar.heads.base import Known
from jaxar.nn.module import Module
from jaxar.schemes.walk import Step
from jaxar.tokenizers.tokens import Entities
from jaxar.typing import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to sample. Static under `jax.jit`; the amount of guidance is an argument instead.

    Attributes:
      draw: How the head draws: `Solving`, `Choosing` or `Denoising`.
      guidance: Rule of the guidance weight.
      guided: False leaves the unconditional half of the work out: guidance 1.
      iterations: Of unmasking, where the context is masked; None for one a token.
    """

    draw: Any
    guidance: Guidance = dataclasses.field(default_factory=Guidance)
    guided: bool = True
    iterations: int | None = None


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be drawn.

    Attributes:
      labels: (b,) classes in [0, num_classes]; num_classes stands for "no class".
      guidance: Weight of classifier-free guidance, 1 or more; may be traced.
      draws: Randomness.
      settings: Everything static.
      known: Tokens of the plan to keep, or None.
    """

    labels: Int[Array, " b"]
    guidance: Any
    draws: Draws
    settings: Settings
    known: Known | None = None

    @property
    def rows(self) -> int:
        """Examples in a pass of the network: twice as many where there is an unconditional half."""
        return len(self.labels) * (2 if self.settings.guided else 1)

    def guide(self, share: Any) -> Guide | None:
        """Returns the guidance at a share of the walk in [0, 1], which may be traced."""
        rule = self.settings.guidance
        if not self.settings.guided:
            return None
        return Guide(rule, rule.weight(self.guidance, share))

    def guide_of(self, step: Step, entities: int) -> Guide | None:
        """Returns the guidance of an entity; None where the rule has no effect on the first one.

        The first entity is known to the program, so that its unconditional half need not be there.
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

    def both(self, x: Array) -> Array:
        """Returns [x; x] where there is an unconditional half, else x."""
        return twice(x) if self.settings.guided else x

    def both_labels(self, num_classes: int) -> Array:
        """Returns [labels; "no class"] where there is an unconditional half, else labels."""
        if not self.settings.guided:
            return self.labels
        return jnp.concatenate([self.labels, jnp.full_like(self.labels, num_classes)])


class Network(Module):
    """A backbone that gives each token a hidden vector, and a head that reads it."""

    def __init__(self, backbone: Any, head: Any):
        """Joins the two."""
        self.backbone, self.head = backbone, head


@runtime_checkable
class Context(Protocol):
    """How the network is asked about an entity, static; networks come bound to parameters.

    Its class declares for configs:
      needs: What the network has to be, the `offers` of its class: a "denoiser" is asked for the
        velocities of noised tokens at given times and has no head; a "causal" one for hidden
        vectors of tokens, from inputs made of the tokens before them; a "set" model for those of
        masked tokens, from the tokens that are kept.
      sampling: Dataclass of settings of the walk, which are fields of `config.sample`.
    """

    @property
    def entities(self) -> Entities:
        """The tokens."""
        ...

    def noise(self, network: Any, key: Array, tokens: Array) -> Any:
        """Returns all randomness of a loss but dropout, any tree of arrays."""
        ...

    def loss(
        self, network: Any, tokens: Array, labels: Int[Array, " b"], noise: Any, key: Array | None
    ) -> Float[Array, ""]:
        """Returns the loss of a batch; dropout only where a key is given."""
        ...

    def sample(self, network: Any, request: Request) -> Array:
        """Returns the tokens of all entities, (b, n, ...), in the plan's order."""
        ...


def look(cache: Any, start: Any, size: int, visible: int) -> tuple[Layout, Any]:
    """Returns the layout of an entity at `start`, and the part of the cache it may look at.

    Args:
      cache: Keys and values, tokens along axis 2.
      start: Place of the entity's first token; may be traced.
      size: Its tokens.
      visible: Fixed length of the cache to look at, of which the tokens before `start` are valid.
    """
    place = start + jnp.arange(size)
    if visible == 0:
        return Layout(place, (size,), None), None
    seen = jax.tree.map(lambda a: a[:, :, :visible], cache)
    if isinstance(start, int) and start == visible:
        return Layout(place, (size,), None), seen
    mask = jnp.concatenate([jnp.arange(visible) < start, jnp.ones(size, bool)])
    return Layout(place, (size,), jnp.broadcast_to(mask, (size, visible + size))), seen


def write(cache: Any, new: Any, start: Any) -> Any:
    """Returns the cache with new keys and values from place `start` on."""
    return jax.tree.map(
        lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, start, 2), cache, new
    )
