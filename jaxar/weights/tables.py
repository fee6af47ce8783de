"""Conversion of a released state dict to a parameter tree, by a table of rows.

A row names a key of the release and a path of ours. "{i}" in both is the layer: our tree stores all
layers in one array with a leading axis. Several rows may name one key, such as a fused query, key
and value, and each takes its part. Every key must be used and every leaf filled; otherwise one
error lists everything that is unused, missing or misshapen. This is checked by shapes only. Then
each tensor is read once, into its place: memory holds the parameters and the tensors in progress.
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
"""Tensors converted at a time: reading, checksums and copies run without Python's lock."""
ALIGNMENT = 64
"""Alignment in bytes that XLA requires to use a host array without a copy."""
PANEL = 64
"""Outputs copied together: a transposed panel that fits the processor's cache. It is 4 times faster
than copying the whole (2.4 against 0.6 GB/s for a 4608 x 768 kernel)."""


class WeightsError(ValueError):
    """Weights cannot be used; the message says what is wrong, in which file, and what to do."""


def same(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the array in our shape: drops leading axes of size 1, or splits a flat bias.

    Raises:
      ValueError: neither gives our shape.
    """
    theirs = array.shape
    while len(theirs) > len(shape) and theirs[0] == 1:
        theirs = theirs[1:]
    if theirs not in (shape, (math.prod(shape),)):
        raise ValueError(f"{array.shape} is not {shape}")
    return array.reshape(shape)


def linear(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a PyTorch (out, in) weight as our (in, out) kernel, with our split of the axes.

    A 1 x 1 convolution, (out, in, 1, 1), is the same map.

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
      theirs: Key of the release, with "{i}" for the layer.
      ours: Path of our leaf; the layers of "{i}" are its leading axis.
      transform: (array, our shape of one layer) -> array of that shape, possibly a view. It is
        first called with zeros, to check the shapes.
      part: Index in our first axis, after the layer axis, that the key fills; None for all.
    """

    theirs: str
    ours: str
    transform: Transform = same
    part: int | None = None


class _Place(NamedTuple):
    """The destination of a tensor of the release: a leaf, or one layer or part of it."""

    row: Row
    index: tuple[int, ...]
    shape: tuple[int, ...]


def convert(
    state: Mapping[str, Any], rows: Sequence[Row], template: Any, ignore: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns the parameters of a state dict, as float32 NumPy arrays.

    Args:
      state: Arrays by key: a `StateFile`, or a dict of values that `np.asarray` takes.
      rows: The table.
      template: Parameter tree to fill, of arrays or shapes.
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

    with ThreadPoolExecutor(WORKERS) as pool:  # in the order of the file
        for _ in pool.map(fill, [key for key in shapes if key in places]):
            pass
    return nest(leaves)


def _match(
    shapes: Mapping[str, tuple[int, ...]],
    rows: Sequence[Row],
    wanted: Mapping[str, Any],
    ignore: Sequence[str],
) -> tuple[dict[str, list[_Place]], list[str]]:
    """Returns the places of each used key, and a line for each problem."""
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
    problems = list(dict.fromkeys(problems))  # several rows may name one missing key
    return places, problems + _unfilled(rows, wanted)


def _layers(row: Row, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Returns the layer indices that a row fills; one empty tuple if it has no layers."""
    return [(i,) for i in range(shape[0])] if "{i}" in row.theirs else [()]


def _unfilled(rows: Sequence[Row], wanted: Mapping[str, Any]) -> list[str]:
    """Returns a line for each leaf, and each part of a leaf, that no row fills."""
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
    """Returns whether a tensor of this shape transforms to the shape of its place."""
    zeros = np.broadcast_to(np.float32(0), theirs)  # takes 4 bytes for any shape
    try:
        return place.row.transform(zeros, place.shape).shape == place.shape
    except ValueError:
        return False


def _empty(shape: tuple[int, ...]) -> np.ndarray:
    """Returns a float32 array, aligned so that JAX can use it on a CPU without a copy."""
    size = 4 * math.prod(shape)
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(np.float32).reshape(shape)


def _lay(array: np.ndarray, out: np.ndarray) -> None:
    """Copies an array, often a transposed view, into a contiguous array of its shape."""
    if array.flags.c_contiguous or not array.ndim:
        out[...] = array
        return
    merged: list[int] = []  # axes that are contiguous with each other become one
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
