"""A value of a traced program, as far as it can be told before the program runs."""

import math
from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

Amount = np.ndarray | float
"""Elements or operations, with an axis for each loop around; a number where all turns are alike."""

FEW = 8
"""Rows of a leading axis that have names of their own where they are new or repeated."""


class Debt(NamedTuple):
    """A product whose elements are paid for when something but an elementwise operation reads them.

    Attributes:
      names: Of the product.
      loops: Loops that change it, by their number among those around, the outermost first.
      each: Operations of one element.
    """

    names: tuple[int, ...]
    loops: frozenset[int]
    each: float


class Value(NamedTuple):
    """What can be told of a value.

    Attributes:
      shape: Of the value in one turn of all loops around it.
      names: One for each of the equal groups into which the leading axis is cut; see `names`.
      loops: Loops that change it, by their number among those around, the outermost first.
      known: Its elements, with an axis for each loop around it in front; any axis along which
        nothing changes may have length 1. NaN where an element of a float array is not known;
        None where none is.
      debts: Products of which it is an elementwise function, and which are not paid for.
    """

    shape: tuple[int, ...]
    names: tuple[int, ...]
    loops: frozenset[int] = frozenset()
    known: np.ndarray | None = None
    debts: tuple[Debt, ...] = ()


def constant(array: Any, depth: int) -> Value:
    """Returns the value of an array inside `depth` loops. Nothing is known of a random key."""
    if is_key(array.dtype):
        return Value(array.shape, (hash(("key", id(array))),))
    array = np.asarray(array)
    name = hash((array.shape, str(array.dtype), array.tobytes()))
    return Value(array.shape, (name,), known=array.reshape((1,) * depth + array.shape))


def new_names(seed: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns names that follow from a seed: one for each row, or one for all of many rows."""
    rows = shape[0] if shape and 0 < shape[0] <= FEW else 1
    return tuple(hash((seed, row)) for row in range(rows))


def all_loops(values: Any) -> frozenset[int]:
    """Returns the loops in which any of the values changes."""
    return frozenset().union(*(value.loops for value in values))


def is_key(dtype: Any) -> bool:
    """Returns whether a dtype is that of random keys."""
    return jnp.issubdtype(dtype, jax.dtypes.extended)


def can_miss(dtype: Any) -> bool:
    """Returns whether arrays of a dtype can hold NaN, for elements that are not known."""
    return jnp.issubdtype(dtype, jnp.floating)


def complete(known: np.ndarray | None) -> TypeGuard[np.ndarray]:
    """Returns whether all elements are known."""
    return known is not None and not (can_miss(known.dtype) and np.isnan(known).any())


def unknown_elements(value: Value, depth: int) -> Amount:
    """Returns how many elements are not known, with an axis for each loop."""
    size = math.prod(value.shape)
    if value.known is None:
        return float(size)
    if complete(value.known):
        return 0.0
    return summed(np.isnan(value.known), depth, size)


def summed(array: Amount, first: int, size: int) -> Amount:
    """Returns the sums over all axes from the first on, which stand for `size` elements."""
    array = np.asarray(array)
    axes = tuple(range(first, array.ndim))
    return array.sum(axis=axes) * (size / math.prod(array.shape[first:]))
