"""What a system can do beside being trained: a protocol of one method for each ability."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from jaxar.config import ConfigError
from jaxar.typing import Array, Params


@runtime_checkable
class CanSample(Protocol):
    """A system that generates data for a condition: see `jaxar.system.System.sample`."""

    def sample(
        self,
        params: Params,
        frozen: Mapping[str, Params],
        keys: Array,
        condition: Any,
        guidance: Any,
        settings: Any,
        known: Any = None,
    ) -> Array:
        """Returns generated data (b, ...), one example for each key."""
        ...


@runtime_checkable
class CanReconstruct(Protocol):
    """A system that compresses data and decodes them again: an autoencoder."""

    def reconstruct(self, params: Params, images: Any, key: Array | None = None) -> Array:
        """Returns what is decoded for images (b, h, w, c) in [-1, 1]."""
        ...


ABILITIES: dict[str, type] = {"sample": CanSample, "reconstruct": CanReconstruct}
"""The protocol of each ability."""


def can(system: Any, ability: str) -> bool:
    """Returns whether a system has an ability of `ABILITIES`."""
    return isinstance(system, ABILITIES[ability])


def require(system: Any, ability: str, name: str) -> None:
    """Checks that a system has an ability.

    Args:
      system: The system.
      ability: Key of `ABILITIES`.
      name: What to call the system: the name of its config.

    Raises:
      ConfigError: the system lacks it; the sentence says what the system can do.
    """
    if can(system, ability):
        return
    others = [other for other in ABILITIES if can(system, other)]
    raise ConfigError(
        f"{name} cannot {ability}; it can {' and '.join(others) or 'be trained and nothing else'}."
    )
