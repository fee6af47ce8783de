"""A head for each kind of token, where a sequence mixes them: codes and vectors, text and pictures.

Tokens are then a dict with an array (b, n, ...) for each kind, of the whole sequence; at places of
another kind its values do not matter.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.core.plan import Plan
from jaxar.heads.base import Turn
from jaxar.nn.layers import split_or_none
from jaxar.nn.module import Module
from jaxar.typing import Array, Float


class ByKind(Module):
    """Loss and draw of every token by the head of its kind."""

    def __init__(self, heads: Mapping[str, Module], kinds: Sequence[str]):
        """Joins the heads.

        Args:
          heads: A head for each kind.
          kinds: Kind of each place of the sequence.

        Raises:
          ValueError: a kind has no head.
        """
        unknown = sorted(set(kinds) - set(heads))
        if unknown:
            raise ValueError(f"There is no head for the kind {unknown[0]!r}, only {sorted(heads)}.")
        self.kinds, self.names = tuple(kinds), tuple(heads)
        for name, head in heads.items():
            setattr(self, name, head)

    def head_of(self, name: str) -> Any:
        """Returns the head of a kind."""
        return getattr(self, name)

    def noise(self, key: Array, tokens: Mapping[str, Array], plan: Plan) -> dict[str, Any]:
        """Returns the randomness of each head."""
        keys = split_or_none(key, len(self.names))
        return {
            name: self.head_of(name).noise(own, tokens[name], plan)
            for name, own in zip(self.names, keys, strict=True)
        }

    def loss(
        self,
        hidden: Float[Array, "b n d"],
        tokens: Mapping[str, Array],
        noise: Mapping[str, Any],
        plan: Plan,
    ) -> Float[Array, "b n"]:
        """Returns the loss of every token, by the head of its kind."""
        total = jnp.zeros(hidden.shape[:2])
        for name in self.names:
            own = np.array([kind == name for kind in self.kinds])
            loss = self.head_of(name).loss(hidden, tokens[name], noise[name], plan)
            total = jnp.where(own, loss, total)
        return total

    def draw(self, hidden: Float[Array, "b m d"], turn: Turn) -> dict[str, Array]:
        """Returns drawn tokens of all kinds; those of kinds that no place of the turn has are 0.

        Settings of the turn are a dict by kind. Where places are traced, all heads draw.
        """
        here = set(self.kinds)
        if isinstance(turn.place, np.ndarray):  # known when the program is traced
            here = {self.kinds[place] for place in np.asarray(turn.place).reshape(-1)}
        drawn = {}
        for name in self.names:
            known = turn.known
            if known is not None:
                known = known._replace(tokens=known.tokens[name])
            own = turn._replace(known=known, settings=turn.settings[name])
            draw = functools.partial(self.head_of(name).draw, turn=own)
            if name in here:
                drawn[name] = draw(hidden)
            else:
                drawn[name] = jax.tree.map(jnp.zeros_like, jax.eval_shape(draw, hidden))
        return drawn
