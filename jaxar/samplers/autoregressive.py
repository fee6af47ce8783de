"""The walk over a plan: entity after entity, each seeing the cache of the finished ones.

Finished entities are written to the cache once, clean, at time 0. Law of the sampler, tested for
every config: *cached sampling equals one block-causal pass*.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxar.plan import Plan
from jaxar.typing import Array, Float


def autoregressive(
    plan: Plan,
    write: Callable[..., Any],
    draw: Callable[..., Array],
    cache: Any,
) -> Float[Array, "b n c"]:
    """Returns the tokens of every entity.

    Runs of equal entities are one compiled loop, whatever their number; unequal ones, as scales,
    follow each other without padding.

    Args:
      plan: Entities and their order.
      write: write(cache, tokens, start, visible) -> cache with the clean `tokens` of one entity,
        whose first token has the place `start`.
      draw: draw(cache, entity, start, size, visible) -> tokens (b, size, c) of one entity.
        `visible` is the fixed length of the cache that may be looked at; of it, the tokens before
        `start` are valid. `visible` is 0 where nothing precedes.
      cache: Empty cache with room for all tokens but the last entity's.
    """
    parts: list[Array] = []
    previous: Array | None = None
    for first, last in plan.runs():
        size, offset = plan.sizes[first], plan.offsets[first]
        visible = plan.offsets[last - 1]

        def step(carry, entity, size=size, offset=offset, first=first, visible=visible):
            cache, previous = carry
            start = offset + (entity - first) * size
            if previous is not None:
                width = previous.shape[1]
                cache = write(cache, previous, start - width, visible - width)
            tokens = draw(cache, entity, start, size, visible)
            return (cache, tokens), tokens

        if last - first == 1:
            (cache, previous), tokens = step((cache, previous), first)
        else:
            (cache, previous), tokens = jax.lax.scan(
                step, (cache, previous), jnp.arange(first, last)
            )
            tokens = jnp.moveaxis(tokens, 0, 1).reshape(tokens.shape[1], -1, tokens.shape[-1])
        parts.append(tokens)
    return jnp.concatenate(parts, 1)
