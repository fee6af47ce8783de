"""Flax modules as pure functions of parameter trees.

Modules are defined with `flax.nnx`; everywhere else parameters are nested dicts of arrays, and only
JAX's own transforms are used. A change of Flax affects only this folder and module constructors.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
from flax import nnx

from jaxar.parallel.axes import GATHERED, gathered, gathers
from jaxar.tree import differences, paths
from jaxar.typing import Array, Params

Module = nnx.Module
Param = nnx.Param
M = TypeVar("M", bound=nnx.Module)

PROJECTED, RETURNED = "projected", "returned"
"""Checkpoint names of the outputs of matrix products, and of attention and whole branches; see
`REMAT`."""

REMAT: dict[str, Callable[..., Any]] = {
    "none": jax.checkpoint_policies.save_anything_except_these_names(GATHERED),
    "projections": jax.checkpoint_policies.save_only_these_names(PROJECTED, RETURNED),
    "branches": jax.checkpoint_policies.save_only_these_names(RETURNED),
    "blocks": jax.checkpoint_policies.nothing_saveable,
}
"""What layers store for the backward pass, from most to least; the rest is recomputed.

    none          everything
    projections   the outputs of matrix products and attention: only norms, modulation,
                  activations, rotations and dropout are recomputed
    branches      the outputs of attention and of each branch, all of token width: the products
                  before them are recomputed, attention is not
    blocks        only the input of each layer
"""


class Series(nnx.Module):
    """A sequence of modules, whose parameters have the keys "0", "1", ...

    Flax's own list has integer keys. A tree that was saved by path returns them as strings, "10"
    sorts before "2", and `nnx.merge`, which goes by order, would mix them up.
    """

    def __init__(self, modules: Iterable[nnx.Module]):
        """Stores the modules in order."""
        self.count = 0
        for module in modules:
            setattr(self, str(self.count), module)
            self.count += 1

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return (getattr(self, str(i)) for i in range(self.count))


def params_of(module: nnx.Module) -> Params:
    """Returns a module's parameters as a nested dict of arrays (or of their shapes)."""
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def bind(template: M, params: Params) -> M:
    """Returns the module of `template`, which may hold shapes only, with these parameters.

    Raises:
      ValueError: the tree or a shape differs. `nnx.merge` takes leaves in order and would not
        notice.
    """
    problems = differences(params, params_of(template))
    if problems:
        raise ValueError("These parameters do not fit this module: " + "; ".join(problems))
    return nnx.merge(nnx.graphdef(template), gathered(params, spared=_stacks(template)))


def as_used(template: nnx.Module, params: Params) -> Params:
    """Returns parameters with the kernels of stacked modules in their compute dtype.

    Sampling runs the same layers many times; this casts kernels once instead of in each pass. The
    dtype is `compute.type` of the module that holds the stack.
    """
    owners = {
        "".join(f"{part}/" for part in path): node.compute.type
        for path, node in nnx.iter_graph(template)
        if hasattr(node, "compute")
    }
    stacks, found = _stacks(template), []
    for path, leaf in paths(params).items():
        if path.endswith("kernel") and path.startswith(stacks):
            owner = max((o for o in owners if path.startswith(o)), key=len)
            leaf = leaf.astype(owners[owner])
        found.append(leaf)
    return jax.tree.unflatten(jax.tree.structure(params), found)


def _stacks(template: nnx.Module) -> tuple[str, ...]:
    """Returns the path prefixes of stacked modules, which `scan` gathers layer by layer."""
    nodes = nnx.iter_graph(template)
    return tuple(
        "/".join(map(str, path)) + "/"
        for path, node in nodes
        if isinstance(node, nnx.Module) and getattr(node, "stacked", False)
    )


def stack(make: Callable[[Array], M], depth: int, key: Array) -> M:
    """Returns one module whose arrays have a leading layer axis; `make(key)` makes one layer."""
    module = jax.vmap(make)(jax.random.split(key, depth))
    setattr(module, "stacked", True)  # noqa: B010 -- not declared by Flax's class
    return module


def scan(
    body: Callable[..., tuple[Any, Any]],
    carry: Any,
    xs: Any,
    *,
    remat: str = "none",
    unroll: int = 1,
    dtype: Any = None,
):
    """Returns `lax.scan(body, carry, xs)` over layers.

    A layer's parameters are gathered just before use, and again in the backward pass: no device
    ever holds more than one whole layer.

    Args:
      body: body(carry, layer) -> (carry, output).
      carry: Value passed from layer to layer.
      xs: Per-layer values: stacked modules, and arrays with a leading layer axis.
      remat: What is stored for the backward pass, a name in `REMAT`.
      unroll: Layers in one iteration of the loop.
      dtype: Dtype in which the kernels of the modules are gathered.
    """

    def layer(carry, x):
        return body(carry, jax.tree.map(whole, x, is_leaf=_is_module))

    def whole(part):
        if not _is_module(part) or not gathers():
            return part
        return nnx.merge(nnx.graphdef(part), gathered(params_of(part), dtype))

    if remat != "none" or gathers():
        # Unrolled layers could share values with the forward pass (CSE); a loop cannot.
        apart = unroll > 1
        layer = jax.checkpoint(layer, prevent_cse=apart, policy=REMAT[remat])
    return jax.lax.scan(layer, carry, xs, unroll=unroll)


def _is_module(part: Any) -> bool:
    return isinstance(part, nnx.Module)
