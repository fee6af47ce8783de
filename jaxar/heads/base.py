"""What a head offers: the distribution of an entity, given what the backbone made of its context.

Heads of this kind serve every context that gives a hidden vector for each token: `schemes.shifted`
and `schemes.masked`. The head of xAR (`heads.flow`) has the backbone itself as its network.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxar.core.known import Known
from jaxar.core.plan import Plan
from jaxar.core.random import Draws
from jaxar.flow.guidance import Guide
from jaxar.typing import Array, Float


class Turn(NamedTuple):
    """What a head is told when it draws tokens.

    Attributes:
      place: (m,) places of the tokens in the plan's sequence; (b, m) where examples differ.
      share: Of the walk that is done, in [0, 1]; may be traced.
      guide: Guidance, or None for none.
      draws: Randomness of this entity.
      settings: The head's own settings of sampling.
      known: Tokens to keep, or None.
    """

    place: Any
    share: Any
    guide: Guide | None
    draws: Draws
    settings: Any
    known: Known | None


@runtime_checkable
class Head(Protocol):
    """A module with parameters of its own."""

    def noise(self, key: Array, tokens: Array, plan: Plan) -> Any:
        """Returns the randomness of a loss, any tree of arrays."""
        ...

    def loss(
        self, hidden: Float[Array, "b n d"], tokens: Array, noise: Any, plan: Plan
    ) -> Float[Array, "b n"]:
        """Returns the loss of every token of the plan, float32."""
        ...

    def draw(self, hidden: Float[Array, "b m d"], turn: Turn) -> Array:
        """Returns drawn tokens (b, m, ...).

        With a guide, `hidden` is [conditional; unconditional], (2b, m, d).
        """
        ...


def no_head() -> None:
    """Returns no head: the backbone itself predicts velocities."""
