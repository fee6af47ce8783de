"""The modules of a checkout of the official code, read as it needs them.

What it imports and these runs never call is empty where it is not installed. The release fixes the
16 x 16 grid and its cells of 8 x 8 in constants: for another grid they are replaced while the
modules are read. Only the standard library is used.
"""

import ast
import importlib
import importlib.abc
import importlib.machinery
import os
import sys
import types
from typing import Any

ABSENT = ("cv2", "torch_fidelity", "flash_attn", "torchvision", "tensorboard")
"""What the checkout imports and these runs never call: empty where it is not installed."""

UNFOUND = "the checkout is not the code that is known here: {} has no {} in {}"


def constants(side: int) -> dict[tuple[str, str], dict[int, int]]:
    """Returns the constants of each scope that hold the geometry, and what they become.

    Args:
      side: Tokens along an edge of the grid, of 2 x 2 cells.
    """
    cell = (side // 2) ** 2
    return {
        ("models.xar", "Attention.__init__"): {16: side},
        ("models.xar", "Attention.forward"): {64: cell},
        ("models.xar", "Block.forward"): {64: cell},
        ("models.xar", "xAR.unclusterify"): {8: side // 2, 16: side},
        ("models.xar", "xAR.sample_tokens"): {64: cell},
        ("models.sampler", "euler_maruyama_sampler"): {64: cell},
        ("models.rope", "VisionRotaryEmbeddingFast.__init__"): {256: side * side},
    }


class _Resized(importlib.machinery.SourceFileLoader):
    """Reads a module and replaces constants in some of its functions."""

    changes: dict[str, dict[int, int]]

    def source_to_code(self, data: Any, path: Any, **_: Any) -> Any:
        tree = ast.parse(data)
        for scope, table in self.changes.items():
            found = set()
            for node in ast.walk(_scope(tree, scope, self.name)):
                # True is a constant equal to 1.
                if isinstance(node, ast.Constant) and type(node.value) is int:
                    found.add(node.value)
                    node.value = table.get(node.value, node.value)
            if missing := set(table) - found:
                raise ImportError(UNFOUND.format(self.name, f"constant {missing}", scope))
        return compile(tree, path, "exec")

    def get_code(self, fullname: str) -> Any:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _scope(tree: ast.AST, scope: str, module: str) -> ast.AST:
    for name in scope.split("."):
        inner = [n for n in getattr(tree, "body", []) if getattr(n, "name", None) == name]
        if not inner:
            raise ImportError(UNFOUND.format(module, name, scope))
        tree = inner[-1]
    return tree


class _Names(type):
    """A class in which every name is itself."""

    def __getattr__(cls, name: str) -> str:
        return name


class _Empty(types.ModuleType):
    """A module in which every name is a class with nothing in it."""

    __path__: list[str] = []  # noqa: RUF012 -- a package, whose modules are found likewise

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Names(name, (), {})


class _Absent(importlib.abc.Loader):
    """Finds empty modules in place of those that are not installed; asked after all others."""

    def find_spec(self, name: str, *_: Any) -> Any:
        known = name.split(".")[0] in ABSENT
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: Any) -> Any:
        return _Empty(spec.name)

    def exec_module(self, module: Any) -> None:
        pass


class _Finder:
    """Finds the modules that are read resized."""

    def __init__(self, root: str, side: int):
        self._root, self._table = root, constants(side)

    def find_spec(self, name: str, *_: Any) -> Any:
        changes = {scope: table for (module, scope), table in self._table.items() if module == name}
        if not changes:
            return None
        loader = _Resized(name, os.path.join(self._root, *name.split(".")) + ".py")
        loader.changes = changes
        return importlib.machinery.ModuleSpec(name, loader, origin=loader.path)


def load(root: str, side: int) -> dict[str, Any]:
    """Returns the modules of a checkout by name, resized where the grid is not the release's.

    Args:
      root: Folder of the checkout.
      side: Tokens along an edge of the grid, of 2 x 2 cells.

    Raises:
      ImportError: the checkout is not the code that is known here; says what is missing.
    """
    sys.path.insert(0, root)
    sys.meta_path.append(_Absent())  # pyright: ignore
    if side != 16:
        sys.meta_path.insert(0, _Finder(root, side))  # pyright: ignore
    names = ("models.xar", "util.misc", "engine_xar")
    return {name: importlib.import_module(name) for name in names}
