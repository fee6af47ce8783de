"""What a training step stores and in which precision: memory against time and accuracy.

bfloat16 has 8 significant bits. An average that moves 1/10,000 of the way to its parameters would
stand still if it were rounded to nearest. So what is stored in bfloat16 is rounded up or down at
random, with the exact value as its mean (stochastic rounding, arXiv 2010.06192).
"""

import contextlib
import ctypes
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from jaxar.checks import one_of, require, truth, whole
from jaxar.nn.layers import DTYPES
from jaxar.parallel.sharding import shardings
from jaxar.typing import Array


@dataclasses.dataclass(frozen=True)
class Memory:
    """How a step spends memory; the fields of `config.memory`.

    Attributes:
      accumulate: Parts a batch is split into; their gradients are added one after the other.
        A step then holds the activations of one part only.
      moments: Dtype of Adam's moments between steps, "float32" or "bfloat16".
      ema: Dtype of the averaged parameters between steps, "float32" or "bfloat16".
      offload_ema: Whether these stay in host memory and are copied to the device once a step.
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
    """Returns a tree with its float32 arrays stored in `dtype`, rounded at random.

    Args:
      tree: Arrays; integer arrays are unchanged.
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
    """Returns a tree with its floating arrays in float32, the dtype of computation."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if _floating(x) else x, tree)


def kept_in(tree: Any, dtype: str) -> Any:
    """Returns a tree with its floating arrays rounded to nearest in `dtype`: an initial state."""
    return jax.tree.map(lambda x: x.astype(DTYPES[dtype]) if _floating(x) else x, tree)


def state_shardings(state: Any, mesh: Mesh | AbstractMesh, memory: Memory) -> Any:
    """Returns the shardings of a `TrainState` between steps."""
    places = shardings(state, mesh)
    if not memory.offload_ema:
        return places
    host = jax.tree.map(lambda place: place.with_memory_kind("pinned_host"), places.ema)
    return places._replace(ema=host)


def fetched(tree: Any, memory: Memory) -> Any:
    """Returns an average on the devices, copied from the host if it is stored there."""
    return jax.device_put(tree, jax.memory.Space.Device) if memory.offload_ema else tree


def averaged(ema: Any, mesh: Mesh) -> Any:
    """Returns averaged parameters as models use them: float32, on the devices."""
    return widened(jax.device_put(ema, shardings(ema, mesh)))


def trim() -> None:
    """Gives free host memory back to the operating system; the C library holds it after compiling.

    With it, training two layers of xAR-B on a CPU peaks at 1.1 GiB instead of 1.3.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _rounded(x: Array, key: Array) -> Array:
    """Returns x in bfloat16, the upper half of float32, rounded up or down at random."""
    if not _floating(x):
        return x
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    below = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    upper = ((bits + below) >> 16).astype(jnp.uint16)
    return jax.lax.bitcast_convert_type(upper, jnp.bfloat16)


def _floating(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)
