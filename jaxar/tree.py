"""Nested dicts of arrays by path, "encoder/blocks/mlp/up/kernel", and differences of two trees."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


def paths(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree under their paths, in the tree's order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def nest(leaves: dict[str, Any]) -> dict[str, Any]:
    """Returns the nested dict of leaves given by path: the inverse of `paths`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def differences(given: Any, wanted: Any, *, dtypes: bool = False) -> list[str]:
    """Returns a line for each missing, unexpected or misshapen leaf of `given`; none if it fits.

    Args:
      given: Tree of arrays or of their shapes.
      wanted: Tree to compare with, of arrays or of their shapes.
      dtypes: Whether dtypes must agree too.
    """
    have, want = paths(given), paths(wanted)
    lines = [f"{path} is missing" for path in want if path not in have]
    lines += [f"{path} is unexpected" for path in have if path not in want]
    for path in (path for path in want if path in have):
        a, b = have[path], want[path]
        if tuple(a.shape) != tuple(b.shape):
            lines.append(f"{path} has shape {tuple(a.shape)} instead of {tuple(b.shape)}")
        elif dtypes and a.dtype != b.dtype:
            lines.append(f"{path} has dtype {a.dtype} instead of {b.dtype}")
    return lines


def changes(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """Returns a line, "seed: 2 here, 1 there", for each entry that differs in two records."""
    return [
        f"{key}: {here.get(key)!r} here, {there.get(key)!r} there"
        for key in sorted({*here, *there})
        if here.get(key) != there.get(key)
    ]


def count(tree: Any) -> int:
    """Returns the number of elements in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def digest(tree: Any, fetch: Callable[[Any], np.ndarray] = np.asarray) -> str:
    """Returns a SHA-256 over paths, shapes, dtypes and bytes of all leaves, in hexadecimal.

    Equal trees have equal digests, from whatever files they were read.

    Args:
      tree: Tree of arrays.
      fetch: Function that copies an array to the host.
    """
    total = hashlib.sha256()
    for path, leaf in sorted(paths(tree).items()):
        array = np.ascontiguousarray(fetch(leaf))
        total.update(f"{path} {array.shape} {array.dtype}\n".encode())
        total.update(array.data)
    return total.hexdigest()
