"""jaxar: autoregressive generation in JAX, by next-X prediction.

    import jaxar
    model = jaxar.load("xar_digits")                    # trained here; or released weights:
    model = jaxar.load("xar_b", weights="xAR-B.pth", tokenizer="kl16.ckpt")
    images = model.sample([3, 1, 4], seed=0, guidance=2.0, steps=20)
    jaxar.grid(images, columns=3).save("digits.png")

Importing costs nothing; JAX is loaded at the first use of a name below.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxar.api.editing import edit
    from jaxar.api.encoding import encode
    from jaxar.api.evaluation import evaluate, evaluate_images
    from jaxar.api.exporting import export
    from jaxar.api.loading import load
    from jaxar.api.model import Model
    from jaxar.api.training import train
    from jaxar.picture import grid, to_pil

_HOMES = {
    "Model": "jaxar.api.model",
    "edit": "jaxar.api.editing",
    "encode": "jaxar.api.encoding",
    "evaluate": "jaxar.api.evaluation",
    "evaluate_images": "jaxar.api.evaluation",
    "export": "jaxar.api.exporting",
    "grid": "jaxar.picture",
    "load": "jaxar.api.loading",
    "to_pil": "jaxar.picture",
    "train": "jaxar.api.training",
}

__all__ = [
    "Model",
    "edit",
    "encode",
    "evaluate",
    "evaluate_images",
    "export",
    "grid",
    "load",
    "to_pil",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"jaxar has no {name!r}; it offers {__all__}.")


def __dir__() -> list[str]:
    return __all__
