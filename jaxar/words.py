"""Words of a command line as values: what "64", "1e-3", "no", "8, 8" and "cell(height=4)" mean.

A word is read as the type of the value it replaces; nothing is evaluated but literals.
"""

import ast
import math
from collections.abc import Callable
from types import NoneType
from typing import Any

from jaxar.errors import ConfigError
from jaxar.signatures import EMPTY, TYPES
from jaxar.trust import OWN

# What reading hostile text with `ast` can raise.
_MALFORMED = (ValueError, SyntaxError, TypeError, OverflowError, MemoryError, RecursionError)


def read(key: str, text: str, present: Any) -> Any:
    """Returns the value that a text means where the present value is of the type wanted."""
    if isinstance(present, dict):
        return read_part(key, text, present)
    if isinstance(present, tuple):
        return _read_tuple(key, text, present)
    wanted, reader = READERS[type(present)]
    try:
        return reader(text)
    except ValueError:
        raise ConfigError(f"{key} must be {wanted}, not {text!r}.") from None


def read_part(key: str, text: str, present: dict[str, Any]) -> dict[str, Any]:
    """Returns the part that a name, `token`, or a call, `cell(height=4, width=4)`, describes."""
    if "name" not in present:
        field = next(iter(present), "field")
        raise ConfigError(f"{key} is a group: set its fields one by one, such as {key}.{field}=...")
    own = OWN.match(text.strip())
    short = f"own{text.strip()[own.end() :]}" if own else text
    try:
        match ast.parse(short, mode="eval").body:
            case ast.Name(id=name):
                return {"name": own.group() if own else name}
            case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords):
                return {"name": own.group() if own else name, **_arguments(keywords)}
        raise ValueError(text)
    except _MALFORMED:
        form = ", ".join(f"{k}={v!r}" for k, v in present.items() if k != "name" and v is not EMPTY)
        like = present["name"] if present["name"] is not EMPTY else "name"
        raise ConfigError(
            f"{key} must be a name or a call of it with literal keyword arguments, such as "
            f"{like}({form}), not {text!r}."
        ) from None


def _arguments(keywords: list[ast.keyword]) -> dict[str, Any]:
    """Returns literal arguments by name."""
    given = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in keywords}
    if len(given) < len(keywords) or given.keys() & {"None", "name"}:  # None is **mapping
        raise ValueError(given)
    return given


def _read_tuple(key: str, text: str, present: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns a tuple of any length from `(8, 8)`, `[8, 8]` or `8, 8`, items typed as present."""
    try:
        body = ast.parse(text, mode="eval").body
    except _MALFORMED:
        raise ConfigError(f"{key} must be a tuple such as {present!r}, not {text!r}.") from None
    items = body.elts if isinstance(body, ast.Tuple | ast.List) else [body]
    like = [*present[: len(items)], *present[-1:] * len(items)] or [None] * len(items)
    return tuple(
        read(f"{key}[{i}]", ast.get_source_segment(text, item) or "", like[i])
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


READERS: dict[type, tuple[str, Callable[[str], Any]]] = {
    bool: (TYPES[bool], _read_bool),
    int: (TYPES[int], _read_int),
    float: (TYPES[float], _read_float),
    str: (TYPES[str], _read_str),
    NoneType: ("a literal", _read_any),
}
"""How each type of setting is called and read; a setting has one of these types."""
