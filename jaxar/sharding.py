"""Where arrays live: the mesh, and one table from the end of a parameter's path to its axes.

The table speaks of logical axes; `LOGICAL` maps these to the mesh. A row is matched at the END of a
tree path and padded on the left, so parameters, averages and Adam's moments, stacked or not, all
match the same row.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxar.tree import paths

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

LOGICAL = {"embed": "fsdp", "heads": "tensor", "mlp": "tensor", None: None}

RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    ("qkv/kernel", ("embed", None, "heads", None)),
    ("qkv/bias", (None, "heads", None)),
    ("cross/query/kernel", ("embed", "heads", None)),
    ("cross/kv/kernel", ("embed", None, "heads", None)),
    ("out/kernel", ("heads", None, "embed")),
    ("gate/kernel", ("embed", "mlp")),
    ("gate/bias", ("mlp",)),
    ("up/kernel", ("embed", "mlp")),
    ("up/bias", ("mlp",)),
    ("down/kernel", ("mlp", "embed")),
    ("modulation/kernel", ("embed", None, None)),
    ("time_modulation/kernel", ("embed", None, None)),
    ("condition/kernel", ("embed", None)),
    ("between/kernel", ("embed", None)),
    ("time/second/kernel", ("embed", None)),
    ("predict/kernel", ("embed", None)),
    ("embed/kernel", (None, "embed")),
    ("time/first/kernel", (None, "embed")),
    ("table", (None, "embed")),
)


def make_mesh(sizes: Any) -> Mesh:
    """Returns the mesh of sizes by axis name; one size may be -1: all devices that are left.

    Raises:
      ValueError: the sizes need more devices than there are, or do not divide them.
    """
    devices = jax.device_count()
    given = [int(sizes[axis]) for axis in MESH_AXES]
    fixed = int(np.prod([size for size in given if size != -1]))
    if -1 in given and devices % fixed:
        raise ValueError(
            f"config.mesh: {devices} devices cannot be shared out to {dict(sizes)}: the fixed "
            f"sizes multiply to {fixed}, which must divide {devices}."
        )
    shape = tuple(devices // fixed if size == -1 else size for size in given)
    needed = int(np.prod(shape))
    if needed > devices:
        raise ValueError(
            f"config.mesh: {dict(sizes)} needs {needed} devices, there are {devices}: "
            f"make the sizes multiply to {devices} or less."
        )
    types = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(shape, MESH_AXES, types, devices=jax.devices()[:needed])


def batch_parts(mesh: Mesh) -> int:
    """Returns into how many parts a batch is split."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of anything whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def shardings(tree: Any, mesh: Mesh) -> Any:
    """Returns the tree's shardings by the table; what no row names is held whole.

    An axis whose size its mesh axis does not divide is held whole too: the inner width of xAR-H's
    MLP is 3,413, a prime.
    """
    found = {path: _sharding(path, leaf.shape, mesh) for path, leaf in paths(tree).items()}
    return jax.tree.unflatten(jax.tree.structure(tree), found.values())


def place(tree: Any, mesh: Mesh) -> Any:
    """Returns a tree of host arrays on the devices of the mesh, sharded by the table.

    On a CPU the memory is taken over where its alignment allows that: the host arrays must not be
    changed any more.
    """
    return jax.device_put(tree, shardings(tree, mesh), may_alias=True)


def _sharding(path: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    for suffix, logical in RULES:
        if path == suffix or path.endswith("/" + suffix):
            axes = [LOGICAL[axis] for axis in logical]
            padded = [None] * (len(shape) - len(axes)) + axes
            fitting = [
                axis if axis and size % mesh.shape[axis] == 0 else None
                for size, axis in zip(shape, padded, strict=True)
            ]
            return NamedSharding(mesh, PartitionSpec(*fitting))
    return replicated(mesh)
