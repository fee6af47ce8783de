"""The settings of a run: a Python file returns them, words change them, JSON keeps them.

A config is a tree of groups. Its leaves, the settings, are None, bool, int, float, str or tuples of
them. A group with a `name` is a part: the name of a constructor and its arguments.

    config = override(load("xar_b"), ["model.width=128", "plan=cell(height=4, width=4)"])
    check(config)
    print(render(config))

Nothing written on a command line is ever evaluated; only the config file asked for is run.
"""

import ast
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from traceback import extract_tb
from types import NoneType
from typing import Any

from ml_collections import ConfigDict

from jaxar import migrations
from jaxar.ranges import RULES

_PACKAGE = Path(__file__).resolve().parent
_FOLDERS = (Path("configs"), _PACKAGE / "configs", _PACKAGE.parent / "configs")
# What reading hostile text with `ast` can raise.
_MALFORMED = (ValueError, SyntaxError, TypeError, OverflowError, MemoryError, RecursionError)


class ConfigError(ValueError):
    """A setting that cannot work; its text is one sentence: what was wrong, where, what to do."""


def spec(name: str, **arguments: Any) -> ConfigDict:
    """Returns a part chosen by name: a cell of 8 x 8 is `spec("cell", height=8, width=8)`."""
    return ConfigDict({"name": name, **arguments})


# From files.


def load(source: str) -> ConfigDict:
    """Returns what `get_config()` of a config file returns, locked and with its types checked.

    Args:
      source: A path, "configs/xar_b.py", or a bare name, "xar_b", looked for in ./configs, in the
        checkout and in the installed package.
    """
    path = _locate(source)
    module: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module)
        if "get_config" not in module:
            raise ConfigError("it has no function get_config(), which returns the config.")
        config = module["get_config"]()
        if not isinstance(config, ConfigDict):
            raise ConfigError(f"get_config() must return a ConfigDict, not {config!r}.")
        return _locked(migrations.migrated(_plain(config)))
    except ConfigError as error:
        if str(path) in str(error):  # it comes through a file that loads itself
            raise
        raise ConfigError(f"{path}: {error}") from error
    except Exception as error:
        lines = [f.lineno for f in extract_tb(error.__traceback__) if f.filename == str(path)]
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        raise ConfigError(f"{where}: {type(error).__name__}: {error}") from error


def _locate(source: str) -> Path:
    """Returns the file that a path or a bare name stands for."""
    path = Path(source).expanduser()
    bare = path.name == source and path.suffix != ".py"
    for file in [folder / f"{source}.py" for folder in _FOLDERS] if bare else [path]:
        if file.is_file():
            return file
    known = sorted({file.stem for folder in _FOLDERS for file in folder.glob("*.py")})
    near = get_close_matches(path.stem, known)
    raise ConfigError(f"There is no config {source!r}: {_advice(near, known)}")


# Changes.


def override(config: ConfigDict, assignments: Sequence[str]) -> ConfigDict:
    """Returns a locked copy with fields set by words: "model.width=128", "plan=cell(height=4)".

    A word is read as the type its field has; a field that is None takes any. Later words win.

    Args:
      config: Left as it is.
      assignments: "field=value" each; "--config.field=value" means the same.
    """
    tree = _plain(config)
    free = {path for path, value in _nodes(tree) if value is None}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip().removeprefix("--").removeprefix("config.")
        if not equals:
            raise ConfigError(f"{assignment!r} has no '=': write field=value, such as steps=1000.")
        key = _present(tree, key)
        group, field = _find(tree, key)
        group[field] = _read(key, text.strip(), None if key in free else group[field])
        migrations.migrated(tree, fill=False)  # of parts, "cell(...)", and their arguments
    return _locked(tree)


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
    raise ConfigError(f"config has no field {key!r}: {_advice(near, list(tree))}")


def _nearest(key: str, paths: list[str]) -> list[str]:
    """Returns the paths a mistaken key may mean; a bare name is compared with last names."""
    if "." in key:
        return get_close_matches(key, paths, n=1)
    names = [path.rpartition(".")[2] for path in paths]
    near = get_close_matches(key, names, n=1)
    return [path for path, name in zip(paths, names, strict=True) if name in near]


def _advice(near: list[str], known: list[str]) -> str:
    """Returns the end of an error about an unknown name."""
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return f"choose from {', '.join(known)}."


# Words.


def read_spec(field: str, text: str, like: ConfigDict) -> ConfigDict:
    """Returns the part that words describe: a name, `token`, or a call, `cell(height=4, width=4)`.

    Args:
      field: What to call it in errors.
      text: The words.
      like: A part of the kind, whose arguments tell the types wanted.
    """
    return ConfigDict(_read_part(field, text, _plain(like)))


def _read(key: str, text: str, present: Any) -> Any:
    """Returns the value that a text means where the present value is of the type wanted."""
    if isinstance(present, dict):
        return _read_part(key, text, present)
    if isinstance(present, tuple):
        return _read_tuple(key, text, present)
    wanted, reader = _READERS[type(present)]
    try:
        return reader(text)
    except ValueError:
        raise ConfigError(f"{key} must be {wanted}, not {text!r}.") from None


def _read_part(key: str, text: str, present: dict[str, Any]) -> dict[str, Any]:
    """Returns the part that a name, `token`, or a call, `cell(height=4, width=4)`, describes."""
    if "name" not in present:
        field = next(iter(present), "field")
        raise ConfigError(f"{key} is a group: set its fields one by one, such as {key}.{field}=...")
    try:
        match ast.parse(text, mode="eval").body:
            case ast.Name(id=name):
                return {"name": name}
            case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords):
                return {"name": name, **_arguments(keywords, present)}
        raise ValueError(text)
    except _MALFORMED:
        form = ", ".join(f"{k}={v!r}" for k, v in present.items() if k != "name")
        raise ConfigError(
            f"{key} must be a name or a call of it with literal keyword arguments, such as "
            f"{present['name']}({form}), not {text!r}."
        ) from None


def _arguments(keywords: list[ast.keyword], present: dict[str, Any]) -> dict[str, Any]:
    """Returns literal arguments; a whole number becomes a float where a float is present."""
    given = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in keywords}
    if len(given) < len(keywords) or given.keys() & {"None", "name"}:  # None is **mapping
        raise ValueError(given)
    floats = {name for name, value in present.items() if isinstance(value, float)}
    return {k: float(v) if type(v) is int and k in floats else v for k, v in given.items()}


def _read_tuple(key: str, text: str, present: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns a tuple of any length from `(8, 8)`, `[8, 8]` or `8, 8`, items typed as present."""
    try:
        body = ast.parse(text, mode="eval").body
    except _MALFORMED:
        raise ConfigError(f"{key} must be a tuple such as {present!r}, not {text!r}.") from None
    items = body.elts if isinstance(body, ast.Tuple | ast.List) else [body]
    like = [*present[: len(items)], *present[-1:] * len(items)] or [None] * len(items)
    return tuple(
        _read(f"{key}[{i}]", ast.get_source_segment(text, item) or "", like[i])
        for i, item in enumerate(items)
    )


def _read_bool(text: str) -> bool:
    """Returns the truth of a word, in any case."""
    if text.lower() in ("true", "yes", "on", "1"):
        return True
    if text.lower() in ("false", "no", "off", "0"):
        return False
    raise ValueError(text)


def _read_int(text: str) -> int:
    """Returns a whole number, also from "2_048" and "1e3"."""
    try:
        return int(text)
    except ValueError:
        number = _read_float(text)
        if not number.is_integer():
            raise
        return int(number)


def _read_float(text: str) -> float:
    """Returns a finite number."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _read_str(text: str) -> str:
    """Returns the text, without the quotes if it has them."""
    try:
        value = ast.literal_eval(text) if text[:1] in ("'", '"') else text
    except _MALFORMED:
        return text
    return value if isinstance(value, str) else text


def _read_any(text: str) -> Any:
    """Returns the literal or truth word that a text is, or else the text."""
    if text.lower() == "none":
        return None
    for reader in (ast.literal_eval, _read_bool):
        try:
            value = reader(text)
        except _MALFORMED:
            continue
        if isinstance(value, (NoneType, int, float, str, tuple, list)):
            return value
    return text


_READERS: dict[type, tuple[str, Callable[[str], Any]]] = {
    bool: ("true or false (bool)", _read_bool),
    int: ("a whole number (int)", _read_int),
    float: ("a finite number (float)", _read_float),
    str: ("text (str)", _read_str),
    NoneType: ("a literal", _read_any),
}


# Text.


def to_json(config: ConfigDict) -> str:
    """Returns the config and its format as sorted JSON; `from_json` gives back an equal config."""
    return json.dumps({"format": migrations.FORMAT, **_plain(config)}, indent=2, sort_keys=True)


def from_json(text: str, source: str | Path = "The config") -> ConfigDict:
    """Returns the locked config that `to_json` of any version wrote; `source` names it in errors.

    Arrays become tuples, and older names those of now.
    """
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source} is not JSON: {error}.") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{source} must be a JSON object, not {tree!r}.")
    since = format_of(tree, source)
    return _locked(migrations.migrated(_plain({k: tree[k] for k in tree if k != "format"}), since))


def format_of(facts: Mapping[str, Any], source: str | Path) -> int:
    """Returns the entry "format" of what was stored, 0 without; newer ones raise ConfigError."""
    found, known = facts.get("format", 0), migrations.FORMAT
    if type(found) is not int or not 0 <= found <= known:
        raise ConfigError(
            f"{source} has format {found!r}, but this version of jaxar knows 0 to {known}: update "
            "jaxar."
        )
    return found


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
    if type(value) not in _READERS:
        raise ConfigError(
            f"{path} must be None, bool, int, float, str or a tuple of them, not {value!r}."
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path} must be finite, not {value}.")
    return value


def _locked(group: Any) -> ConfigDict:
    """Returns a copy that shares nothing with the group and refuses new fields and other types."""
    return ConfigDict(_plain(group)).lock()


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
    """Returns None if every field is in its range; else raises ConfigError about the first."""
    nodes = dict(_nodes(_plain(config)))
    for path, value in nodes.items():
        for pattern, (fits, allowed) in RULES.items():
            if fnmatchcase(path, pattern) and not fits(value):
                raise ConfigError(f"{path} must be {allowed}, not {value!r}.")
    steps, warmup = nodes.get("steps", math.inf), nodes.get("optimizer.warmup_steps", 0)
    if warmup > steps:
        raise ConfigError(f"optimizer.warmup_steps must be at most steps, {steps}, not {warmup}.")
    rest = [path for path, value in nodes.items() if path.startswith("mesh.") and value == -1]
    if len(rest) > 1:
        raise ConfigError(f"{' and '.join(rest)} cannot all be -1: one axis takes what remains.")
