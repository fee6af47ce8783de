"""The mesh, and the sharding of trees over it by the table of `axes`.

The mesh has four axes, the slowest network first: slices (TPU slices, joined by the data-centre
network), data, fsdp and tensor. A batch is sharded over the first three.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxar.checks import Rule, require, whole
from jaxar.errors import FieldError
from jaxar.parallel import axes
from jaxar.parallel.axes import BATCH
from jaxar.parallel.axes import MESH as MESH_AXES
from jaxar.tree import paths


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSizes:
    """Devices along each axis of the mesh; the fields of `config.mesh`.

    Attributes:
      slices: TPU slices, joined by the data-centre network.
      data: Copies of the parameters, each with its share of the batch. -1, for one axis, takes the
        devices that remain.
      fsdp: Shares of the parameters, and of the batch.
      tensor: Shares of attention heads and inner units.
    """

    slices: int = 1
    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        size = Rule(lambda n: n == -1 or whole(1).fits(n), "-1 (what remains) or at least 1")
        require(vars(self), slices=size, data=size, fsdp=size, tensor=size)
        rest = [axis for axis, size in vars(self).items() if size == -1]
        if len(rest) > 1:
            raise FieldError(f"{' and '.join(rest)} cannot all be -1: one axis takes what remains.")


def mesh_sizes(sizes: Any, devices: int, *, whole: bool = False) -> dict[str, int]:
    """Returns the size of every axis of a mesh; one may be given as -1, for all remaining devices.

    Args:
      sizes: Sizes by axis, as in `config.mesh`; a missing axis has size 1.
      devices: Number of devices.
      whole: Whether every device must be used.

    Raises:
      ValueError: the sizes need more devices than there are, do not divide them, or leave some
        out. The message names sizes that work.
    """
    given = {axis: int(sizes.get(axis, 1)) for axis in MESH_AXES}
    fixed = int(np.prod([size for size in given.values() if size != -1]))
    text = ", ".join(f"{axis}={size}" for axis, size in given.items())
    if -1 in given.values():
        if devices % fixed:
            raise ValueError(
                f"config.mesh ({text}): the sizes that are set multiply to {fixed}, which does not "
                f"divide {devices} devices; {_advice(given, devices)}."
            )
        return {axis: devices // fixed if size == -1 else size for axis, size in given.items()}
    if fixed > devices or (whole and fixed < devices):
        raise ValueError(
            f"config.mesh ({text}) needs {fixed} devices, there are {devices}; "
            f"{_advice(given, devices)}."
        )
    return given


def make_mesh(sizes: Any, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh with the given sizes by axis name.

    Within a slice, neighbours on an inner axis are neighbours in the slice.

    Args:
      sizes: See `mesh_sizes`.
      devices: Devices of the mesh; all devices by default.

    Raises:
      ValueError: see `mesh_sizes`; or the devices belong to another number of slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    many = len({device.process_index for device in devices}) > 1
    resolved = mesh_sizes(sizes, len(devices), whole=many)
    devices = devices[: int(np.prod(list(resolved.values())))]
    types = (AxisType.Auto,) * len(MESH_AXES)
    return Mesh(_arranged(resolved, devices), MESH_AXES, axis_types=types)


def own_mesh() -> Mesh:
    """Returns a mesh of this process's devices only, for work divided among processes."""
    return make_mesh({"data": -1}, jax.local_devices())


def batch_parts(mesh: Mesh | Mapping[str, int]) -> int:
    """Returns the number of parts a batch is split into; takes a mesh or its sizes."""
    shape = mesh.shape if isinstance(mesh, Mesh) else mesh
    return int(np.prod([shape.get(axis, 1) for axis in BATCH]))


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Returns the sharding of arrays whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Returns the sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def shardings(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Returns the tree's shardings by the table; leaves that match no row are replicated."""
    found = [
        NamedSharding(mesh, axes.spec(path, leaf.shape, mesh.shape))
        for path, leaf in paths(tree).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), found)


def place(tree: Any, mesh: Mesh) -> Any:
    """Returns a tree of host arrays on the devices of the mesh, sharded by the table.

    On a CPU the memory is reused if its alignment allows it: do not change the host arrays
    afterwards.
    """
    return put(tree, shardings(tree, mesh))


def put(tree: Any, places: Any) -> Any:
    """Returns host arrays, the same in every process, on devices.

    Args:
      tree: Host arrays.
      places: Their shardings: a tree of the same structure, or one for all.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, places, may_alias=True)
    if isinstance(places, NamedSharding):
        places = jax.tree.map(lambda _: places, tree)
    return jax.tree.map(_put, tree, places)


def rows_here(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns the rows of a batch that this process's devices hold, in ascending order.

    Processes that differ only in `tensor` hold the same rows.
    """
    held = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in held if index]))


def spread(mesh: Mesh, batch_size: int) -> Callable[[Any], Any]:
    """Returns the function from this process's rows of a batch to the batch on all devices.

    Args:
      mesh: Devices.
      batch_size: Rows in the whole batch; `rows_here` says which ones are given.
    """
    where = batch_sharding(mesh)
    rows = rows_here(mesh, batch_size)

    def whole(value: np.ndarray) -> jax.Array:
        def part(index):
            start, stop, _ = index[0].indices(batch_size)
            first = int(np.searchsorted(rows, start))
            return value[first : first + stop - start]

        return jax.make_array_from_callback((batch_size, *value.shape[1:]), where, part)

    return lambda batch: jax.tree.map(whole, batch)


def _put(value: Any, where: NamedSharding) -> jax.Array:
    if isinstance(value, jax.Array):
        return jax.device_put(value, where)
    array = np.asarray(value)
    return jax.make_array_from_callback(array.shape, where, lambda index: array[index])


def _arranged(sizes: dict[str, int], devices: Sequence[Any]) -> np.ndarray:
    """Returns devices in the shape of the mesh; the devices' attributes tell slices apart."""
    shape, slices = tuple(sizes.values()), sizes["slices"]
    found = len({getattr(device, "slice_index", 0) for device in devices})
    if found != slices and found > 1:
        raise ValueError(
            f"config.mesh.slices={slices}, but the devices belong to {found} slices: set "
            f"--config.mesh.slices={found}."
        )
    if found > 1:
        inner, outer = (1, *shape[1:]), (slices, 1, 1, 1)
        return mesh_utils.create_hybrid_device_mesh(
            inner, outer, devices=devices, allow_split_physical_axes=True
        )
    if slices > 1:  # devices without a slice index: groups of processes, or simulated devices
        return np.asarray(devices).reshape(shape)
    # An fsdp of 8 is half of a row of a 16 x 16 torus.
    return mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)


def _advice(given: dict[str, int], devices: int) -> str:
    """Returns advice on what to set instead: for one axis, the sizes nearest to the given one."""
    advice = []
    for axis, size in given.items():
        if size == 1 and axis != "data":
            continue
        others = [other for name, other in given.items() if name != axis and other != -1]
        rest = int(np.prod(others)) if others else 1
        if size == -1 or devices % rest:
            continue
        left = devices // rest
        free = -1 in given.values()
        choices = divisors(left) if free else [left]
        advice.append(f"{axis}={' or '.join(map(str, nearest(size, choices)))}")
    if advice:
        return f"set {', or '.join(advice)}"
    return f"set data=-1 and sizes for the other axes whose product divides {devices}"


def divisors(number: int) -> list[int]:
    """Returns all divisors of a number."""
    return [size for size in range(1, number + 1) if number % size == 0]


def nearest(size: int, choices: Sequence[int]) -> list[int]:
    """Returns the largest choice at or below a size, and the smallest above it."""
    below = [choice for choice in choices if choice <= size]
    above = [choice for choice in choices if choice > size]
    return below[-1:] + above[:1]
