"""How what older versions stored is read: their names become the names of now.

Files say the format they were written in; what says none, and what people write, has format 0.
`MIGRATIONS[i]` holds the changes from format i to i + 1, in order:

    Field("label_dropout", "condition.dropout")     # a field or group, renamed or moved
    Value("model.name", "xar", "cells")             # a part renamed
    Added("sample.order", "raster")                 # what runs without the field did
    Parameter("^classes/table", "condition/table")  # in parameters, average and moments alike
    State("^optimizer/1/", "optimizer/2/")          # where the moments are kept

Names of fields and parts that a change gives up are never used again with another meaning: so old
names in configs and words of people, which say no format, can be translated whenever they are met.
"""

import copy
import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

Tree = dict[str, Any]
"""A config as nested dicts."""


@dataclasses.dataclass(frozen=True)
class Field:
    """A config field or a whole group has another name or place.

    Attributes:
      old: Dotted path before.
      new: Dotted path now; groups on the way are made, and those that are left empty removed.
      when: A field and the values it may have, where this is not so for all configs:
        ("model.name", "mar").
    """

    old: str
    new: str
    when: tuple[str, ...] = ()

    def apply(self, config: Tree) -> None:
        """Moves the field in a config, if it is there. Beside its new name the old one wins."""
        holder, name = _holder(config, self.old)
        if holder is None or name not in holder or not _applies(self.when, config):
            return
        if self.new.startswith(f"{self.old}.") and isinstance(holder[name], dict):
            return  # "system" -> "system.name" is done
        value = holder.pop(name)
        _prune(config, self.old)
        target, name = _holder(config, self.new, make=True)
        if target is not None:
            target[name] = value


@dataclasses.dataclass(frozen=True)
class Value:
    """A value of a config field is called differently: the name of a part, or a choice.

    Attributes:
      field: Dotted path: "model.name".
      old: Value before.
      new: Value now.
      when: See `Field`.
    """

    field: str
    old: Any
    new: Any
    when: tuple[str, ...] = ()

    def apply(self, config: Tree) -> None:
        """Replaces the value in a config, if it is there."""
        holder, name = _holder(config, self.field)
        found = None if holder is None else holder.get(name)
        if holder is None or type(found) is not type(self.old) or found != self.old:
            return
        if _applies(self.when, config):
            holder[name] = self.new


@dataclasses.dataclass(frozen=True)
class Added:
    """A config field that older configs lack.

    Attributes:
      field: Dotted path.
      value: What reproduces their behaviour; a dict for a group or a part.
      when: See `Field`.
    """

    field: str
    value: Any
    when: tuple[str, ...] = ()

    def apply(self, config: Tree) -> None:
        """Sets the field in a config that lacks it."""
        if not _applies(self.when, config):
            return
        holder, name = _holder(config, self.field, make=True)
        if holder is not None:
            holder.setdefault(name, copy.deepcopy(self.value))


@dataclasses.dataclass(frozen=True)
class Parameter:
    """Parameters have another path, and with them their averages and their moments.

    Attributes:
      pattern: Regular expression, searched for in "encoder/blocks/mlp/up/kernel".
      replacement: As `re.sub` takes it.
    """

    pattern: str
    replacement: str


@dataclasses.dataclass(frozen=True)
class State:
    """Leaves of the training state have another path.

    Attributes:
      pattern: Regular expression, searched for in the path without the parameter's own, such as
        "optimizer/1/mu", or "optimizer/3/count".
      replacement: As `re.sub` takes it.
    """

    pattern: str
    replacement: str


Change = Field | Value | Added | Parameter | State

MIGRATIONS: tuple[tuple[Change, ...], ...] = (
    (),  # 0, whose files do not say a format, to 1
)
FORMAT = len(MIGRATIONS)
"""The format that is written now."""


def migrated(config: Tree, since: int = 0, *, fill: bool = True) -> Tree:
    """Returns a config of an older format, changed in place, as it is written now.

    What it has in the names of now is left as it is.

    Args:
      config: Nested dicts.
      since: Its format.
      fill: Whether it gets the fields that it lacks.
    """
    for change in _since(since):
        if isinstance(change, Field | Value) or (fill and isinstance(change, Added)):
            change.apply(config)
    return config


def key(name: str) -> str:
    """Returns the dotted path that a field, or a field of a group, has now."""
    for change in _since(0):
        if isinstance(change, Field) and f"{name}.".startswith(f"{change.old}."):
            name = change.new + name[len(change.old) :]
    return name


def parameter(path: str, since: int) -> str:
    """Returns the path that a parameter of an older format has now."""
    for change in _since(since):
        if isinstance(change, Parameter):
            path = re.sub(change.pattern, change.replacement, path)
    return path


def state(paths: Iterable[str], since: int) -> dict[str, str]:
    """Returns the paths that the leaves of a stored training state have now, by stored path.

    Args:
      paths: "step", "params/...", "ema/...", "optimizer/1/mu/..."; a leaf whose path ends with that
        of a parameter belongs to it.
      since: Format of the state.

    Raises:
      ValueError: the table gives two leaves one path.
    """
    stored = list(paths)
    parts = (path.partition("/") for path in stored)
    parameters = {rest for field, _, rest in parts if field in ("params", "ema")}
    now = {}
    for path in stored:
        place, own = _split(path, parameters)
        for change in _since(since):
            if isinstance(change, State):
                place = re.sub(change.pattern, change.replacement, place)
        now[path] = f"{place}/{parameter(own, since)}" if own else place
    if len(set(now.values())) < len(now):
        raise ValueError(f"Two of {stored} get one path: {sorted(now.values())}.")
    return now


def _since(since: int) -> Iterator[Change]:
    """Returns the changes after a format, in order."""
    return itertools.chain.from_iterable(MIGRATIONS[since:])


def _split(path: str, parameters: set[str]) -> tuple[str, str]:
    """Returns where a leaf is kept, and the parameter it belongs to, "" if to none."""
    words = path.split("/")
    for i in range(1, len(words)):
        own = "/".join(words[i:])
        if own in parameters:
            return "/".join(words[:i]), own
    return path, ""


def _holder(config: Tree, path: str, *, make: bool = False) -> tuple[Tree | None, str]:
    """Returns the group of a dotted path, or None where there is none, and the last name."""
    *groups, name = path.split(".")
    holder: Any = config
    for group in groups:
        holder = holder.setdefault(group, {}) if make else holder.get(group)
        if not isinstance(holder, dict):
            return None, name
    return holder, name


def _prune(config: Tree, path: str) -> None:
    """Removes the groups around a path that are empty."""
    group = path.rpartition(".")[0]
    while group:
        holder, name = _holder(config, group)
        if holder is None or holder[name]:
            return
        del holder[name]
        group = group.rpartition(".")[0]


def _applies(when: tuple[str, ...], config: Tree) -> bool:
    """Returns whether a config has one of the values of a condition."""
    if not when:
        return True
    field, *values = when
    holder, name = _holder(config, field)
    return holder is not None and holder.get(name) in values
