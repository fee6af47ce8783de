"""Errors that a person mends: a text is one sentence on what was wrong, where, and what to do."""

from collections.abc import Iterable, Sequence


class ConfigError(ValueError):
    """A setting that cannot work."""


class FieldError(ValueError):
    """An argument out of its range; its text begins with the argument's name.

    So whoever reads the argument from a config can put the path in front of it.
    """


def advice(near: Sequence[str], known: Iterable[str]) -> str:
    """Returns the end of an error about an unknown name.

    Args:
      near: Names that may be meant.
      known: All names, listed where none is near.
    """
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return f"choose from {', '.join(known)}."
