"""The settings of a run: a Python file returns them, words change them, JSON keeps them.

A config is a tree of groups. Its leaves, the settings, are None, bool, int, float, str or tuples of
them. A group with a `name` is a part: the name of a constructor and its arguments. What a config
does not say is filled in (`completion`), so a field is there to be set whether or not a file
spells it out, and a field that no part has is refused wherever it is written.

    config = override(load("xar_b"), ["model.width=128", "plan=cell(height=4, width=4)"])
    check(config)
    print(render(config))

Nothing written on a command line is ever evaluated; only the config file asked for is run.
"""

import json
import math
from collections.abc import Collection, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from traceback import extract_tb
from types import SimpleNamespace
from typing import Any

from ml_collections import ConfigDict

from jaxar import completion, migrations, words
from jaxar.errors import ConfigError, advice
from jaxar.signatures import EMPTY, require_whole
from jaxar.trust import named, require_trusted, trusting

__all__ = [
    "ConfigDict",
    "ConfigError",
    "beside",
    "check",
    "differences",
    "files",
    "from_json",
    "load",
    "override",
    "own_parts",
    "read_spec",
    "render",
    "spec",
    "to_json",
    "trusting",
]

_PACKAGE = Path(__file__).resolve().parent
_FOLDERS = (Path("configs"), _PACKAGE / "configs", _PACKAGE.parent / "configs")


def spec(name: str, **arguments: Any) -> ConfigDict:
    """Returns a part chosen by name: a cell of 8 x 8 is `spec("cell", height=8, width=8)`."""
    return ConfigDict({"name": name, **arguments})


# From files.


def load(source: str) -> ConfigDict:
    """Returns what `get_config()` of a config file returns, completed and locked.

    Args:
      source: A path, "configs/xar_b.py", or a bare name, "xar_b", looked for in ./configs, in the
        checkout and in the installed package, and in all folders there.
    """
    path = _locate(source)
    try:
        module = _run(path)
        if "get_config" not in module:
            raise ConfigError("it has no function get_config(), which returns the config.")
        config = module["get_config"]()
        if not isinstance(config, ConfigDict):
            raise ConfigError(f"get_config() must return a ConfigDict, not {config!r}.")
        return _completed(migrations.migrated(_plain(config)))
    except ConfigError as error:
        if str(path) in str(error):  # it comes through a file that loads itself
            raise
        raise ConfigError(f"{path}: {error}") from error
    except Exception as error:
        lines = [f.lineno for f in extract_tb(error.__traceback__) if f.filename == str(path)]
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        raise ConfigError(f"{where}: {type(error).__name__}: {error}") from error


def beside(file: str, name: str) -> Any:
    """Returns what a Python file defines that lies beside a config file, or in a folder above it.

        common = beside(__file__, "common")

    So configs share lines wherever they lie, and nothing has to be installed or imported.

    Args:
      file: The config file, `__file__`.
      name: The other file's name, without ".py".
    """
    for folder in Path(file).absolute().parents[:3]:
        if (folder / f"{name}.py").is_file():
            return SimpleNamespace(**_run(folder / f"{name}.py"))
    raise ConfigError(f"There is no {name}.py beside {file} or in a folder above it.")


def files(folder: Path) -> list[Path]:
    """Returns the config files in a folder and those inside it: they define `get_config`."""
    found = sorted(folder.rglob("*.py"))
    return [file for file in found if "def get_config(" in file.read_text(errors="replace")]


def _run(path: Path) -> dict[str, Any]:
    """Returns what a file defines; it is not imported, so that edits are seen and no name taken."""
    module: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    exec(compile(path.read_bytes(), str(path), "exec"), module)
    return module


def _locate(source: str) -> Path:
    """Returns the file that a path or a bare name stands for."""
    path = Path(source).expanduser()
    bare = path.name == source and path.suffix != ".py"
    if not bare and path.is_file():
        return path
    name = source if bare else path.stem
    for folder in _FOLDERS:
        found = (file for file in files(folder) if file.stem == name)
        for file in [folder / f"{name}.py", *found]:
            if file.is_file() and bare:
                return file
            if file.is_file():
                raise ConfigError(f"There is no config {source!r}: did you mean {str(file)!r}?")
    known = sorted({file.stem for folder in _FOLDERS for file in files(folder)})
    near = get_close_matches(name, known)
    raise ConfigError(f"There is no config {source!r}: {advice(near, known)}")


# Changes.


def override(config: ConfigDict, assignments: Sequence[str]) -> ConfigDict:
    """Returns a locked copy with fields set by words: "model.width=128", "plan=cell(height=4)".

    A word is read as the type its field has; a field that is None takes any. Later words win. A
    part is replaced whole: arguments that the words do not give have their defaults.

    Args:
      config: Left as it is.
      assignments: "field=value" each; "--config.field=value" means the same.
    """
    tree, free = completion.complete(_plain(config)), set()
    for assignment in assignments:
        free |= {path for path, value in _nodes(tree) if value is None or value is EMPTY}
        key, equals, text = assignment.partition("=")
        key = key.strip().removeprefix("--").removeprefix("config.")
        if not equals:
            raise ConfigError(f"{assignment!r} has no '=': write field=value, such as steps=1000.")
        key = _present(tree, key)
        group, field = _find(tree, key)
        was = completion.sampling(tree)
        group[field] = words.read(key, text.strip(), None if key in free else group[field])
        migrations.migrated(tree, fill=False)  # of parts, "cell(...)", and their arguments
        tree = completion.complete(_without_old(tree, was))
    return _completed(tree)


def _without_old(tree: dict[str, Any], was: frozenset[str]) -> dict[str, Any]:
    """Returns a config without settings of sampling that were those of a part it no longer has."""
    old = was - completion.sampling(tree)
    return {**tree, "sample": {k: v for k, v in tree["sample"].items() if k not in old}}


def _present(tree: dict[str, Any], key: str) -> str:
    """Returns a key, or what it is called now if the config has only that."""
    known, now = {path for path, _ in _nodes(tree)}, migrations.key(key)
    return now if key not in known and now in known else key


def _find(tree: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """Returns the group that holds a dotted key, and the key's last name."""
    *parents, field = key.split(".")
    group: Any = tree
    for name in parents:
        group = group.get(name) if isinstance(group, dict) else None
    if isinstance(group, dict) and field in group:
        return group, field
    near = _nearest(key, [path for path, _ in _nodes(tree)])
    raise ConfigError(f"config has no field {key!r}: {advice(near, tree)}")


def _nearest(key: str, paths: list[str]) -> list[str]:
    """Returns the paths a mistaken key may mean; a bare name is compared with last names."""
    if "." in key:
        return get_close_matches(key, paths, n=1)
    names = [path.rpartition(".")[2] for path in paths]
    near = get_close_matches(key, names, n=1)
    return [path for path, name in zip(paths, names, strict=True) if name in near]


def read_spec(field: str, text: str, like: ConfigDict) -> ConfigDict:
    """Returns the part that words describe: a name, `token`, or a call, `cell(height=4, width=4)`.

    Args:
      field: What to call it in errors.
      text: The words.
      like: A part of the kind, to show in errors.
    """
    return ConfigDict(words.read_part(field, text, _plain(like)))


# Text.


def to_json(config: ConfigDict) -> str:
    """Returns the config and its format as sorted JSON; `from_json` gives back an equal config."""
    return json.dumps({"format": migrations.FORMAT, **_plain(config)}, indent=2, sort_keys=True)


def from_json(text: str, source: str | Path = "The config") -> ConfigDict:
    """Returns the locked config that `to_json` of any version wrote; `source` names it in errors.

    Arrays become tuples, older names those of now, and what is missing gets its default.

    Raises:
      ConfigError: it is no config, a newer version wrote it, or it names an own part that is not
        trusted (`trusting`).
    """
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source} is not JSON: {error}.") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{source} must be a JSON object, not {tree!r}.")
    since = migrations.format_of(tree, source)
    tree = migrations.migrated(_plain({k: tree[k] for k in tree if k != "format"}), since)
    require_trusted(_nodes(tree))
    return _completed(tree)


def own_parts(config: ConfigDict) -> tuple[str, ...]:
    """Returns the names of the parts of a config that are not of jaxar."""
    names = (named(value) for _, value in _nodes(_plain(config)))
    return tuple(dict.fromkeys(name for name in names if name))


def render(config: ConfigDict) -> str:
    """Returns an aligned line, `model.width = 768`, for each setting, in the order of definition.

    Each line can be given back to `override`.
    """
    leaves = _leaves(config)
    width = max(map(len, leaves), default=0)
    return "\n".join(f"{path:{width}} = {value!r}" for path, value in leaves.items())


def differences(a: ConfigDict, b: ConfigDict, ignore: Collection[str] = ()) -> list[str]:
    """Returns a line, "model.width: 768 here, 512 there", for each setting that is not the same.

    Args:
      a: Here.
      b: There.
      ignore: Dotted prefixes of settings that may differ: "sample" stands for all of its group.
    """
    here, there = _leaves(a), _leaves(b)
    return [
        f"{path}: {repr(here[path]) if path in here else 'absent'} here, "
        f"{repr(there[path]) if path in there else 'absent'} there"
        for path in {**here, **there}
        if not any(f"{path}.".startswith(f"{prefix}.") for prefix in ignore)
        and (path not in here or path not in there or here[path] != there[path])
    ]


# Trees.


def _plain(group: Any, prefix: str = "") -> dict[str, Any]:
    """Returns a group as nested dicts in the order of definition; lists become tuples."""
    plain = {}
    for key in vars(group)["_fields"] if isinstance(group, ConfigDict) else group:  # items() sorts
        if not isinstance(key, str) or not key.isidentifier() or key.startswith("__"):
            raise ConfigError(f"{prefix}{key} cannot be set by name: rename it to one plain word.")
        value = group[key]
        if isinstance(value, dict | ConfigDict):
            plain[key] = _plain(value, f"{prefix}{key}.")
        else:
            plain[key] = _setting(f"{prefix}{key}", value)
    return plain


def _setting(path: str, value: Any) -> Any:
    """Returns a leaf whose kind can be written down and read back."""
    if isinstance(value, tuple | list):
        return tuple(_setting(path, item) for item in value)
    if type(value) not in words.READERS:
        raise ConfigError(
            f"{path} must be None, bool, int, float, str or a tuple of them, not {value!r}."
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path} must be finite, not {value}.")
    return value


def _completed(tree: dict[str, Any]) -> ConfigDict:
    """Returns a whole config that refuses new fields and other types."""
    whole = completion.complete(tree)
    require_whole(_nodes(whole))
    return ConfigDict(_plain(whole)).lock()


def _nodes(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted path and value of every group and setting, from the top down."""
    for key, value in tree.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from _nodes(value, f"{prefix}{key}.")


def _leaves(config: ConfigDict) -> dict[str, Any]:
    """Returns the settings by dotted path, in the order of definition."""
    return {path: value for path, value in _nodes(_plain(config)) if not isinstance(value, dict)}


def check(config: ConfigDict) -> None:
    """Raises ConfigError about the first setting of a run that is out of its range.

    Parts check their own arguments, when they are made.
    """
    completion.check(_plain(_completed(_plain(config))))
