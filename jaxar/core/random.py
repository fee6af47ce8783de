"""Random numbers of sampling: each follows from an example's key, the entity and a number."""

import dataclasses
from typing import Any

import jax

from jaxar.typing import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Draws:
    """Independent numbers for each example, whatever batch it is drawn in.

    Attributes:
      keys: (b,) one key an example.
    """

    keys: Array

    def at(self, entity: Any) -> "Draws":
        """Returns the draws of one entity; its number may be traced."""
        return Draws(jax.vmap(lambda key: jax.random.fold_in(key, entity))(self.keys))

    def normal(self, number: Any, shape: tuple[int, ...]) -> Float[Array, "b ..."]:
        """Returns the `number`-th (b, *shape) draw of N(0, 1)."""
        return self._each(jax.random.normal, number, shape)

    def gumbel(self, number: Any, shape: tuple[int, ...]) -> Float[Array, "b ..."]:
        """Returns the `number`-th (b, *shape) draw of the standard Gumbel law."""
        return self._each(jax.random.gumbel, number, shape)

    def permutation(self, count: int) -> Int[Array, "b n"]:
        """Returns for each example its own order of `count` things."""
        return jax.vmap(lambda key: jax.random.permutation(key, count))(self.keys)

    def _each(self, law: Any, number: Any, shape: tuple[int, ...]) -> Array:
        return jax.vmap(lambda key: law(jax.random.fold_in(key, number), shape))(self.keys)
