"""What an argument may be: a vocabulary of rules, for constructors and `__post_init__`.

    require(vars(self), steps=whole(1), shift=above(0), dtype=one_of("float32", "float64"))

A number that is not finite passes no rule.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

from jaxar.errors import FieldError


@dataclasses.dataclass(frozen=True)
class Rule:
    """A test of a value, and the words for what passes it.

    Attributes:
      fits: Whether a value passes.
      allowed: Ends the sentence "it must be ...".
    """

    fits: Callable[[Any], bool]
    allowed: str


def require(values: Mapping[str, Any], **rules: Rule) -> None:
    """Raises FieldError about the first argument that breaks its rule.

    Args:
      values: Arguments by name: `vars(self)` of a dataclass, `locals()` at the top of a function.
      **rules: Rules by the name of the argument.

    Raises:
      FieldError: "steps must be a whole number of at least 1, not 0."
    """
    for name, rule in rules.items():
        if not rule.fits(values[name]):
            raise FieldError(f"{name} must be {rule.allowed}, not {values[name]!r}.")


def _number(fits: Callable[[float], bool], allowed: str) -> Rule:
    return Rule(
        lambda value: (
            isinstance(value, Real)
            and not isinstance(value, bool)
            and math.isfinite(value)
            and fits(float(value))
        ),
        allowed,
    )


def above(low: int | float) -> Rule:
    """Returns the rule of a number above `low`."""
    return _number(lambda value: value > low, f"above {low:g}")


def at_least(low: int | float) -> Rule:
    """Returns the rule of a number of at least `low`."""
    return _number(lambda value: value >= low, f"at least {low:g}")


def whole(low: int, high: int | None = None) -> Rule:
    """Returns the rule of a whole number of at least `low`, and at most `high` if one is given."""
    return Rule(
        lambda value: (
            isinstance(value, Integral)
            and not isinstance(value, bool)
            and low <= int(value) <= (int(value) if high is None else high)
        ),
        f"a whole number {f'of at least {low}' if high is None else f'from {low} to {high}'}",
    )


def sizes(count: int | None = None, low: int = 1) -> Rule:
    """Returns the rule of a tuple of `count` whole numbers, or of any number of them but none."""
    one = whole(low)
    return Rule(
        lambda value: (
            isinstance(value, tuple | list)
            and len(value) > 0
            and count in (None, len(value))
            and all(map(one.fits, value))
        ),
        f"a tuple of {f'{count} ' if count else ''}whole numbers of at least {low}",
    )


def one_of(*choices: Any) -> Rule:
    """Returns the rule of one of some values."""
    return Rule(lambda value: value in choices, " or ".join(map(repr, choices)))


share = _number(lambda value: 0 <= value <= 1, "from 0 to 1")
between = _number(lambda value: 0 < value < 1, "above 0 and below 1")
below_one = _number(lambda value: 0 <= value < 1, "at least 0 and below 1")
word = Rule(lambda value: isinstance(value, str) and value != "", "a word")
truth = Rule(lambda value: isinstance(value, bool), "True or False")
