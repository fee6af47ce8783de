"""What an operation costs by itself; a multiply and an add are 2."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.counting.values import Amount, Value, summed


def cost(equation: Any, values: list[Value], depth: int) -> Amount:
    """Returns the operations of an equation whatever is read of its result.

    0 for matrix products whose factors have no known zero: see `cost_of_each`.

    Raises:
      ValueError: a kernel does not say its cost.
    """
    known = COSTS.get(equation.primitive.name)
    return known(equation, values, depth) if known else 0.0


def cost_of_each(equation: Any, values: list[Value]) -> float:
    """Returns the operations of an element of a matrix product without known zeros, else 0."""
    if equation.primitive.name != "dot_general" or any(map(_has_zeros, values)):
        return 0.0
    (contracted, _), _ = equation.params["dimension_numbers"]
    return 2.0 * math.prod(values[0].shape[axis] for axis in contracted)


def _has_zeros(value: Value) -> bool:
    return value.known is not None and bool((value.known == 0).any())


def _dot(equation: Any, values: list[Value], depth: int) -> Amount:
    """Only pairs without a zero count, summed over what is contracted and over the batch."""
    if not any(map(_has_zeros, values)):
        return 0.0
    contracted, batch = equation.params["dimension_numbers"]
    shared = [(*b, *c) for b, c in zip(batch, contracted, strict=True)]
    left, right = (_alive(v, depth, axes) for v, axes in zip(values, shared, strict=True))
    size = math.prod(values[0].shape[axis] for axis in shared[0])
    return 2.0 * summed(left * right, depth, size)


def _alive(value: Value, depth: int, kept: tuple[int, ...]) -> Any:
    """Returns how many elements may differ from 0, for each place along the axes that are kept.

    The result has the axes of loops, then those kept; axes of length 1 stand for any length.
    """
    alive = np.ones((1,) * (depth + len(value.shape)))
    if value.known is not None:
        alive = value.known != 0
    others = tuple(axis for axis in range(len(value.shape)) if axis not in kept)
    alive = alive.transpose(*range(depth), *(depth + axis for axis in (*kept, *others)))
    return summed(alive, depth + len(kept), math.prod(value.shape[axis] for axis in others))


def _convolution(equation: Any, values: list[Value], depth: int) -> Amount:
    """What meets padding, or the holes of a dilation, does not count."""
    params, (data, kernel) = equation.params, values
    numbers, out = params["dimension_numbers"], equation.outvars[0].aval.shape
    taps = _alive(kernel, depth, numbers.rhs_spec[2:])
    for axis in range(len(out) - 2):
        met = _met(
            data.shape[numbers.lhs_spec[2 + axis]],
            kernel.shape[numbers.rhs_spec[2 + axis]],
            out[numbers.out_spec[2 + axis]],
            stride=params["window_strides"][axis],
            padding=params["padding"][axis][0],
            spread=params["lhs_dilation"][axis],
            dilation=params["rhs_dilation"][axis],
        )
        shape = [1] * taps.ndim
        shape[depth + axis] = len(met)
        taps = taps * met.reshape(shape)
    return 2.0 * out[numbers.out_spec[0]] * taps.sum(axis=tuple(range(depth, taps.ndim)))


def _met(
    size: int, kernel: int, out: int, *, stride: int, padding: int, spread: int, dilation: int
) -> np.ndarray:
    """Returns for each place of a kernel the places of the result for which it meets an element."""
    at = np.arange(out)[:, None] * stride - padding + np.arange(kernel)[None] * dilation
    return ((at >= 0) & (at <= (size - 1) * spread) & (at % spread == 0)).sum(0)


def _fourier(equation: Any, values: list[Value], depth: int) -> Amount:
    """5 n log2 n for n complex numbers, half of it for real ones: what radix 2 takes."""
    sizes = equation.params["fft_lengths"]
    n, ends = math.prod(sizes), (equation.invars[0].aval, equation.outvars[0].aval)
    real = not all(jnp.issubdtype(end.dtype, jnp.complexfloating) for end in ends)
    rows = math.prod(values[0].shape[: -len(sizes)])
    return rows * 5.0 * n * math.log2(n) / (2 if real else 1)


def _kernel(equation: Any, values: list[Value], depth: int) -> Amount:
    said = equation.params["cost_estimate"]
    if said is None:
        name = equation.params.get("name") or "without a name"
        raise ValueError(
            f"The kernel {name} does not say its cost: give its pallas_call a cost_estimate."
        )
    return float(said.flops)


COSTS = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "fft": _fourier,
    "pallas_call": _kernel,
}
"""Operations that cost something."""
