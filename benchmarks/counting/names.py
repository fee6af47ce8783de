"""Which values of a program are the same: those made by the same operations of the same values.

A name is a hash of how a value was made. It is given to each example of a batch by itself: the
leading axis is cut into equal groups of rows, and a group has the name of the value that it would
be alone. So the class of an image costs once whether it stands in a pass with "no class" or not.
Loops with as many turns are one here: what follows from the turn in the same way is the same in
all of them, as the embedded times of a solver are for every entity.
"""

from typing import Any

from benchmarks.counting.known import ELEMENTWISE
from benchmarks.counting.values import FEW, Value, new_names

Names = tuple[int, ...]

SIZES = ("shape", "new_sizes", "sharding")
"""Parameters of operations that repeat the shape of the result."""

KEEPING: dict[str, Any] = {
    "reshape": lambda params: True,
    "concatenate": lambda params: params["dimension"] != 0,
    "transpose": lambda params: params["permutation"][0] == 0,
    "squeeze": lambda params: 0 not in params["dimensions"],
    "reduce_sum": lambda params: 0 not in params["axes"],
    "reduce_max": lambda params: 0 not in params["axes"],
}
"""Operations that may keep rows apart, and whether they do."""


def named(equation: Any, values: list[Value]) -> list[Names]:
    """Returns the names of the results of an operation."""
    shapes = [variable.aval.shape for variable in equation.outvars]
    if len(shapes) == 1 and shapes[0]:
        found = _by_rows(equation, values, shapes[0])
        if found is not None:
            return [found]
    own = id(equation) if equation.effects else None
    made = equation.primitive.name, str(equation.params), own, *(value.names for value in values)
    return [new_names((made, number), shape) for number, shape in enumerate(shapes)]


def _by_rows(equation: Any, values: list[Value], shape: tuple[int, ...]) -> Names | None:
    """Returns a name for each group of rows of the one result; None where rows are mixed."""
    name, params = equation.primitive.name, equation.params
    if name == "slice":
        return _cut(values[0], params, shape)
    if name == "concatenate" and params["dimension"] == 0:
        sizes = {value.shape[0] / len(value.names) for value in values}
        return sum((value.names for value in values), ()) if len(sizes) == 1 else None
    apart = _apart(name, params, values, shape)
    if apart is None:
        return None
    groups = [len(value.names) for value, own in zip(values, apart, strict=True) if own]
    repeated = shape[0] if name == "broadcast_in_dim" and 0 < shape[0] <= FEW else 1
    count = max(groups, default=repeated)
    if shape[0] % count or any(count % each for each in groups):
        return None
    given = {key: value for key, value in params.items() if key not in SIZES}
    made, found = (name, str(given), shape[0] // count, shape[1:]), []
    for row in range(count):
        pairs = zip(values, apart, strict=True)
        found.append(hash((made, *(_part(v, row, count) if own else v.names for v, own in pairs))))
    return tuple(found)


def _part(value: Value, row: int, count: int) -> Any:
    """Returns the names of one of `count` groups of rows."""
    if len(value.names) == count:
        return (value.names[row],)
    return value.names, row, count


def _apart(name: str, params: Any, values: list[Value], shape: tuple[int, ...]) -> Any:
    """Returns for each operand whether its rows are those of the result; None if rows are mixed."""
    if name in ELEMENTWISE:
        return [len(v.shape) == len(shape) and v.shape[0] == shape[0] for v in values]
    if name == "broadcast_in_dim":
        first = params["broadcast_dimensions"][:1] == (0,) and values[0].shape[0] == shape[0]
        return [first]
    if name == "dot_general":
        (left, _), (batch, other) = params["dimension_numbers"]
        if batch:
            return [True, True] if (batch[0], other[0]) == (0, 0) else None
        return [True, False] if 0 not in left and len(left) < len(values[0].shape) else None
    if name == "gather":
        numbers = params["dimension_numbers"]
        alone = not numbers.operand_batching_dims and 0 not in numbers.offset_dims
        return [False, True] if alone else None
    keeps = name in KEEPING and all(v.shape for v in values) and KEEPING[name](params)
    return [True] * len(values) if keeps else None


def _cut(value: Value, params: Any, shape: tuple[int, ...]) -> Names | None:
    """Returns the names of a slice; None where it cuts through a group of rows."""
    size = value.shape[0] // len(value.names)
    first, last = params["start_indices"][0], params["limit_indices"][0]
    if params["strides"] or first % size or last % size:
        return None
    own = value.names[first // size : last // size]
    if shape[1:] == value.shape[1:]:
        return own
    made = "slice", params["start_indices"][1:], size, shape[1:]
    return tuple(hash((made, name)) for name in own)
