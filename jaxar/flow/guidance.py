"""Classifier-free guidance: how far to go beyond the unconditional velocity.

    v = v_unconditional + w (v_conditional - v_unconditional),  w >= 1

w = 1 is the conditional velocity alone. Source: arXiv 2207.12598; xAR's ramp over entities is in
OliverRensu/xAR models/xar.py `sample_tokens`; the interval is arXiv 2404.07724.
"""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp

from jaxar.typing import Array


@dataclasses.dataclass(frozen=True)
class Guidance:
    """Weight w as a function of entity and time.

    Attributes:
      schedule: "linear" raises the weight from 1 at the first entity to the full weight at the
        last, as xAR does; "constant" keeps it. A plan of one entity always gets the full weight.
      low: Guidance acts only for times in [low, high]; elsewhere w = 1.
      high: See `low`.
    """

    schedule: Literal["constant", "linear"] = "linear"
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self):
        if self.schedule not in ("constant", "linear"):
            raise ValueError(
                f"The guidance schedule must be 'constant' or 'linear', not {self.schedule!r}."
            )
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(
                f"The guidance interval must satisfy 0 <= low <= high <= 1, "
                f"not low={self.low}, high={self.high}."
            )

    def acts_on(self, entity: int, entities: int) -> bool:
        """Returns whether the weight of this entity can differ from 1."""
        return self.schedule == "constant" or entities == 1 or entity > 0

    def weight(self, guidance: Array | float, entity: Any, entities: int, t: Array) -> Array:
        """Returns w for one entity (0 <= entity < entities, may be traced) at time t."""
        share = 1.0
        if self.schedule == "linear" and entities > 1:
            share = entity / (entities - 1)
        inside = (t >= self.low) & (t <= self.high)
        return jnp.where(inside, 1 + (guidance - 1) * share, 1.0)
