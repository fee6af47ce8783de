"""What the axes of arrays mean on a mesh: one table for the parameters of all systems.

Parameters and activations speak of logical axes; `LOGICAL` maps these to axes of the mesh. A row of
`RULES` is matched at the END of a tree path and padded on the left, so parameters, averages and
Adam's moments, stacked over layers or not, all match the same row; the first row that fits counts.

    embed   the width of the model, shared out over fsdp: gathered where it is used
    heads   attention heads, over tensor
    mlp     inner units of an MLP, over tensor
    batch   examples, over slices, data and fsdp

Networks do not know a mesh. `hold` and `gathered` read the one in use while a program is traced
(`jax.set_mesh`), and change nothing where there is none.
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
    ("kernel", ("embed",)),  # any other map, a convolution too: by what comes out
    ("table", ("embed",)),
)

GATHERED = "gathered"
"""Name of parameters that were gathered: not kept for the backward pass, but gathered anew."""


def names(path: str, rank: int) -> tuple[str | None, ...]:
    """Returns the logical axes of a parameter, one for each of its `rank` axes."""
    for suffix, logical in RULES:
        if (path == suffix or path.endswith("/" + suffix)) and len(logical) <= rank:
            return (None,) * (rank - len(logical)) + logical
    return (None,) * rank


def spec(path: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> PartitionSpec:
    """Returns how a parameter is shared out over a mesh of these sizes.

    An axis whose size its part of the mesh does not divide is held whole: the inner width of
    xAR-H's MLP is 3,413, a prime.
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
    """Returns x, shared out by its logical axes over the mesh in use; x where there is none.

    Args:
      x: Activations.
      *logical: Names of its first axes; the others are whole. After `...`, of its last axes; the
        compiler decides about the others.
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
    """Returns a tree of parameters, or of their gradients, shared out over the mesh in use."""
    sizes = _sizes()
    if not sizes:
        return tree
    found = [
        jax.lax.with_sharding_constraint(leaf, spec(path, leaf.shape, sizes))
        for path, leaf in paths(tree).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), found)


def gathers() -> bool:
    """Returns whether the mesh in use shares parameters out over fsdp."""
    return _sizes().get("fsdp", 1) > 1


def gathered(params: Any, dtype: Any = None, spared: tuple[str, ...] = ()) -> Any:
    """Returns parameters whole over fsdp, as they are used; their gradients are shared out again.

    Without this the compiler may share out activations instead, which are far larger.

    Args:
      params: Tree of parameters, of one layer for instance.
      dtype: What kernels are used in: half the bytes travel where it is bfloat16.
      spared: Beginnings of paths that stay as they are.
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
    """Returns what a program is traced for: "cpu", "gpu" or "tpu".

    The devices of the mesh in use need not be of this machine: programs are compiled for TPUs on
    CPUs. Where there is no mesh, it is JAX's default.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def in_parts(
    function: Callable[..., Array],
    parted: tuple[Array, ...],
    logical: tuple[str | None, ...],
    whole: tuple[Array, ...],
) -> Array:
    """Returns function(first, *parted, *whole), where every device sees its parts alone.

    The compiler does not look into kernels: it would gather what they take.

    Args:
      function: Its `first` is (axes,) uint32: how many elements stand before the part along each
        of the `logical` axes. It returns an array that is parted as the first of `parted`.
      parted: Arrays that are shared out by the same axes; more axes than the first has come before
        those, and are whole.
      logical: Names of their first axes.
      whole: Arrays that every device has whole.
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
    """Returns the sizes of the mesh in use; none where there is none, or one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return {} if mesh.empty or mesh.size == 1 else dict(mesh.shape)


def _spec(
    logical: tuple[str | None, ...], shape: tuple[int, ...], sizes: Mapping[str, int]
) -> PartitionSpec:
    """Returns the axes of the mesh for logical ones; those that do not divide are left out."""
    found: list[Any] = []
    for name, size in zip(logical, shape, strict=True):
        there = [axis for axis in LOGICAL.get(name or "", ()) if sizes.get(axis, 1) > 1]
        if not there or size % math.prod(sizes[axis] for axis in there):
            found.append(None)
        else:
            found.append(tuple(there) if len(there) > 1 else there[0])
    return PartitionSpec(*found)
