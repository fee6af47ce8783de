"""Logical axes of arrays and how a mesh shards them: one table for the parameters of all systems.

Parameters and activations have logical axes; `LOGICAL` maps these to axes of the mesh. A row of
`RULES` is matched at the END of a tree path and padded on the left, so parameters, averages and
Adam's moments, stacked over layers or not, all match the same row. The first matching row is used.

    embed   the width of the model, sharded over fsdp: gathered where it is used
    heads   attention heads, over tensor
    mlp     inner units of an MLP, over tensor
    batch   examples, over slices, data and fsdp

Networks know no mesh. While a program is traced, `hold` and `gathered` read the mesh in use
(`jax.set_mesh`); without one they change nothing.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import linear_call
from jax.sharding import PartitionSpec

from jaxar.tree import paths
from jaxar.typing import Array

MESH = ("slices", "data", "fsdp", "tensor")
"""Axes of the mesh, the slowest network first."""

BATCH = ("slices", "data", "fsdp")

LOGICAL: dict[str, tuple[str, ...]] = {
    "batch": BATCH,
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
}

RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    ("qkv/kernel", ("embed", None, "heads", None)),
    ("qkv/bias", (None, "heads", None)),
    ("query/kernel", ("embed", "heads", None)),
    ("kv/kernel", ("embed", None, "heads", None)),
    ("out/kernel", ("heads", None, "embed")),
    ("log_scale", ("heads",)),
    ("gate/kernel", ("embed", "mlp")),
    ("gate/bias", ("mlp",)),
    ("up/kernel", ("embed", "mlp")),
    ("up/bias", ("mlp",)),
    ("down/kernel", ("mlp", "embed")),
    ("logits/kernel", ("embed", None)),
    ("predict/kernel", ("embed", None)),
    ("kernel", ("embed",)),  # any other linear map or convolution: by its output axis
    ("table", ("embed",)),
)

GATHERED = "gathered"
"""Name of gathered parameters, which the backward pass gathers again instead of storing them."""


def names(path: str, rank: int) -> tuple[str | None, ...]:
    """Returns the logical axes of a parameter, one for each of its `rank` axes."""
    for suffix, logical in RULES:
        if (path == suffix or path.endswith("/" + suffix)) and len(logical) <= rank:
            return (None,) * (rank - len(logical)) + logical
    return (None,) * rank


def spec(path: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> PartitionSpec:
    """Returns how a parameter is sharded over a mesh of these sizes.

    An axis that its mesh axes do not divide is replicated: the inner width of xAR-H's MLP is 3,413,
    a prime.
    """
    return _spec(names(path, len(shape)), shape, sizes)


def lengths(tree: Any, logical: str) -> set[int]:
    """Returns the sizes of a logical axis among the parameters of a tree."""
    return {
        size
        for path, leaf in paths(tree).items()
        for name, size in zip(names(path, leaf.ndim), leaf.shape, strict=True)
        if name == logical
    }


def hold(x: Array, *logical: Any) -> Array:
    """Returns x, sharded by its logical axes over the mesh in use; x itself without a mesh.

    Args:
      x: Activations.
      *logical: Names of its first axes; the others are replicated. After `...`, names of its last
        axes; the compiler chooses the others.
    """
    sizes = _sizes()
    if not sizes:
        return x
    if logical[0] is not ...:
        padded = logical + (None,) * (x.ndim - len(logical))
        return jax.lax.with_sharding_constraint(x, _spec(padded, x.shape, sizes))
    last = logical[1:]
    found = _spec(last, x.shape[x.ndim - len(last) :], sizes)
    if not any(found):
        return x
    free = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - len(last))
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*free, *found))


def placed(tree: Any) -> Any:
    """Returns a tree of parameters, or of their gradients, sharded over the mesh in use."""
    sizes = _sizes()
    if not sizes:
        return tree
    found = [
        jax.lax.with_sharding_constraint(leaf, spec(path, leaf.shape, sizes))
        for path, leaf in paths(tree).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), found)


def gathers() -> bool:
    """Returns whether the mesh in use shards parameters over fsdp."""
    return _sizes().get("fsdp", 1) > 1


def gathered(params: Any, dtype: Any = None, spared: tuple[str, ...] = ()) -> Any:
    """Returns parameters gathered over fsdp for use; their gradients are sharded again.

    Without this the compiler may gather activations instead, which are far larger.

    Args:
      params: Tree of parameters, for instance those of one layer.
      dtype: Dtype in which kernels are gathered; bfloat16 halves the communication.
      spared: Prefixes of paths that stay unchanged.
    """
    if not gathers():
        return params
    sizes = _sizes()
    found = []
    for path, leaf in paths(params).items():
        parts = spec(path, leaf.shape, sizes)
        if "fsdp" in parts and not path.startswith(spared):
            whole = PartitionSpec(*(None if part == "fsdp" else part for part in parts))
            if dtype is not None and path.endswith("kernel"):
                leaf = leaf.astype(dtype)
            leaf = checkpoint_name(_gather(leaf, parts, whole), GATHERED)
        found.append(leaf)
    return jax.tree.unflatten(jax.tree.structure(params), found)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _gather(x: Array, parts: PartitionSpec, whole: PartitionSpec) -> Array:
    return jax.lax.with_sharding_constraint(x, whole)


@_gather.defjvp
def _gather_tangent(parts, whole, primals, tangents):
    """Tangents are gathered, too; the transpose, which makes gradients, shares them out."""

    def gather(_, tangent):
        return jax.lax.with_sharding_constraint(tangent, whole)

    def share_out(_, gradient):
        return jax.lax.with_sharding_constraint(gradient, parts)

    return _gather(*primals, parts, whole), linear_call(gather, share_out, (), *tangents)


def platform() -> str:
    """Returns the platform that a program is traced for: "cpu", "gpu" or "tpu".

    The devices of the mesh in use need not be on this machine: programs are compiled for TPUs on
    CPUs. Without a mesh, it is JAX's default platform.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def in_parts(
    function: Callable[..., Array],
    parted: tuple[Array, ...],
    logical: tuple[str | None, ...],
    whole: tuple[Array, ...],
) -> Array:
    """Returns function(first, *parted, *whole), run on each device's shards.

    The compiler cannot shard a kernel: it would gather the kernel's inputs.

    Args:
      function: Its `first`, (axes,) uint32, is the offset of the shard along each of the `logical`
        axes. It returns an array that is sharded like the first of `parted`.
      parted: Arrays sharded by the same axes. Those with more axes than the first array have the
        extra ones in front, replicated.
      logical: Names of the first axes of the first array.
      whole: Arrays that are replicated on every device.
    """
    sizes, (lead, *_) = _sizes(), parted
    padded = logical + (None,) * (lead.ndim - len(logical))
    parts = _spec(padded, lead.shape, sizes)

    def run(*arrays: Array) -> Array:
        first = [
            jax.lax.axis_index(part) * size if part else 0
            for part, size in zip(parts, arrays[0].shape[: len(logical)], strict=False)
        ]
        return function(jnp.asarray(first, jnp.uint32), *arrays)

    if not sizes:
        return run(*parted, *whole)
    extra = [(None,) * (x.ndim - lead.ndim) for x in parted]
    specs = tuple(PartitionSpec(*more, *parts) for more in extra)
    specs += (PartitionSpec(),) * len(whole)
    shared = jax.shard_map(run, in_specs=specs, out_specs=parts, check_vma=False)
    return shared(*parted, *whole)


def _sizes() -> dict[str, int]:
    """Returns the sizes of the mesh in use; empty without a mesh or with one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return {} if mesh.empty or mesh.size == 1 else dict(mesh.shape)


def _spec(
    logical: tuple[str | None, ...], shape: tuple[int, ...], sizes: Mapping[str, int]
) -> PartitionSpec:
    """Returns the mesh axes for logical axes; those that do not divide the size are left out."""
    found: list[Any] = []
    for name, size in zip(logical, shape, strict=True):
        there = [axis for axis in LOGICAL.get(name or "", ()) if sizes.get(axis, 1) > 1]
        if not there or size % math.prod(sizes[axis] for axis in there):
            found.append(None)
        else:
            found.append(tuple(there) if len(there) > 1 else there[0])
    return PartitionSpec(*found)
