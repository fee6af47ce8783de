"""Randomness: every key follows from a seed and a purpose, and no generator has a state."""

from typing import Literal

import jax

from jaxar.typing import Array

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
