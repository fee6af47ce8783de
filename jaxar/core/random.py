"""Randomness: every key follows from a seed and a purpose, and no generator has a state.

In training a key follows from the seed and the step; in sampling from the seed, the number of the
example, the entity and a number.
"""

import dataclasses
from typing import Any, Literal

import jax

from jaxar.typing import Array, Float, Int

PURPOSES = ("init", "train", "sample", "rounding")
LARGEST_SEED = 2**31 - 2


def key_for(purpose: Literal["init", "train", "sample", "rounding"], seed: int | Array) -> Array:
    """Returns the key of a purpose; keys of two purposes never meet.

    Args:
      purpose: Initial values, steps of training (fold in the step), samples (fold in the number of
        the example), or the rounding of what a step keeps (fold in the step).
      seed: In [0, LARGEST_SEED]; may be traced.
    """
    return jax.random.fold_in(jax.random.key(seed), PURPOSES.index(purpose))


@dataclasses.dataclass(frozen=True)
class Draws:
    """Independent random numbers for each example, whatever batch it is drawn in.

    Attributes:
      keys: (b,) one key an example.
    """

    keys: Array

    @property
    def examples(self) -> int:
        """Number of examples."""
        return len(self.keys)

    def at(self, entity: Any) -> "Draws":
        """Returns the draws of one entity; its number may be traced."""
        return Draws(jax.vmap(lambda key: jax.random.fold_in(key, entity))(self.keys))

    def normal(self, number: Any, shape: tuple[int, ...]) -> Float[Array, "b ..."]:
        """Returns the `number`-th (b, *shape) draw of N(0, 1)."""
        return self._each(jax.random.normal, number, shape)

    def gumbel(self, number: Any, shape: tuple[int, ...]) -> Float[Array, "b ..."]:
        """Returns the `number`-th (b, *shape) draw of the standard Gumbel distribution."""
        return self._each(jax.random.gumbel, number, shape)

    def permutation(self, count: int) -> Int[Array, "b n"]:
        """Returns for each example its own order of `count` things."""
        return jax.vmap(lambda key: jax.random.permutation(key, count))(self.keys)

    def _each(self, distribution: Any, number: Any, shape: tuple[int, ...]) -> Array:
        def one(key: Array) -> Array:
            return distribution(jax.random.fold_in(key, number), shape)

        return jax.vmap(one)(self.keys)
