"""Classifier-free guidance: how far to go beyond the unconditional prediction.

    v = v_unconditional + w (v_conditional - v_unconditional),  w >= 1

w = 1 is the conditional prediction alone. v is a velocity, noise or logits. With more branches,
from everything given to nothing given, each step adds what one more condition says:

    v = v_last + sum over i of w_i (v_i - v_{i+1})                                     (2)

Source: arXiv 2207.12598; the ramps over entities are in OliverRensu/xAR models/xar.py
`sample_tokens`, FoundationVision/VAR models/var.py (where w = 1 + cfg k / (K - 1)) and LTH14/mar
models/mar.py; the interval is arXiv 2404.07724.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxar.typing import Array


@dataclasses.dataclass(frozen=True)
class Guidance:
    """Weight w as a function of the share of the walk that is done, and of time.

    Attributes:
      schedule: "linear" raises the weight from 1 at share 0 to the full weight at share 1, as the
        releases do; "constant" keeps it.
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

    def acts_on(self, share: float) -> bool:
        """Returns whether the weight at this share can differ from 1."""
        return self.schedule == "constant" or share > 0

    def weight(self, guidance: Array | float, share: Any) -> Array | float:
        """Returns w inside the interval, for a share in [0, 1] that may be traced."""
        return guidance if self.schedule == "constant" else 1 + (guidance - 1) * share

    def inside(self, t: Array) -> Array:
        """Returns whether guidance acts at time t."""
        return (t >= self.low) & (t <= self.high)


@dataclasses.dataclass(frozen=True)
class Guide:
    """Guidance of one entity.

    Attributes:
      rule: Its rule.
      weight: w, or a tuple of w_i; may be traced.
      branches: Predictions that are mixed, one after the other along the batch.
    """

    rule: Guidance
    weight: Any
    branches: int = 2

    def mix(self, predictions: Array) -> Array:
        """Returns the guided prediction, (2), of those of all branches."""
        parts = jnp.split(predictions, self.branches)
        weights = self.weight
        if not isinstance(weights, tuple):
            weights = (weights,) * (self.branches - 1)
        mixed = parts[-1]
        for i in reversed(range(self.branches - 1)):
            weight = jnp.asarray(weights[i], predictions.dtype)
            mixed = mixed + weight * (parts[i] - parts[i + 1])
        return mixed

    def repeated(self, x: Array) -> Array:
        """Returns x once for each branch, along the batch."""
        return jnp.concatenate([x] * self.branches)


def guided(
    guide: Guide | None, t: Array, both: Callable[[], Array], alone: Callable[[], Array]
) -> Array:
    """Returns the guided prediction at time t; outside the interval only `alone` is computed.

    Args:
      guide: Guidance of the entity, or None for none.
      t: Time.
      both: both() -> predictions of all branches.
      alone: alone() -> the conditional prediction.
    """
    if guide is None:
        return alone()
    if guide.rule.low == 0 and guide.rule.high == 1:
        return guide.mix(both())
    return jax.lax.cond(guide.rule.inside(t), lambda: guide.mix(both()), alone)


def share_of(entity: Any, entities: int) -> Any:
    """Returns the share of the walk at an entity: 0 at the first, 1 at the last or only one."""
    return entity / (entities - 1) if entities > 1 else 1.0
