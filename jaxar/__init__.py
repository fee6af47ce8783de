"""jaxar: autoregressive generation in JAX, by next-X prediction.

    import jaxar
    model = jaxar.load("xar_digits")
    images = model.sample([3, 1, 4], seed=0, guidance=2.0, steps=20)
    jaxar.grid(images, columns=3).save("digits.png")

Importing costs nothing; JAX is loaded at the first use of a name below.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxar.api import Model, evaluate, load, train
    from jaxar.picture import grid, to_pil

_HOMES = {
    "Model": "jaxar.api",
    "evaluate": "jaxar.api",
    "load": "jaxar.api",
    "train": "jaxar.api",
    "grid": "jaxar.picture",
    "to_pil": "jaxar.picture",
}

__all__ = ["Model", "evaluate", "grid", "load", "to_pil", "train"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"jaxar has no {name!r}; it offers {__all__}.")


def __dir__() -> list[str]:
    return __all__
