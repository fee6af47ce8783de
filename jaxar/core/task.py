"""What training needs of a system, of whatever kind, and what a trained one can do."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxar.typing import Array, Float, Params


class Frozen(NamedTuple):
    """A network beside the trained one, whose parameters stay as they are.

    Its parameters are arguments of the compiled programs, never constants, sharded and gathered as
    those in training; they are not donated, averaged or saved in checkpoints.

    Attributes:
      shapes: Its parameter tree, of shapes.
      reader: Row of the kind "weights" in the registry that reads its released files.
    """

    shapes: Params
    reader: str


@runtime_checkable
class Task(Protocol):
    """What training needs of a system.

    Attributes:
      frozen: Networks it cannot be trained without, by name.
    """

    @property
    def frozen(self) -> Mapping[str, Frozen]:
        """Networks that the loss reads and no gradient moves, by name."""
        ...

    def init(self, key: Array) -> Params:
        """Returns initial parameters."""
        ...

    def loss(
        self, params: Params, frozen: Mapping[str, Params], batch: dict[str, Any], key: Array
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Returns the loss of a batch, {"data", "condition", "step"}, and metrics.

        Metrics are scalars, except "seen": what `settle` reads of the batch, if anything.
        """
        ...

    def settle(self, params: Params, seen: Array | None, key: Array) -> Params:
        """Returns the parameters with those set that no gradient moves, such as averages.

        Args:
          params: After the optimiser's update.
          seen: That of the loss's metrics, or None.
          key: That of the loss.
        """
        ...
