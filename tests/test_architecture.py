"""Imports run one way, and what must not be there is not there (docs/architecture.md)."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jaxar"

# Each part may import from itself and from parts of earlier lines.
ORDER = (
    ("typing",),
    ("errors", "tree"),
    ("checks", "signatures", "trust", "migrations"),
    ("registry",),
    ("completion", "words"),
    ("config", "console", "files"),
    ("parallel",),
    ("core",),
    ("checkpoint", "data", "weights"),
    ("flow",),
    ("nn",),
    ("tokenizers", "heads"),
    ("schemes", "objectives"),
    ("systems",),
    ("system",),
    ("training",),
    ("assembly",),
    ("runs",),
    ("evaluation",),
    ("main", ""),
    ("__main__",),
)
RANK = {part: rank for rank, parts in enumerate(ORDER) for part in parts}
PURE = ("core", "flow", "nn", "heads", "schemes", "objectives", "system")
"""Parts that know neither files nor data sources nor devices by name."""
BASES = {("flowar", "xar")}
"""Systems that build on another one: (which, on what)."""
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
    assert part in RANK, f"{part} has no place in the order"
    for name in imports(path):
        words = name.split(".")
        assert words[0] not in ("configs", "tests", "torch", "tensorflow"), name
        if words[0] != "jaxar":
            continue
        other = words[1] if len(words) > 1 and words[1] not in ("Model",) else ""
        if other == part:
            continue
        assert RANK[other] < RANK[part], f"{part} imports {other}"
        if part in PURE:
            assert other not in ("checkpoint", "data", "weights"), f"{part} imports {other}"


def test_systems_import_rooms_and_declared_bases_alone():
    systems = [path for path in FILES if part_of(path) == "systems" and path.stem != "__init__"]
    for path in systems:
        for name in imports(path):
            words = name.split(".")
            if words[:2] == ["jaxar", "systems"]:
                assert (path.stem, words[3]) in BASES, f"{path} imports {name}"


@pytest.mark.parametrize(
    "part", ["migrations", "core", "flow", "parallel", "system", "heads", "schemes"]
)
def test_only_nn_knows_flax(part):
    for path in FILES:
        if part_of(path) == part:
            assert not [n for n in imports(path) if n.split(".")[0] == "flax"], path


def test_training_and_sampling_name_no_system():
    systems = ("xar", "var", "mar", "flowar")
    for path in FILES:
        if part_of(path) in (
            "training",
            "schemes",
            "parallel",
            "checkpoint",
            "data",
            "evaluation",
            "runs",
        ):
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
