"""The `Tokenizer` protocol."""

from typing import Protocol, runtime_checkable

from jaxar.core.plan import Grid
from jaxar.typing import Array, Float


def no_autoencoder() -> None:
    """Returns no autoencoder: the data are no latents of one."""


@runtime_checkable
class Tokenizer(Protocol):
    """Maps the data of a source to a grid of latents, and back."""

    def latents(self, shape: tuple[int, int, int]) -> tuple[Grid, int]:
        """Returns the grid and the channels of the latents of data of `shape` = (h, w, c)."""
        ...

    def encode(self, data: Float[Array, "b h w c"], key: Array) -> Float[Array, "b h2 w2 c2"]:
        """Returns latents of about unit variance; `key` is for tokenizers that sample."""
        ...

    def decode(self, latents: Float[Array, "b h2 w2 c2"]) -> Float[Array, "b h w c"]:
        """Returns the data decoded from the latents."""
        ...
