"""The walk over a plan: entity after entity, each seeing what was carried along.

Law of every walk, tested for every config: *cached sampling equals one block-causal pass*.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxar.core.plan import Plan
from jaxar.typing import Array


class Step(NamedTuple):
    """One entity of a walk.

    Attributes:
      entity: Its number; may be traced.
      start: Place of its first token; may be traced.
      size: Its tokens.
      visible: Fixed number of tokens before it that may be looked at: of them, those before
        `start` are there. 0 for the first entity.
    """

    entity: Any
    start: Any
    size: int
    visible: int


def autoregressive(plan: Plan, draw: Callable[[Any, Step], tuple[Any, Array]], state: Any) -> Array:
    """Returns the tokens of every entity, (b, n, ...).

    Runs of equal entities are one compiled loop, whatever their number; unequal ones, as scales,
    follow each other without padding.

    Args:
      plan: Entities and their order.
      draw: draw(state, step) -> (state, tokens (b, size, ...)) of one entity.
      state: What `draw` carries along, a cache among it, before the first entity.
    """
    parts: list[Array] = []
    for first, last in plan.runs():
        size, offset = plan.sizes[first], plan.offsets[first]
        visible = plan.offsets[last - 1]
        if last - first == 1:
            state, tokens = draw(state, Step(first, offset, size, visible))
        else:

            def body(state, entity, first=first, size=size, offset=offset, visible=visible):
                return draw(state, Step(entity, offset + (entity - first) * size, size, visible))

            state, tokens = jax.lax.scan(body, state, jnp.arange(first, last))
            tokens = jnp.moveaxis(tokens, 0, 1)
            tokens = tokens.reshape(tokens.shape[0], -1, *tokens.shape[3:])
        parts.append(tokens)
    return jnp.concatenate(parts, 1)
