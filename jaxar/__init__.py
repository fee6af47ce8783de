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
    from jaxar.evaluation.evaluate import evaluate, evaluate_images
    from jaxar.runs.edit import edit
    from jaxar.runs.encode import encode
    from jaxar.runs.export import export
    from jaxar.runs.load import load
    from jaxar.runs.model import Model
    from jaxar.runs.picture import grid, to_pil
    from jaxar.runs.train import train

_HOMES = {
    "Model": "jaxar.runs.model",
    "edit": "jaxar.runs.edit",
    "encode": "jaxar.runs.encode",
    "evaluate": "jaxar.evaluation.evaluate",
    "evaluate_images": "jaxar.evaluation.evaluate",
    "export": "jaxar.runs.export",
    "grid": "jaxar.runs.picture",
    "load": "jaxar.runs.load",
    "to_pil": "jaxar.runs.picture",
    "train": "jaxar.runs.train",
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
