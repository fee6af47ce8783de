"""How much of what a padded program computes is needed, said where it is computed."""

from contextlib import AbstractContextManager
from typing import Any

import jax


def needed(part: float | int, whole: float | int) -> AbstractContextManager[Any]:
    """Returns a context for operations on `whole` places of which `part` are needed on average.

    No result changes. The share stands in the names of the operations, where those who count what
    an algorithm takes at least find it (`benchmarks.counting`). Contexts may stand in each other.

    Args:
      part: Places that are no padding, a mean over all passes, in [0, whole].
      whole: Places that are computed.
    """
    return jax.named_scope(f"needed={part / whole if whole else 1.0:.9f}")
