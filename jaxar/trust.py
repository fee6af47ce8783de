"""Own parts: names "my_package.heads:Gaussian" beside those of the registry, and who may give them.

A part is code, so a name is as good as a command. What a person writes, in a config file of his own
or on his command line, is done. What is *read*, from an export, a run or a hub, names parts of
jaxar, or of packages that the person has named: `trusting`. Nothing is imported before that check.
"""

import contextlib
import contextvars
import re
from collections.abc import Iterable, Iterator
from typing import Any

from jaxar.errors import ConfigError

OWN = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")

_trusted: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("trusted", default=())


def is_own(name: Any) -> bool:
    """Returns whether a name stands for an own part: "module:attribute"."""
    return isinstance(name, str) and OWN.fullmatch(name) is not None


def named(text: Any) -> str | None:
    """Returns the own part that a setting names, alone or as a call in words; else None."""
    if isinstance(text, tuple | list):
        return next(filter(None, map(named, text)), None)
    if not isinstance(text, str):
        return None
    found = OWN.match(text.strip())
    if found is None or text.strip()[found.end() :].lstrip()[:1] not in ("", "("):
        return None
    return found.group()


@contextlib.contextmanager
def trusting(names: Iterable[str]) -> Iterator[None]:
    """Lets the configs that are read inside name the own parts of some packages.

    Args:
      names: Packages, "my_package", modules, "my_package.heads", or parts,
        "my_package.heads:Gaussian".
    """
    token = _trusted.set((*_trusted.get(), *names))
    try:
        yield
    finally:
        _trusted.reset(token)


def require_trusted(settings: Iterable[tuple[str, Any]]) -> None:
    """Raises ConfigError where a config that was read names an own part that nobody trusts.

    Any text that could be the name of a part counts, wherever it stands.

    Args:
      settings: Dotted paths and values.
    """
    for path, value in settings:
        name = named(value)
        if name is None or any(_covers(trusted, name) for trusted in _trusted.get()):
            continue
        package = name.split(":")[0].split(".")[0]
        raise ConfigError(
            f"config.{path} names {name!r}, which is no part of jaxar, and was read from a file: "
            f"add --trust={package} (in Python trust=({package!r},)) if its code may run here."
        )


def _covers(trusted: str, name: str) -> bool:
    return trusted in (name, name.split(":")[0]) or name.startswith(f"{trusted}.")
