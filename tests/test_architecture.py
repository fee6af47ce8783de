"""Imports run one way, and what must not be there is not there (docs/architecture.md)."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jaxar"

# Each part may import from itself, from parts of earlier lines, and from the leaves.
ORDER = (
    ("typing",),
    ("tree", "ranges", "migrations"),
    ("axes",),
    ("config", "keys", "console", "files"),
    ("distributed",),
    ("resize",),
    ("plan", "flow", "draws"),
    ("nn",),
    ("tokenizers", "heads", "backbones"),
    ("samplers", "entities"),
    ("contexts",),
    ("system", "models"),
    ("training",),
    ("registry",),
    ("assembly",),
    ("api",),
    ("main", ""),
)
LEAVES = ("sharding", "checkpoint", "data", "metrics", "convert", "picture")
LEAVES_SEE = ("typing", "tree", "migrations", "axes", "config", "files", "resize")
RANK = {part: rank for rank, parts in enumerate(ORDER) for part in parts}
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(path):
    """Returns the part a file belongs to: its folder or its own name."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imports(path):
    """Yields the full names of modules that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    part = part_of(path)
    assert part in RANK or part in LEAVES, f"{part} has no place in the order"
    for name in imports(path):
        words = name.split(".")
        assert words[0] not in ("configs", "tests", "torch", "tensorflow"), name
        if words[0] != "jaxar":
            continue
        other = words[1] if len(words) > 1 and words[1] not in ("Model",) else ""
        if other == part:
            continue
        if part in LEAVES:
            assert other in LEAVES_SEE, f"{part} imports {other}"
        elif other in LEAVES:
            assert part in ("training", "registry", "api", "main", ""), f"{part} imports {other}"
        else:
            assert RANK[other] < RANK[part], f"{part} imports {other}"


@pytest.mark.parametrize(
    "part", ["migrations", "plan", "flow", "resize", "system", "heads", "samplers"]
)
def test_only_nn_knows_flax(part):
    for path in FILES:
        if part_of(path) == part:
            assert not [n for n in imports(path) if n.split(".")[0] == "flax"], path


def test_training_and_sampling_name_no_system():
    systems = ("xar", "var", "mar", "flowar")
    for path in FILES:
        if part_of(path) in ("training", "samplers", "sharding", "checkpoint", "data", "metrics"):
            names = {
                node.value.lower()
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            }
            assert not names & set(systems), path


def test_nothing_dangerous_reads_files():
    words = ("import pickle", " eval(", "yaml.load", "allow_pickle=True", "shell=True")
    for path in FILES:
        text = path.read_text()
        found = [word for word in words if word in text]
        assert not found, f"{path}: {found}"


def test_files_and_functions_stay_readable():
    for path in FILES:
        text = path.read_text()
        assert len(text.splitlines()) <= 460, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno <= 100, f"{path}: {node.name}"
