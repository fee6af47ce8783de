"""What a training step keeps and in which precision: the levers between memory, time and numbers.

bfloat16 has 8 significant bits. An average that goes 1/10,000 of the way to its parameters would
stand still if it were rounded to the nearest of them, so what is kept in bfloat16 is rounded up or
down at random, such that the mean is exact (stochastic rounding, arXiv 2010.06192).
"""

import contextlib
import ctypes
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxar.checks import one_of, require, truth, whole
from jaxar.nn.layers import DTYPES
from jaxar.parallel.sharding import shardings
from jaxar.typing import Array


@dataclasses.dataclass(frozen=True)
class Memory:
    """How a step spends memory; the fields of `config.memory`.

    Attributes:
      accumulate: Parts into which a batch is cut; their gradients are added one after the other.
        What a step holds between forward and backward pass is that of one part.
      moments: Dtype of Adam's moments between steps, "float32" or "bfloat16".
      ema: Dtype of the averaged parameters between steps, the same.
      offload_ema: Whether these wait in the host's memory, and visit the device once a step.
    """

    accumulate: int = 1
    moments: str = "float32"
    ema: str = "float32"
    offload_ema: bool = False

    def __post_init__(self):
        kept = one_of("float32", "bfloat16")
        require(vars(self), accumulate=whole(1), moments=kept, ema=kept, offload_ema=truth)


PLAIN = Memory()


def narrowed(tree: Any, dtype: str, key: Array) -> Any:
    """Returns a tree whose float32 arrays are kept in `dtype`, rounded at random.

    Args:
      tree: Arrays; those of whole numbers stay.
      dtype: "float32", which changes nothing, or "bfloat16".
      key: Randomness of the rounding.
    """
    if dtype == "float32":
        return tree
    leaves, form = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    kept = [_rounded(leaf, key) for leaf, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(form, kept)


def widened(tree: Any) -> Any:
    """Returns a tree with its floating arrays in float32, as they are computed with."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if _floating(x) else x, tree)


def kept_in(tree: Any, dtype: str) -> Any:
    """Returns a tree with its floating arrays in a dtype, to the nearest: for a first state."""
    return jax.tree.map(lambda x: x.astype(DTYPES[dtype]) if _floating(x) else x, tree)


def state_shardings(state: Any, mesh: Mesh, memory: Memory) -> Any:
    """Returns where a `TrainState` lives between steps."""
    places = shardings(state, mesh)
    if not memory.offload_ema:
        return places
    host = jax.tree.map(lambda place: place.with_memory_kind("pinned_host"), places.ema)
    return places._replace(ema=host)


def fetched(tree: Any, memory: Memory) -> Any:
    """Returns an average that may wait on the host, on the devices."""
    return jax.device_put(tree, jax.memory.Space.Device) if memory.offload_ema else tree


def averaged(ema: Any, mesh: Mesh) -> Any:
    """Returns averaged parameters as models take them: float32, on the devices."""
    return widened(jax.device_put(ema, shardings(ema, mesh)))


def trim() -> None:
    """Gives free memory of the host back to its system; the C library keeps what compiling used.

    With it the training of two layers of xAR-B on a CPU peaks at 1.1 GiB in place of 1.3.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _rounded(x: Array, key: Array) -> Array:
    """Returns x in bfloat16, which is the upper half of float32, up or down at random."""
    if not _floating(x):
        return x
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    below = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    upper = ((bits + below) >> 16).astype(jnp.uint16)
    return jax.lax.bitcast_convert_type(upper, jnp.bfloat16)


def _floating(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)
