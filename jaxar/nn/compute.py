"""How a network computes, and what all layers of one pass share."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

from jaxar.core.visibility import Visibility
from jaxar.nn import layers
from jaxar.nn.module import REMAT
from jaxar.typing import Array, Float

ATTENTION = ("auto", "dense", "blocked", "kernel")
"""Ways to compute attention: "dense" all pairs at once; "blocked" block by block, for sequences
whose pairs do not fit; "kernel" by `attend_in_kernel`, which needs a TPU. "auto" takes the kernel
on a TPU where it serves the lengths, else blocks for more than `attention.MOST` pairs."""


@dataclasses.dataclass(frozen=True)
class Dropout:
    """Rates of training.

    Attributes:
      attention: Of attention weights.
      projection: Of the outputs of attention and MLP.
      path: Of whole residual branches at the last layer; it rises from 0 at the first.
    """

    attention: float = 0.0
    projection: float = 0.0
    path: float = 0.0


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a network computes; nothing of it changes a result beyond rounding.

    The fields stand in configs among the arguments of the network.

    Attributes:
      dtype: "float32", or "bfloat16" for the matrix products inside blocks, keys and values;
        parameters, norms, the sum over layers and what stands around the blocks are float32.
      remat: What layers keep for the backward pass: "none" keeps everything, "projections" the
        matrix products and attention, "branches" attention and what is added to the tokens,
        "blocks" nothing; see `module.REMAT`.
      unroll: Layers in one turn of the loop over layers; more compile longer.
      attention: How attention is computed, see `ATTENTION`.
    """

    dtype: str = "float32"
    remat: str = "none"
    unroll: int = 1
    attention: str = "auto"

    def __post_init__(self):
        choices = dict(dtype=layers.DTYPES, remat=REMAT, attention=ATTENTION)
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}."
                )
        if self.unroll < 1:
            raise ValueError(f"unroll must be at least 1 layer, not {self.unroll!r}.")

    @property
    def type(self) -> Any:
        """The dtype of the computation inside blocks."""
        return layers.DTYPES[self.dtype]


PLAIN = Compute()


@dataclasses.dataclass(frozen=True)
class Pass:
    """What all layers of one pass share.

    Attributes:
      sizes: Tokens of each segment; a segment has one condition.
      rope: Rotary table (2, n, e) of the tokens' positions, (2, b, n, e) where examples differ, or
        None.
      sees: Which token sees which, or None where all see all.
      compute: How blocks compute.
      rates: Dropout, where a key is given.
      collect: Whether to return what a cache holds of these tokens.
    """

    sizes: tuple[int, ...] = ()
    rope: Any = None
    sees: Visibility | None = None
    compute: Compute = PLAIN
    rates: Dropout = Dropout()
    collect: bool = False


@runtime_checkable
class Mixer(Protocol):
    """What mixes tokens in a block: attention, a convolution, a recurrence."""

    def __call__(
        self, x: Float[Array, "b n d"], shared: Pass, *, cache: Any = None, key: Array | None = None
    ) -> tuple[Float[Array, "b n d"], Any]:
        """Returns the output, and what a cache holds of these tokens: one node of `core.cache`."""
        ...

    def empty_cache(self, depth: int, batch: int, tokens: int, dtype: Any) -> Any:
        """Returns the empty node of a cache for `depth` layers, with room for `tokens` tokens."""
        ...
