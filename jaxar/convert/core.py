"""The engine that turns a released state dict into a parameter tree, by a table of rows.

A row names a key of the release and a path of ours. "{i}" in both stands for the layer: ours keeps
all layers in one array with a leading axis. Every key must be used and every leaf filled, or one
error lists everything that is unused, missing or misshapen.
"""

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxar.tree import nest, paths

Transform = Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


def same(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the array in our shape: leading axes of one dropped, or a flat bias split up.

    Raises:
      ValueError: it is neither.
    """
    theirs = array.shape
    while len(theirs) > len(shape) and theirs[0] == 1:
        theirs = theirs[1:]
    if theirs not in (shape, (math.prod(shape),)):
        raise ValueError(f"{array.shape} is not {shape}")
    return array.reshape(shape)


def linear(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a PyTorch (out, in) weight as our (in, out) kernel, axes split as ours are.

    Raises:
      ValueError: no split of our axes into in and out has these sizes.
    """
    splits = [(math.prod(shape[i:]), math.prod(shape[:i])) for i in range(1, len(shape))]
    if array.shape not in splits:
        raise ValueError(f"{array.shape} is not any of {splits}")
    return array.T.reshape(shape)


class Row(NamedTuple):
    """One line of a conversion table.

    Attributes:
      theirs: Key of the release, "{i}" for the layer.
      ours: Path of our leaf; the layers of "{i}" are its leading axis.
      transform: (array, our shape of one layer) -> array of that shape.
    """

    theirs: str
    ours: str
    transform: Transform = same


def convert(
    state: Mapping[str, Any], rows: Sequence[Row], template: Any, ignore: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns the parameters that a state dict holds, as float32 NumPy arrays.

    Args:
      state: Arrays by key; anything `np.asarray` takes.
      rows: The table.
      template: Parameter tree of arrays or shapes: what must be filled.
      ignore: Patterns of keys that hold no parameter, such as buffers.

    Raises:
      ValueError: with one line for each unused, missing and misshapen key.
    """
    wanted, unused, filled, problems = paths(template), dict(state), {}, []
    for row in rows:
        if row.ours not in wanted:
            problems.append(f"the table's path {row.ours} is not in the model")
            continue
        leaf = wanted[row.ours]
        layered = "{i}" in row.theirs
        shape = tuple(leaf.shape[1:] if layered else leaf.shape)
        layers = range(leaf.shape[0]) if layered else [None]
        parts = []
        for i in layers:
            key = row.theirs if i is None else row.theirs.replace("{i}", str(i))
            if key not in unused:
                problems.append(f"missing key {key}")
                continue
            array = np.asarray(unused.pop(key))
            try:
                parts.append(row.transform(array, shape).astype(np.float32))
            except ValueError:
                problems.append(f"key {key} has shape {array.shape}, which does not fit {shape}")
        if len(parts) == len(layers):
            filled[row.ours] = np.stack(parts) if layered else parts[0]
    problems += [
        f"unused key {key}"
        for key in unused
        if not any(fnmatch.fnmatchcase(key, pattern) for pattern in ignore)
    ]
    covered = {row.ours for row in rows}
    problems += [f"nothing fills {path}" for path in wanted if path not in covered]
    if problems:
        raise ValueError("These weights do not fit the model:\n  " + "\n  ".join(problems))
    return nest({path: filled[path] for path in wanted})
