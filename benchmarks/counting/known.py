"""What is known of the results of an operation before the program runs.

What follows from constants and counters of loops is computed, for all turns of the loops at once.
Of float arrays a part may be known: the logits that a mask sets to minus infinity, and the weights
that are 0 for it.
"""

import math
from typing import Any

import jax
import numpy as np

from benchmarks.counting.values import Value, can_miss, complete, is_key
from jaxar.nn.attention import MOST

LARGEST = MOST
"""Elements of the largest array that is computed. Of masks with more, attention itself says which
share is visible."""

NUMPY: dict[str, Any] = {
    **{"add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply},
    **{"max": np.maximum, "min": np.minimum, "neg": np.negative, "abs": np.abs, "sign": np.sign},
    **{"exp": np.exp, "log": np.log, "sin": np.sin, "cos": np.cos, "tanh": np.tanh},
    **{"sqrt": np.sqrt, "square": np.square, "floor": np.floor, "ceil": np.ceil},
    **{"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal},
    **{"eq": np.equal, "ne": np.not_equal, "is_finite": np.isfinite},
    **{"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert},
    **{"convert_element_type": np.asarray, "copy": np.asarray, "name": np.asarray},
    "select_n": lambda which, *cases: np.choose(which.astype(int), cases),
}
"""Elementwise operations that NumPy computes without compiling anything."""

OTHER = """
acos acosh asin asinh atan atan2 atanh cbrt clamp conj cos cosh digamma div erf erf_inv erfc exp2
expm1 imag integer_pow lgamma log1p logistic nextafter pow real reduce_precision rem round rsqrt
shift_left shift_right_arithmetic shift_right_logical sinh tan
"""
ELEMENTWISE = frozenset((*NUMPY, *OTHER.split()))
"""Operations on each element by itself. Axes of operands may be of length 1, or absent of all."""

PARTLY = ("mul", "div", "add", "add_any", "sub", "select_n")
"""Those of which an element may be known where an operand's is not."""

MOVING = ("reshape", "squeeze", "slice", "rev", "concatenate", "dynamic_slice", "gather")
"""Operations that move elements, known or not."""


def known_results(equation: Any, values: list[Value], depth: int) -> list[np.ndarray | None]:
    """Returns for each result its known elements, as `Value.known`."""
    name, given = equation.primitive.name, [value.known for value in values]
    results = [variable.aval for variable in equation.outvars]
    if any(is_key(result.dtype) for result in results):
        return [None] * len(results)
    if name == "iota":
        return [_counted(depth=depth, **equation.params)]
    if name in ELEMENTWISE:
        return [_elementwise(equation, given, depth)]
    arrays = [array for array in given if array is not None]
    if len(arrays) < len(given):
        return [None] * len(results)
    if name == "broadcast_in_dim":
        own = [1] * len(results[0].shape)
        for axis, place in enumerate(equation.params["broadcast_dimensions"]):
            own[place] = arrays[0].shape[depth + axis]
        return [arrays[0].reshape((*arrays[0].shape[:depth], *own))]
    if name == "transpose":
        moved = [depth + axis for axis in equation.params["permutation"]]
        return [arrays[0].transpose(*range(depth), *moved)]
    if name in MOVING or all(map(complete, arrays)):
        return _computed(equation, arrays, depth)
    return [None] * len(results)


def _counted(shape: tuple[int, ...], dimension: int, dtype: Any, depth: int, **_: Any) -> Any:
    own = [1] * (depth + len(shape))
    own[depth + dimension] = shape[dimension]
    return np.arange(shape[dimension]).astype(dtype).reshape(own)


def _elementwise(equation: Any, given: list[Any], depth: int) -> np.ndarray | None:
    name, result = equation.primitive.name, equation.outvars[0].aval
    there = [array is not None for array in given]
    partly = can_miss(result.dtype) and (any(there) if name in PARTLY else all(there))
    if not partly and not all(map(complete, given)):
        return None
    arrays = [
        _aligned(array, variable.aval.dtype, depth, len(result.shape))
        for array, variable in zip(given, equation.invars, strict=True)
    ]
    if math.prod(np.broadcast_shapes(*(array.shape for array in arrays))) > LARGEST:
        return None
    arrays = np.broadcast_arrays(*arrays)
    with np.errstate(all="ignore"):
        compute = NUMPY.get(name) or (lambda *a: equation.primitive.bind(*a, **equation.params))
        found = np.asarray(compute(*arrays)).astype(result.dtype)
    if not can_miss(result.dtype):
        return found
    found = _certain(name, arrays, found, chosen=given[0] is not None)
    return None if np.isnan(found).all() else found


def _aligned(array: np.ndarray | None, dtype: Any, depth: int, axes: int) -> np.ndarray:
    """Returns an operand with all axes of the result; NaN, or False, where nothing is known."""
    if array is None:
        return np.full((1,) * (depth + axes), np.nan if can_miss(dtype) else False, dtype)
    missing = (1,) * (depth + axes - array.ndim)
    return array.reshape((*array.shape[:depth], *missing, *array.shape[depth:]))


def _certain(name: str, operands: Any, found: np.ndarray, *, chosen: bool) -> np.ndarray:
    """Returns the result with what is certain although an operand is not known.

    0 times or over anything is 0; minus infinity stays what is added to it; of equal cases any may
    be chosen.
    """
    first, second = operands[0], operands[1 if len(operands) > 1 else 0]
    if name == "mul":
        return np.where((first == 0) | (second == 0), found.dtype.type(0), found)
    if name == "div":
        return np.where(first == 0, found.dtype.type(0), found)
    if name in ("add", "add_any"):
        lowest = (first == -np.inf) | (second == -np.inf)
        return np.where(lowest, found.dtype.type(-np.inf), found)
    if name == "sub":
        return np.where(first == -np.inf, first, found)
    if name == "select_n" and not chosen:
        same = np.all([case == second for case in operands[2:]], axis=0)
        return np.where(same, second, found.dtype.type(np.nan))
    return found


def _computed(equation: Any, arrays: list[np.ndarray], depth: int) -> list[np.ndarray | None]:
    """Returns the results of an operation on known arrays, in each turn of the loops around it."""
    shapes = [variable.aval.shape for variable in equation.invars]
    results = [variable.aval.shape for variable in equation.outvars]
    turns = np.broadcast_shapes((1,) * depth, *(array.shape[:depth] for array in arrays))
    sizes = list(map(math.prod, (*shapes, *results)))
    if not all(sizes) or max(sizes) * math.prod(turns) > LARGEST:
        return [None] * len(results)

    def run(*arrays: Any) -> Any:
        found = equation.primitive.bind(*arrays, **equation.params)
        return found if equation.primitive.multiple_results else [found]

    whole = [
        np.broadcast_to(array, turns + shape).reshape(-1, *shape)
        for array, shape in zip(arrays, shapes, strict=True)
    ]
    found = run(*(x[0] for x in whole)) if math.prod(turns) == 1 else jax.vmap(run)(*whole)
    return [np.asarray(x).reshape(turns + y) for x, y in zip(found, results, strict=True)]
