"""Where parity files are found, and how a case becomes a state dict."""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np

FOLDER = Path(os.environ.get("JAXAR_GOLDENS") or Path(__file__).parents[1] / "goldens")


def cases(family: str) -> list[Path]:
    """Returns the files of a family; none at all is an error, not a silent pass."""
    found = sorted([*FOLDER.glob(f"{family}.npz"), *FOLDER.glob(f"{family}_*.npz")])
    assert found, f"no {family}.npz or {family}_*.npz in {FOLDER}"
    return found


def golden_weight(key: str, shape: list[int]) -> np.ndarray:
    """Returns the weight that stands under a key, by the recipe beside the files."""
    beside = FOLDER / "recipe.py"
    path = beside if beside.exists() else Path(__file__).parents[1] / "goldens" / "recipe.py"
    module_spec = importlib.util.spec_from_file_location("golden_recipe", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module.golden_weight(key, tuple(shape))


def state_dict(case) -> dict[str, np.ndarray]:
    """Returns the released state dict that a case was run with."""
    keys = json.loads(str(case["state_dict_json"]))
    return {key: golden_weight(key, shape) for key, shape in keys.items()}
