"""What signatures say to configs: the fields of a class or function, their kinds and types."""

import dataclasses
import functools
import inspect
import types
from collections.abc import Iterable, Mapping
from types import NoneType
from typing import Annotated, Any, Union, get_args, get_origin

from ml_collections import ConfigDict

from jaxar.errors import ConfigError

Part = Mapping[str, Any]
"""Annotation of an argument that is a part: a name and arguments. Its kind is the argument's name,
or that of `Annotated[Part, "kind"]`."""

NONE: Part = {"name": "none"}
"""The part that does nothing, of kinds that have one."""

EMPTY = inspect.Parameter.empty
"""Stands for what a config has to give and has not given."""

TYPES = {
    bool: "true or false (bool)",
    int: "a whole number (int)",
    float: "a finite number (float)",
    str: "text (str)",
}
"""Types of settings, in words."""

GROUP = (Mapping, ConfigDict)
"""What holds fields by name."""

Arguments = dict[str, inspect.Parameter]


@functools.cache
def signature(make: Any) -> tuple[inspect.Parameter, ...]:
    """Returns the parameters of a class or function, without `self`."""
    bound = inspect.isclass(make) and make.__init__ is not object.__init__
    function = make.__init__ if bound else make
    try:
        found = inspect.signature(function, eval_str=True)
    except (NameError, AttributeError, SyntaxError, TypeError):  # annotations for readers alone
        found = inspect.signature(function)
    made = {}
    if inspect.isclass(make) and dataclasses.is_dataclass(make):
        for field in dataclasses.fields(make):
            if field.default_factory is not dataclasses.MISSING:
                made[field.name] = field.default_factory()
    return tuple(
        one.replace(default=made[one.name]) if one.name in made else one
        for one in list(found.parameters.values())[1 if bound else 0 :]
    )


def kind_of(parameter: inspect.Parameter) -> str | None:
    """Returns the kind of part that an argument is, by its annotation or default, or None."""
    if isinstance(parameter.default, Mapping):
        return parameter.name
    for option in _options(parameter.annotation):
        if option is Part:
            return parameter.name
        if get_origin(option) is Annotated and get_args(option)[0] is Part:
            return get_args(option)[1]
    return None


def group_of(parameter: inspect.Parameter) -> Any:
    """Returns the dataclass whose fields are those of an argument, by its annotation, or None.

    Only of the first level of a config, where a dataclass is a group of fields, `config.memory`.
    """
    for option in _options(parameter.annotation):
        if dataclasses.is_dataclass(option):
            return option
    return None


def _options(annotation: Any) -> tuple[Any, ...]:
    union = get_origin(annotation) in (Union, types.UnionType)
    return get_args(annotation) if union else (annotation,)


def inlined(parameter: inspect.Parameter) -> bool:
    """Returns whether an argument is given by its fields, as `Compute` of networks is."""
    default = parameter.default
    return dataclasses.is_dataclass(default) and not isinstance(default, type)


def writable(value: Any) -> bool:
    """Returns whether a default can be written in a config."""
    if isinstance(value, tuple | list):
        return all(map(writable, value))
    return value is None or isinstance(value, bool | int | float | str | Mapping)


def typed(path: str, value: Any, wanted: Any) -> Any:
    """Returns a setting of the type that its argument names, where it names a plain one."""
    options = [option for option in _options(wanted) if option is not NoneType]
    if value is None and len(options) < len(_options(wanted)):
        return None
    wanted = options[0] if len(options) == 1 else None
    if value is EMPTY or wanted not in TYPES:
        return tuple(value) if isinstance(value, list) else value
    if wanted is float and type(value) is int and abs(value) < 1 << 1023:
        return float(value)
    if type(value) is not wanted:
        raise ConfigError(f"{path} must be {TYPES[wanted]}, not {value!r}.")
    return value


def require_whole(settings: Iterable[tuple[str, Any]]) -> None:
    """Raises ConfigError about the first setting that a config has to give and does not.

    Args:
      settings: Dotted paths and values.
    """
    for path, value in settings:
        if value is EMPTY:
            name = path.removesuffix(".name")
            raise ConfigError(f"config lacks {name!r}, which has no default: set it.")
