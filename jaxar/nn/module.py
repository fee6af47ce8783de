"""Flax modules as pure functions of parameter trees.

Modules are defined with `flax.nnx`; everywhere else parameters are nested dicts of arrays and only
JAX's own transforms are used. If Flax changes, this folder and the constructors of backbones do.
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
"""Names of what comes out of matrix products, and of what attention and whole branches return; see
`REMAT`."""

REMAT: dict[str, Callable[..., Any]] = {
    "none": jax.checkpoint_policies.save_anything_except_these_names(GATHERED),
    "projections": jax.checkpoint_policies.save_only_these_names(PROJECTED, RETURNED),
    "branches": jax.checkpoint_policies.save_only_these_names(RETURNED),
    "blocks": jax.checkpoint_policies.nothing_saveable,
}
"""What layers keep for the backward pass, from the most to the least; the rest is computed anew.

    none          everything
    projections   what comes out of matrix products and attention: only norms, modulation,
                  activations, rotations and dropout are computed again
    branches      what attention gave and what each branch adds, all of the width of the tokens:
                  the products that lead there are computed again, attention is not
    blocks        nothing but what goes from layer to layer
"""


class Series(nnx.Module):
    """Modules in a row, whose parameters stand under "0", "1", ...

    Flax's own list has whole numbers as keys. In a tree that was saved by path they come back as
    words, "10" sorts before "2", and `nnx.merge`, which goes by order, would mix them up.
    """

    def __init__(self, modules: Iterable[nnx.Module]):
        """Takes the modules."""
        self.count = 0
        for module in modules:
            setattr(self, str(self.count), module)
            self.count += 1

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return (getattr(self, str(i)) for i in range(self.count))


def params_of(module: nnx.Module) -> Params:
    """Returns the nested dict of arrays (or of their shapes) that a module holds."""
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def bind(template: M, params: Params) -> M:
    """Returns the module of `template`, which may hold shapes only, with these parameters.

    Raises:
      ValueError: the tree or a shape differs. `nnx.merge` takes leaves in order and would be
        silent.
    """
    problems = differences(params, params_of(template))
    if problems:
        raise ValueError("These parameters are not of this module: " + "; ".join(problems))
    return nnx.merge(nnx.graphdef(template), gathered(params, spared=_stacks(template)))


def as_used(template: nnx.Module, params: Params) -> Params:
    """Returns parameters with the kernels of stacked modules in the dtype that they are used in.

    Sampling goes through the same layers again and again: so kernels are cast once, not in each
    pass. The dtype is that of `compute` of the module around the stack.
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
    """Returns the paths of stacked modules, which `scan` gathers layer by layer."""
    nodes = nnx.iter_graph(template)
    return tuple(
        "/".join(map(str, path)) + "/"
        for path, node in nodes
        if isinstance(node, nnx.Module) and getattr(node, "stacked", False)
    )


def stack(make: Callable[[Array], M], depth: int, key: Array) -> M:
    """Returns one module whose arrays carry a leading layer axis, made by `make(key)`."""
    module = jax.vmap(make)(jax.random.split(key, depth))
    setattr(module, "stacked", True)  # noqa: B010 -- of Flax's own class
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
    """Returns `lax.scan(body, carry, xs)`, one layer after the other.

    A layer's parameters are gathered when its turn comes, and anew for the backward pass: no device
    ever holds more than one layer whole.

    Args:
      body: body(carry, layer) -> (carry, output).
      carry: What goes from layer to layer.
      xs: What belongs to the layers: stacked modules, and arrays with a leading layer axis.
      remat: What is kept for the backward pass, a name in `REMAT`.
      unroll: Layers in one turn of the loop.
      dtype: What the kernels of the modules are used in.
    """

    def layer(carry, x):
        return body(carry, jax.tree.map(whole, x, is_leaf=_is_module))

    def whole(part):
        if not _is_module(part) or not gathers():
            return part
        return nnx.merge(nnx.graphdef(part), gathered(params_of(part), dtype))

    if remat != "none" or gathers():
        # In a loop there is nothing to share with the forward pass. Without one there is.
        apart = unroll > 1
        layer = jax.checkpoint(layer, prevent_cse=apart, policy=REMAT[remat])
    return jax.lax.scan(layer, carry, xs, unroll=unroll)


def _is_module(part: Any) -> bool:
    return isinstance(part, nnx.Module)
