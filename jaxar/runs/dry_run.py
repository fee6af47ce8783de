"""The text of --dry_run: every parameter with its sharding and its bytes on a device."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxar import tree
from jaxar.config import ConfigError
from jaxar.parallel import axes, sharding
from jaxar.runs import setup
from jaxar.training.state import TrainState
from jaxar.training.step import training_of

NOTICE = 0.01
"""A parameter that cannot be sharded is reported above this share of all parameters."""


def dry_run(config: Any) -> str:
    """Returns a line for each parameter, and totals for everything that training keeps on a device.

    A mesh may be larger than the devices of this machine, to see what a slice would hold.

    Args:
      config: The whole config.

    Raises:
      ConfigError: a setting cannot work.
    """
    system, _ = setup.build(config)
    there = jax.device_count()
    wanted = [size for size in config.mesh.values() if size != -1]
    planned = max(int(np.prod(wanted)), 1)
    try:
        sizes = sharding.mesh_sizes(config.mesh, planned if planned > there else there)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    setup.require_divisible(config, system, sizes, training=True)
    devices = int(np.prod(list(sizes.values())))
    mesh = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    state = state_shapes(config, system)
    lines = [_table(state.params, sizes), "", _totals(state, on_devices(config, state), sizes), ""]
    lines += [f"{devices} devices ({mesh}); {there} are here"]
    batch = config.batch_size // sharding.batch_parts(sizes)
    lines += [f"batch of {config.batch_size}: {batch} for each group of {sizes['tensor']} devices"]
    return "\n".join(lines + notices(state.params, sizes))


def state_shapes(config: Any, system: Any) -> TrainState:
    """Returns the shapes of the whole training state."""
    return jax.eval_shape(training_of(config, system).init, jax.random.key(0))


def on_devices(config: Any, state: TrainState) -> TrainState:
    """Returns the state without what is kept in the host's memory."""
    return state._replace(ema={}) if config.memory.offload_ema else state


def notices(params: Any, sizes: Mapping[str, int]) -> list[str]:
    """Returns a line for each large parameter that an axis of the mesh cannot shard."""
    found = []
    total = tree.count(params)
    for axis, what in (("fsdp", {"embed"}), ("tensor", {"heads", "mlp"})):
        if sizes[axis] == 1:
            continue
        whole = {
            size: path
            for path, leaf in tree.paths(params).items()
            for name, size in zip(axes.names(path, leaf.ndim), leaf.shape, strict=True)
            if name in what and size % sizes[axis] and leaf.size > NOTICE * total
        }
        found += [
            f"{axis}={sizes[axis]} does not divide {size:,} ({path} and others): held whole"
            for size, path in whole.items()
        ]
    return found


def bytes_per_device(shapes: Any, sizes: Mapping[str, int]) -> int:
    """Returns the bytes of a tree on one device."""
    return sum(_bytes(path, leaf, sizes) for path, leaf in tree.paths(shapes).items())


def _bytes(path: str, leaf: Any, sizes: Mapping[str, int]) -> int:
    """Returns the bytes of one array on one device."""
    parts = 1
    for part in axes.spec(path, leaf.shape, sizes):
        for axis in part if isinstance(part, tuple) else (part,):
            parts *= sizes[axis] if axis else 1
    return leaf.size * leaf.dtype.itemsize // parts


def _table(params: Any, sizes: Mapping[str, int]) -> str:
    """Returns a line for each parameter."""
    rows = [("parameter", "shape", "sharding", "elements", "bytes per device")]
    for path, leaf in tree.paths(params).items():
        where = axes.spec(path, leaf.shape, sizes)
        sharded = ", ".join(map(str, where)) if any(where) else "whole"
        shape = str(tuple(leaf.shape))
        rows.append((path, shape, sharded, f"{leaf.size:,}", f"{_bytes(path, leaf, sizes):,}"))
    return _aligned(rows)


def _totals(state: TrainState, here: TrainState, sizes: Mapping[str, int]) -> str:
    """Returns a line for each part of the state, and one for all that is on a device."""
    rows = [("total", "", "", "elements", "bytes per device")]
    average = "average" if here.ema else "average, on the host"
    parts = {"parameters": state.params, average: state.ema, "optimiser": state.optimizer}
    for name, shapes in {**parts, "all": here}.items():
        rows.append((name, "", "", f"{tree.count(shapes):,}", _size(shapes, sizes)))
    return _aligned(rows)


def _size(shapes: Any, sizes: Mapping[str, int]) -> str:
    """Returns the bytes of a tree on one device, with the same in GiB."""
    size = bytes_per_device(shapes, sizes)
    return f"{size:,} ({size / 2**30:.3f} GiB)"


def _aligned(rows: list[tuple[str, ...]]) -> str:
    """Returns rows as a table, with words aligned to the left and numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if i < 3 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
