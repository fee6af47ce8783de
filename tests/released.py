"""Files as they are released, made of the parity recipe: what users come with."""

import json
from pathlib import Path

import numpy as np

from tests.parity.cases import golden_weight

GOLDENS = Path(__file__).parent / "goldens"

TINY = (
    "model.width=64",
    "model.depth=(2,2)",
    "model.heads=4",
    "model.dtype=float32",
    "model.remat=none",
    "autoencoder.width=32",
    "batch_size=4",
    "workers=0",
    "mesh.data=1",
    "sample.steps=2",
    "sample.classes=2",
    "sample.per_class=1",
)
"""Overrides that make xar_b of the size of xar_tiny.npz and kl16_tiny.npz."""


def state_of(name: str) -> dict[str, np.ndarray]:
    """Returns the released state dict of a parity case such as "xar_tiny"."""
    with np.load(GOLDENS / f"{name}.npz") as case:
        keys = json.loads(str(case["state_dict_json"]))
    return {key: golden_weight(key, shape) for key, shape in keys.items()}


def write_tiny(folder: Path) -> tuple[Path, Path]:
    """Returns the files of a tiny xAR and of its autoencoder."""
    weights, tokenizer = folder / "xar-tiny.npz", folder / "kl16-tiny.npz"
    np.savez(weights, **state_of("xar_tiny"))
    np.savez(tokenizer, **state_of("kl16_tiny"))
    return weights, tokenizer


def write_inception(folder: Path) -> Path:
    """Returns the file of an Inception network in torch-fidelity's layout."""
    path = folder / "inception.npz"
    np.savez(path, **state_of("inception_tiny"))
    return path
