"""The engine that turns a released state dict into a parameter tree, by a table of rows.

A row names a key of the release and a path of ours. "{i}" in both stands for the layer: ours keeps
all layers in one array with a leading axis. Several rows may name one key, such as that of a fused
query, key and value, each taking its part. Every key must be used and every leaf filled, or one
error lists everything that is unused, missing or misshapen. That is decided by shapes alone; only
then is each tensor read, once, into its place: memory holds the parameters and the tensors in work.
"""

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from jaxar.tree import nest, paths

Transform = Callable[[np.ndarray, tuple[int, ...]], np.ndarray]

WORKERS = 4
"""Tensors read and laid out at a time: reading, checksums and copies run without Python's lock."""
ALIGNMENT = 64
"""Bytes: XLA's rule for the arrays of others."""
PANEL = 64
"""Outputs copied together: a transposed panel that stays in the processor's cache, 4 times faster
than the whole (2.4 against 0.6 GB/s for a 4608 x 768 kernel)."""


class WeightsError(ValueError):
    """Weights cannot be used: the text says what is wrong, in which file, and what to do."""


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

    A convolution of one pixel, (out, in, 1, 1), is the same map.

    Raises:
      ValueError: no split of our axes into in and out has these sizes.
    """
    splits = [(math.prod(shape[i:]), math.prod(shape[:i])) for i in range(1, len(shape))]
    theirs = array.shape[:2] if array.shape[2:] == (1, 1) else array.shape
    if theirs not in splits:
        raise ValueError(f"{array.shape} is not any of {splits}")
    return array.reshape(theirs).T.reshape(shape)


def convolution(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a PyTorch (out, in, h, w) weight as our (h, w, in, out) kernel.

    Raises:
      ValueError: ours does not have these sizes.
    """
    if array.ndim != 4 or (kernel := array.transpose(2, 3, 1, 0)).shape != shape:
        raise ValueError(f"{array.shape} is not {shape}")
    return kernel


class Row(NamedTuple):
    """One line of a conversion table.

    Attributes:
      theirs: Key of the release, "{i}" for the layer.
      ours: Path of our leaf; the layers of "{i}" are its leading axis.
      transform: (array, our shape of one layer) -> array of that shape. It sees an array of zeros
        first, by which the shapes are checked; what it returns may be a view.
      part: Entry of our first axis, after that of the layers, which the key fills; None for all.
    """

    theirs: str
    ours: str
    transform: Transform = same
    part: int | None = None


class _Place(NamedTuple):
    """Where a tensor of the release goes: a leaf, or one layer or part of it."""

    row: Row
    index: tuple[int, ...]
    shape: tuple[int, ...]


def convert(
    state: Mapping[str, Any], rows: Sequence[Row], template: Any, ignore: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns the parameters that a state dict holds, as float32 NumPy arrays.

    Args:
      state: Arrays by key: a `StateFile`, or anything `np.asarray` takes in a dict.
      rows: The table.
      template: Parameter tree of arrays or shapes: what must be filled.
      ignore: Patterns of keys that hold no parameter, such as buffers.

    Raises:
      WeightsError: with one line for each unused, missing and misshapen key.
    """
    shapes = getattr(state, "shapes", None)
    if shapes is None:
        shapes = {key: tuple(np.shape(array)) for key, array in state.items()}
    wanted = paths(template)
    places, problems = _match(shapes, rows, wanted, ignore)
    if problems:
        raise WeightsError("These weights do not fit the model:\n  " + "\n  ".join(problems))
    leaves = {path: _empty(tuple(leaf.shape)) for path, leaf in wanted.items()}

    def fill(key: str) -> None:
        tensor = np.asarray(state[key]).astype(np.float32, copy=False)
        for row, index, shape in places[key]:
            _lay(row.transform(tensor, shape), leaves[row.ours][*index, ...])

    with ThreadPoolExecutor(WORKERS) as pool:  # in the state's order: that of the file
        for _ in pool.map(fill, [key for key in shapes if key in places]):
            pass
    return nest(leaves)


def _match(
    shapes: Mapping[str, tuple[int, ...]],
    rows: Sequence[Row],
    wanted: Mapping[str, Any],
    ignore: Sequence[str],
) -> tuple[dict[str, list[_Place]], list[str]]:
    """Returns the places of each key that has some, and a line for all that does not fit."""
    places: dict[str, list[_Place]] = {}
    problems = []
    for row in rows:
        if row.ours not in wanted:
            problems.append(f"the table's path {row.ours} is not in the model")
            continue
        ours = tuple(wanted[row.ours].shape)
        part = () if row.part is None else (row.part,)
        for layer in _layers(row, ours):
            key = row.theirs.replace("{i}", str(*layer))
            if key not in shapes:
                problems.append(f"missing key {key}")
                continue
            index = (*layer, *part)
            theirs, place = shapes[key], _Place(row, index, ours[len(index) :])
            places.setdefault(key, []).append(place)
            if not _fits(theirs, place):
                problems.append(f"key {key} has shape {theirs}, which does not fit {place.shape}")
    problems += [
        f"unused key {key}"
        for key in shapes
        if key not in places and not any(fnmatch.fnmatchcase(key, pattern) for pattern in ignore)
    ]
    problems = list(dict.fromkeys(problems))  # a missing key that several rows name, once
    return places, problems + _unfilled(rows, wanted)


def _layers(row: Row, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Returns the layers that a row is about; one empty tuple where it is about no layer."""
    return [(i,) for i in range(shape[0])] if "{i}" in row.theirs else [()]


def _unfilled(rows: Sequence[Row], wanted: Mapping[str, Any]) -> list[str]:
    """Returns a line for each leaf, and each part of a leaf, that no row is about."""
    lines = []
    for path, leaf in wanted.items():
        own = [row for row in rows if row.ours == path]
        parts = [row.part for row in own]
        if not own:
            lines.append(f"nothing fills {path}")
        elif None not in parts:
            count = leaf.shape["{i}" in own[0].theirs]
            lines += [f"nothing fills {path}[{i}]" for i in range(count) if i not in parts]
    return lines


def _fits(theirs: tuple[int, ...], place: _Place) -> bool:
    """Returns whether a tensor of this shape becomes what its place holds."""
    zeros = np.broadcast_to(np.float32(0), theirs)  # one number, whatever the shape
    try:
        return place.row.transform(zeros, place.shape).shape == place.shape
    except ValueError:
        return False


def _empty(shape: tuple[int, ...]) -> np.ndarray:
    """Returns a float32 array that begins where JAX can take it over on a CPU without a copy."""
    size = 4 * math.prod(shape)
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(np.float32).reshape(shape)


def _lay(array: np.ndarray, out: np.ndarray) -> None:
    """Copies an array, often a transposed view, into a contiguous one of its shape."""
    if array.flags.c_contiguous or not array.ndim:
        out[...] = array
        return
    merged: list[int] = []  # axes that are one run in the view are one loop
    run = 0
    for size, stride in zip(array.shape, array.strides, strict=True):
        if size == 1:
            continue
        if merged and run == size * stride:
            merged[-1] *= size
        else:
            merged.append(size)
        run = stride
    array, out = array.reshape(merged), out.reshape(merged)
    for start in range(0, merged[-1], PANEL):
        panel = slice(start, start + PANEL)
        out[..., panel] = array[..., panel]
