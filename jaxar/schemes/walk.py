"""The walk over a plan: entity after entity, each seeing what was carried along.

`autoregressive` draws all entities of a plan, a known number; `until_finished` draws token after
token until every row has ended, and may reorder the rows on the way.

Law of every walk, tested for every config: *cached sampling equals one block-causal pass*.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxar.core.plan import Plan
from jaxar.typing import Array


class EntityStep(NamedTuple):
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


def autoregressive(
    plan: Plan, draw: Callable[[Any, EntityStep], tuple[Any, Array]], state: Any
) -> Array:
    """Returns the tokens of every entity, (b, n, ...), or a tree of such.

    Runs of equal entities are one compiled loop, whatever their number; unequal ones, as scales,
    follow each other without padding.

    Args:
      plan: Entities and their order.
      draw: draw(state, step) -> (state, tokens (b, size, ...)) of one entity.
      state: What `draw` carries along, a cache among it, before the first entity.
    """
    parts: list[Any] = []
    for first, last in plan.runs():
        size, offset = plan.sizes[first], plan.offsets[first]
        visible = plan.offsets[last - 1]
        if last - first == 1:
            state, tokens = draw(state, EntityStep(first, offset, size, visible))
        else:

            def body(state, entity, first=first, size=size, offset=offset, visible=visible):
                return draw(
                    state, EntityStep(entity, offset + (entity - first) * size, size, visible)
                )

            state, tokens = jax.lax.scan(body, state, jnp.arange(first, last))
            tokens = jax.tree.map(_in_a_row, tokens)
        parts.append(tokens)
    return jax.tree.map(lambda *found: jnp.concatenate(found, 1), *parts)


def _in_a_row(x: Array) -> Array:
    """Returns (b, x m, ...) of the tokens of x entities, (x, b, m, ...)."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


class Drawn(NamedTuple):
    """What one step of `until_finished` gives.

    Attributes:
      state: What is carried along.
      tokens: (b,) drawn tokens.
      finished: (b,) bool, whether a row ends with this token.
      parents: (b,) rows that these rows continue, where a search reorders them; else None.
    """

    state: Any
    tokens: Array
    finished: Array
    parents: Array | None = None


def until_finished(
    draw: Callable[[Any, Array], Drawn], state: Any, *, rows: int, most: int, filler: int = 0
) -> tuple[Array, Array, Any]:
    """Returns tokens (rows, most), their number in each row, and the last state.

    The loop ends when every row has; what comes after the end of a row is `filler`.

    Args:
      draw: draw(state, step) -> `Drawn`; the step counts from 0. Rows that have ended are drawn
        with the others, and what is drawn for them is left out.
      state: What `draw` carries along.
      rows: Sequences.
      most: Tokens of a sequence at most.
      filler: What stands behind the end of a sequence.
    """

    def more(carry):
        step, _, _, finished, _ = carry
        return (step < most) & ~finished.all()

    def turn(carry):
        step, state, tokens, finished, lengths = carry
        drawn = draw(state, step)
        if drawn.parents is not None:
            tokens, finished, lengths = (x[drawn.parents] for x in (tokens, finished, lengths))
        new = jnp.where(finished, filler, drawn.tokens)
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, new[:, None], step, 1)
        lengths = jnp.where(finished, lengths, step + 1)
        return step + 1, drawn.state, tokens, finished | drawn.finished, lengths

    tokens = jnp.full((rows, most), filler, jnp.int32)
    start = (jnp.int32(0), state, tokens, jnp.zeros(rows, bool), jnp.zeros(rows, jnp.int32))
    _, state, tokens, _, lengths = jax.lax.while_loop(more, turn, start)
    return tokens, lengths, state
