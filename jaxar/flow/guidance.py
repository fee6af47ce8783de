"""Classifier-free guidance: extrapolation from the unconditional to the conditional prediction.

    v = v_unconditional + w (v_conditional - v_unconditional),  w >= 1                 (1)

w = 1 is the conditional prediction. v is a velocity, noise or logits. With more branches, ordered
from all conditions to none, each term adds the effect of one more condition:

    v = v_last + sum over i of w_i (v_i - v_{i+1})                                     (2)

Source: arXiv 2207.12598; the ramps over entities are in OliverRensu/xAR models/xar.py
`sample_tokens`, FoundationVision/VAR models/var.py (where w = 1 + cfg k / (K - 1)) and LTH14/mar
models/mar.py; the interval is arXiv 2404.07724.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxar.checks import at_least, one_of, require, share
from jaxar.errors import FieldError
from jaxar.typing import Array


@dataclasses.dataclass(frozen=True)
class Guidance:
    """Weight w as a function of the completed share of the entities, and of time.

    Attributes:
      schedule: "linear" raises the weight from 1 at share 0 to the full weight at share 1, as the
        releases do; "constant" uses the full weight throughout.
      low: Guidance acts only at times in [low, high]; elsewhere w = 1.
      high: See `low`.
    """

    schedule: str = "linear"
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self):
        require(vars(self), schedule=one_of("constant", "linear"), low=share, high=share)
        if self.low > self.high:
            raise FieldError(f"low must be at most high, {self.high}, not {self.low}.")

    def acts_on(self, share: float) -> bool:
        """Returns whether the weight at this share can differ from 1."""
        return self.schedule == "constant" or share > 0

    def weight(self, guidance: Array | float, share: Any) -> Array | float:
        """Returns w inside the interval, for a share in [0, 1], which may be traced."""
        return guidance if self.schedule == "constant" else 1 + (guidance - 1) * share

    def inside(self, t: Array) -> Array:
        """Returns whether guidance acts at time t."""
        return (t >= self.low) & (t <= self.high)


@dataclasses.dataclass(frozen=True)
class Guided:
    """Guidance of sampling; fields of `config.sample` of every context that is guided.

    Attributes:
      guidance: The full weight w; 1 for none, which leaves half of the work out.
      schedule: See `Guidance`, also for the next two.
      low: As there.
      high: As there.
    """

    guidance: float = 1.0
    schedule: str = "linear"
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self):
        require(vars(self), guidance=at_least(1))
        self.rule  # noqa: B018 -- an interval that makes no sense is found here

    @property
    def rule(self) -> Guidance:
        """The weight's rule, without the full weight."""
        return Guidance(self.schedule, self.low, self.high)


@dataclasses.dataclass(frozen=True)
class Guide:
    """Guidance of one entity.

    Attributes:
      rule: Schedule and interval of the guidance.
      weight: w, or a tuple of w_i; may be traced.
      branches: Number of predictions to combine, concatenated along the batch.
    """

    rule: Guidance
    weight: Any
    branches: int = 2

    def mix(self, predictions: Array) -> Array:
        """Returns the guided prediction, (2), from the predictions of all branches."""
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
    """Returns the guided prediction at time t; outside the interval only `alone` is evaluated.

    Args:
      guide: Guidance of the entity, or None.
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
    """Returns the completed share at an entity: 0 at the first, 1 at the last or only one."""
    return entity / (entities - 1) if entities > 1 else 1.0
