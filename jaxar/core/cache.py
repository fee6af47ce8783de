"""What a network remembers of earlier tokens: a value that goes in and comes out.

A cache is a tree whose nodes are of three kinds. Arrays begin with axes of layers and batch.

    KeyValue   keys and values of attention, a row of tokens with a place for each
    State      the state of a recurrence: nothing but its last value is kept
    Memory     keys and values of what is attended but not generated, projected once

    view(cache, visible)      what a pass may look at: the first `visible` places
    write(cache, new, start)  with what the pass collected, from place `start` on, one or (b,)
    rows(cache, index)        other rows: branches of guidance, beams, slots of a batcher
    keep(cache, places)       some places moved to the front: the branch of a tree that was accepted

What stands behind the places that were written is never looked at (`visibility.started`), so
going back is a smaller `start`. A recurrence cannot go back, nor keep places, and says so when a
program is traced. Law: *sampling with a cache equals one pass over the whole sequence.*
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxar.typing import Array, Int

LAYER, BATCH, PLACE = 0, 1, 2
"""Axes of the arrays of a cache."""


@runtime_checkable
class Cache(Protocol):
    """A node of a cache."""

    def view(self, visible: int) -> "Cache":
        """Returns what a pass may look at of the first `visible` places."""
        ...

    def write(self, new: "Cache", start: Any) -> "Cache":
        """Returns the node with what a pass collected, from place `start` on."""
        ...

    def rows(self, index: Int[Array, " b2"] | slice) -> "Cache":
        """Returns the rows of an index."""
        ...

    def keep(self, places: Int[Array, "b p"]) -> "Cache":
        """Returns the node with these places at its front, in this order."""
        ...

    def at(self, layer: Any) -> Any:
        """Returns what one layer looks at; its number may be traced."""
        ...


class Past(NamedTuple):
    """Keys and values of earlier tokens for all layers, (l, b, m, k e), and which layer looks.

    So a layer's part is read where it stands; cut out for each layer it would be copied.
    """

    keys: Array
    values: Array
    layer: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyValue:
    """Keys and values, each (l, b, m, k e): heads side by side, keys turned by their positions.

    What one layer collects has no layer axis; the loop over layers stacks it.
    """

    keys: Any
    values: Any

    def view(self, visible: int) -> "KeyValue":
        """Returns the first `visible` places."""
        return jax.tree.map(lambda a: a[:, :, :visible], self)

    def write(self, new: "KeyValue", start: Any) -> "KeyValue":
        """Returns these with new keys and values from `start` on, one place or one a row."""
        if jnp.ndim(start) == 0:
            return jax.tree.map(
                lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, start, PLACE), self, new
            )

        def one(a: Array, b: Array, first: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(a, b, first, PLACE - 1)

        each = jax.vmap(one, in_axes=(BATCH, BATCH, 0), out_axes=BATCH)
        return jax.tree.map(lambda a, b: each(a, b, start), self, new)

    def rows(self, index: Int[Array, " b2"] | slice) -> "KeyValue":
        """Returns the keys and values of other rows."""
        return jax.tree.map(lambda a: a[:, index], self)

    def keep(self, places: Int[Array, "b p"]) -> "KeyValue":
        """Returns these with the given places at the front; what stands behind them stays."""

        def moved(a: Array) -> Array:
            front = jnp.take_along_axis(a, places[None, :, :, None], PLACE)
            return a.at[:, :, : places.shape[1]].set(front)

        return jax.tree.map(moved, self)

    def at(self, layer: Any) -> Past:
        """Returns all layers' keys and values, and the number of the one that looks."""
        return Past(self.keys, self.values, layer)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """The state of a recurrence after the last token: any tree of (l, b, ...) arrays."""

    values: Any

    def view(self, visible: int) -> "State":
        """Returns the state: there is no more."""
        return self

    def write(self, new: "State", start: Any) -> "State":
        """Returns the new state."""
        return new

    def rows(self, index: Int[Array, " b2"] | slice) -> "State":
        """Returns the states of other rows."""
        return jax.tree.map(lambda a: a[:, index], self)

    def keep(self, places: Int[Array, "b p"]) -> "State":
        """Raises ValueError: earlier states are gone."""
        raise ValueError(
            "A recurrent state cannot go back to earlier tokens: search over trees and speculative "
            "sampling need a network with attention, or copies of the state from before."
        )

    def at(self, layer: Any) -> Any:
        """Returns the state of one layer."""
        return jax.tree.map(lambda a: a[layer], self.values)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
    """Keys and values of a memory, (l, b, s, k e), and where it holds something, (b, s) bool."""

    keys: Any
    values: Any
    mask: Any

    def view(self, visible: int) -> "Memory":
        """Returns the whole memory."""
        return self

    def write(self, new: "Memory", start: Any) -> "Memory":
        """Returns the memory: it is written once, before the walk."""
        return self

    def rows(self, index: Int[Array, " b2"] | slice) -> "Memory":
        """Returns the memories of other rows."""
        return Memory(self.keys[:, index], self.values[:, index], self.mask[index])

    def keep(self, places: Int[Array, "b p"]) -> "Memory":
        """Returns the memory: its places are not those of the sequence."""
        return self

    def at(self, layer: Any) -> tuple[Array, Array, Array]:
        """Returns keys and values (b, s, k e) of one layer, and the mask."""
        return self.keys[layer], self.values[layer], self.mask


def view(cache: Any, visible: int) -> Any:
    """Returns what a pass may look at of each node of a cache."""
    return _each(lambda node: node.view(visible), cache)


def write(cache: Any, new: Any, start: Any) -> Any:
    """Returns a cache with what a pass collected, from place `start` on; one place, or (b,)."""
    return _each(lambda node, new: node.write(new, start), cache, new)


def rows(cache: Any, index: Int[Array, " b2"] | slice) -> Any:
    """Returns the rows of an index of each node."""
    return _each(lambda node: node.rows(index), cache)


def keep(cache: Any, places: Int[Array, "b p"]) -> Any:
    """Returns a cache with these places at the front of each node.

    Raises:
      ValueError: a node is the state of a recurrence.
    """
    return _each(lambda node: node.keep(places), cache)


def _each(function: Callable[..., Any], *trees: Any) -> Any:
    return jax.tree.map(function, *trees, is_leaf=lambda node: isinstance(node, Cache))
