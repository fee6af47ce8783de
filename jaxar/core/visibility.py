"""Which tokens see which: a rule over numbers that describe queries and keys, never a stored mask.

    sees(q, k) = rule(numbers of q, numbers of k)                                          (1)

The numbers are places, entities, streams, documents, ... one array of each for queries and for
keys, with a batch axis where examples differ. Attention evaluates (1) for the part that it
computes: for all pairs at once where the sequence is short (`dense`), block by block where it is
long. So a causal stack of 16,384 tokens holds no array of 16,384 x 16,384.

    causal                q sees k if entity(k) <= entity(q)
    teacher_forcing       two streams, all clean entities, then all noised ones
    same                  q sees its own entity (document, block of a graph) alone
    window(reach)         q sees what is at most `reach` away along every axis
    descends              q sees itself and its ancestors in a tree
    started               q sees the keys of a cache that are written, and those of its own pass
    present               q sees the places that hold something
    every(...)            all of several rules, each with numbers of its own
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxar.typing import Array, Bool

Numbers = tuple[Any, ...]
"""Arrays (n,) or (b, n), NumPy where they are known when a program is traced."""
Rule = Callable[[Numbers, Numbers], Any]
"""rule(query numbers, key numbers) -> bool; numbers broadcast against each other."""


@dataclasses.dataclass(frozen=True, eq=False)
class Visibility:
    """Equation (1) for the tokens of one pass.

    Attributes:
      rule: The rule.
      query: Numbers of the n queries.
      key: Numbers of the m keys.
    """

    rule: Rule
    query: Numbers
    key: Numbers

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        return self.query[0].shape[-1], self.key[0].shape[-1]

    @property
    def batched(self) -> bool:
        """Whether examples differ."""
        return any(np.ndim(numbers) > 1 for numbers in (*self.query, *self.key))

    @property
    def static(self) -> bool:
        """Whether all numbers are known when a program is traced."""
        return all(isinstance(numbers, np.ndarray) for numbers in (*self.query, *self.key))

    def dense(self) -> Bool[Array, "... n m"]:
        """Returns (n, m), or (b, n, m) where examples differ, computed inside the program."""
        query = tuple(jnp.asarray(numbers)[..., :, None] for numbers in self.query)
        key = tuple(jnp.asarray(numbers)[..., None, :] for numbers in self.key)
        return jnp.broadcast_to(self.rule(query, key), (*self._examples(), *self.shape))

    def known(self, first: int, end: int) -> np.ndarray:
        """Returns the rows [first, end) of the mask, (end - first, m), of static numbers."""
        query = tuple(numbers[first:end, None] for numbers in self.query)
        key = tuple(numbers[None, :] for numbers in self.key)
        return np.broadcast_to(self.rule(query, key), (end - first, self.shape[1]))

    def pairs(self, rows: int = 1024) -> int:
        """Returns how many pairs see each other, of static numbers."""
        n, _ = self.shape
        return sum(int(self.known(i, min(i + rows, n)).sum()) for i in range(0, n, rows))

    def _examples(self) -> tuple[int, ...]:
        sizes = {np.shape(x)[0] for x in (*self.query, *self.key) if np.ndim(x) > 1}
        return (max(sizes),) if sizes else ()


class Layout(NamedTuple):
    """What one pass of a network sees of a plan.

    Attributes:
      place: (n,) places of the tokens in the plan's sequence, (b, n) where examples differ; may be
        traced.
      sizes: Tokens of each segment; the tokens of a segment share one time and one condition.
      sees: Which token sees which, or None where all see all. With a cache its keys come first.
    """

    place: Any
    sizes: tuple[int, ...]
    sees: Visibility | None


def causal(query: Numbers, key: Numbers) -> Any:
    """Returns whether the key's entity is not after the query's: (entity,) against (entity,)."""
    return query[0] >= key[0]


def same(query: Numbers, key: Numbers) -> Any:
    """Returns whether both have the same number: entity, document, block of a graph."""
    return query[0] == key[0]


def teacher_forcing(query: Numbers, key: Numbers) -> Any:
    """Returns (1) of two streams: (entity, stream), stream 0 clean and 1 noised.

    A clean entity sees the clean entities up to itself; a noised one sees the clean entities before
    it, and itself.
    """
    (entity, stream), (other, source) = query, key
    clean = (source == 0) & (entity - stream >= other)
    return clean | ((source == 1) & (stream == 1) & (entity == other))


def window(reach: Sequence[int]) -> Rule:
    """Returns the rule that a query sees what is at most `reach` away along each axis.

    Numbers are the coordinates, one array an axis.
    """

    def rule(query: Numbers, key: Numbers) -> Any:
        parts = [abs(q - k) <= far for q, k, far in zip(query, key, reach, strict=True)]
        return functools.reduce(lambda a, b: a & b, parts)

    return rule


def descends(query: Numbers, key: Numbers) -> Any:
    """Returns whether the key is the query or one of its ancestors in a tree.

    Numbers are (enter, leave) of a walk over the tree: a node's descendants are those that are
    entered from its `enter` on and before its `leave`. See `tree_numbers`.
    """
    return (key[0] <= query[0]) & (query[0] < key[1])


def started(query: Numbers, key: Numbers) -> Any:
    """Returns whether a key of a cache is written: the query's (start,), the key's (place,).

    Keys of the pass itself have the place -1: they are always there.
    """
    return key[0] < query[0]


def present(query: Numbers, key: Numbers) -> Any:
    """Returns whether there is a key at all: (anything,) against (bool,)."""
    return key[0]


def from_mask(mask: Any) -> Visibility:
    """Returns the visibility that a mask (n, m) bool spells out, for short sequences."""
    static = isinstance(mask, np.ndarray)
    query, key = (((np if static else jnp).arange(size),) for size in mask.shape)

    def rule(query: Numbers, key: Numbers) -> Any:
        known = static and isinstance(query[0], np.ndarray)
        return (mask if known else jnp.asarray(mask))[query[0], key[0]]

    return Visibility(rule, query, key)


def every(*rules: tuple[Rule, int]) -> Rule:
    """Returns the rule that asks all of several ones: (rule, how many numbers it reads) each."""

    def rule(query: Numbers, key: Numbers) -> Any:
        found, first = True, 0
        for one, count in rules:
            found &= one(query[first : first + count], key[first : first + count])
            first += count
        return found

    return rule


def tree_numbers(parents: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns (enter, leave) of each node for `descends`.

    Args:
      parents: Parent of each node, -1 for a root; parents come before their children.

    Raises:
      ValueError: a parent does not come before its child.
    """
    wrong = [i for i, parent in enumerate(parents) if not -1 <= parent < i]
    if wrong:
        raise ValueError(f"Node {wrong[0]} has parent {parents[wrong[0]]}, which must come before.")
    count = len(parents)
    sizes = np.ones(count, int)
    for i in reversed(range(count)):
        if parents[i] >= 0:
            sizes[parents[i]] += sizes[i]
    enter, free = np.zeros(count, int), np.zeros(count + 1, int)
    for i, parent in enumerate(parents):  # free[p] is where the next child of p begins
        enter[i] = free[parent]
        free[parent] += sizes[i]
        free[i] = enter[i] + 1
    return enter, enter + sizes
