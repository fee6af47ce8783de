"""Whole configs: every field that a config can have, with its default; what cannot be is refused.

The first level of a config has the fields of `Run`, which every run has, and the arguments of the
system that `config.system` names. A field is a part, a group (a dataclass) or a setting. The fields
of `config.sample` are those of `Run` and of the `sampling` of each part: a head declares how it
draws, a context how it walks.
"""

import dataclasses
import functools
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from jaxar import registry
from jaxar.errors import ConfigError
from jaxar.signatures import EMPTY, GROUP, Arguments, group_of, kind_of, signature

Tree = dict[str, Any]
"""A config as nested dicts and settings."""


def complete(tree: Tree) -> Tree:
    """Returns a config with the defaults of all fields that it does not give.

    What is missing and has no default is `EMPTY`.

    Raises:
      ConfigError: there is no such part or field, or it is of another type.
    """
    return registry.filled("", tree, _wanted(tree))


def sampling(tree: Tree) -> frozenset[str]:
    """Returns the fields that `config.sample` can have beside the parts of a config."""
    sample: Any = group_of(_wanted(tree)["sample"])
    return frozenset(field.name for field in dataclasses.fields(sample))


def check(tree: Tree) -> None:
    """Raises ConfigError about the first setting of a whole config that is out of its range.

    These are the settings of the run; parts check their own when they are made.
    """
    given = {}
    for one in signature(_run()):
        group, given[one.name] = group_of(one), tree.get(one.name)
        if group is not None:
            own = {key: tree[one.name][key] for key in registry.fields(group)}
            given[one.name] = registry.called(one.name, group, **own)
    registry.called("", _run(), **given)
    for group in _declared(tree, _wanted(tree)):
        own = {key: tree["sample"][key] for key in registry.fields(group)}
        registry.called("sample", group, **own)


def _run() -> Any:
    """Returns the dataclass of what every run has; this module stands below it."""
    return import_module("jaxar.training.run").Run


def _wanted(tree: Tree) -> Arguments:
    """Returns the fields of the first level of a config."""
    if "system" not in tree:
        systems = sorted(registry.PARTS["system"])
        raise ConfigError(f"config lacks 'system', which has no default: choose one of {systems}.")
    wanted = registry.fields(_run())
    own = registry.arguments("system", tree["system"])
    wanted |= {name: own[name] for name in own if name not in wanted}
    for kind, _, name in _parts(tree, wanted):
        for other in registry.taken(kind, name) & wanted.keys():
            if wanted[other].default is None:  # what a part needs is no longer optional
                wanted[other] = wanted[other].replace(default=EMPTY)
    pictures = wanted["sample"]
    joined = _joined(group_of(pictures), *_declared(tree, wanted))
    return {**wanted, "sample": pictures.replace(annotation=joined)}


def _parts(tree: Tree, wanted: Arguments) -> Iterator[tuple[str, str, Any]]:
    """Yields kind, field and name of the parts at the first level of a config."""
    for field, value in tree.items():
        if isinstance(value, GROUP) and value.get("name", EMPTY) is not EMPTY:
            kind = kind_of(wanted[field]) if field in wanted else None
            yield kind or field, field, value["name"]


def _declared(tree: Tree, wanted: Arguments) -> list[Any]:
    """Returns the dataclasses of sampling that parts declare."""
    made = [registry.lookup(kind, name, field) for kind, field, name in _parts(tree, wanted)]
    found = [getattr(part, "sampling", None) for part in made]
    return [one for one in found if dataclasses.is_dataclass(one)]


@functools.cache
def _joined(*groups: Any) -> Any:
    """Returns a dataclass with the fields of several."""
    fields = {one.name: one for group in groups for one in signature(group)}
    return dataclasses.make_dataclass(
        "Sample",
        [
            (name, one.annotation, dataclasses.field(default=one.default))
            for name, one in fields.items()
        ],
        kw_only=True,
    )
