"""Beam search: the most likely sequences, under a constraint.

    score(sequence) = sum of log p(token | before)                                        (1)

A beam that has ended keeps its score and its place. Beams of one example are rows of one batch:
caches and constraints follow them by `rows`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxar.core import cache as caches
from jaxar.core.constraint import Constraint
from jaxar.schemes.walk import Drawn, until_finished
from jaxar.typing import Array, Float, Int

Ask = Callable[[Any, Array, Array], tuple[Array, Any]]
"""ask(cache, tokens (rows,), step) -> (logits (rows, v) of the next token, cache with these)."""


class Found(NamedTuple):
    """Sequences of each example, the best first.

    Attributes:
      tokens: (b, width, most) with the stop token, which is repeated behind the end.
      lengths: (b, width) tokens up to the stop token, which counts.
      scores: (b, width), (1).
    """

    tokens: Int[Array, "b w n"]
    lengths: Int[Array, "b w"]
    scores: Float[Array, "b w"]


def beam_search(
    ask: Ask,
    cache: Any,
    first: Int[Array, " b"],
    *,
    width: int,
    most: int,
    stop: int,
    constraint: Constraint | None = None,
) -> Found:
    """Returns the `width` best sequences that beams find for each example.

    Args:
      ask: The network, for one token in each of b x width rows, examples first.
      cache: That of b x width rows, before the first token.
      first: Token that stands before each sequence.
      width: Beams of an example.
      most: Tokens of a sequence at most.
      stop: Token that ends a sequence.
      constraint: What may be drawn, or None for everything.
    """
    batch, rows = len(first), len(first) * width
    own = jnp.repeat(jnp.arange(batch) * width, width)
    begin = None if constraint is None else constraint.begin(rows)
    scores = jnp.tile(jnp.where(jnp.arange(width) == 0, 0.0, -jnp.inf), batch)
    start = (cache, begin, jnp.repeat(first, width), jnp.zeros(rows, bool), scores)

    def draw(state: Any, step: Array) -> Drawn:
        cache, rule, before, ended, scores = state
        logits, cache = ask(cache, before, step)
        if constraint is not None:
            logits = jnp.where(constraint.allowed(rule), logits, -jnp.inf)
        likelihood = jax.nn.log_softmax(logits, -1)
        only_stop = jnp.where(jnp.arange(logits.shape[-1]) == stop, 0.0, -jnp.inf)
        total = scores[:, None] + jnp.where(ended[:, None], only_stop, likelihood)
        best, place = jax.lax.top_k(total.reshape(batch, -1), width)
        place, vocabulary = place.reshape(-1), logits.shape[-1]
        parents, tokens = own + place // vocabulary, (place % vocabulary).astype(jnp.int32)
        cache, ended = caches.rows(cache, parents), ended[parents]
        if constraint is not None:
            rule = jax.tree.map(lambda x: x[parents], rule)
            rule = constraint.advance(rule, tokens)
        finished = tokens == stop
        state = cache, rule, tokens, ended | finished, best.reshape(-1)
        return Drawn(state, tokens, finished, parents)

    tokens, lengths, state = until_finished(draw, start, rows=rows, most=most, filler=stop)
    by_example = (x.reshape(batch, width, *x.shape[1:]) for x in (tokens, lengths, state[-1]))
    return Found(*by_example)
