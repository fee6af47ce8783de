"""The verb `reconstruct`: examples of the data above what autoencoders make of them."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxar.console import say
from jaxar.parallel import distributed
from jaxar.runs import picture
from jaxar.runs.command import Command
from jaxar.runs.model import Model
from jaxar.runs.setup import open_source


def run(command: Command) -> None:
    """Draws reconstructions of a model into `reconstructions_seed<seed>.png` of its run."""
    seed = command.flags.seed or 0
    model = command.model("reconstruct")
    path = command.workdir / f"reconstructions_seed{seed}.png"
    draw({"": model}, open_source(model.config), path, seed=seed)


def draw(models: Mapping[str, Model], source: Any, path: Path, *, seed: int = 0) -> None:
    """Writes a picture of reconstructions, with one grid for each model under its name.

    Each row of examples stands above the row of their reconstructions. All calls with one seed show
    the same examples.

    Args:
      models: Models of one config, by the name to write above their grid; a single one has none.
      source: Data source of the examples.
      path: File to write.
      seed: Seed of the choice of examples.
    """
    began = time.monotonic()
    options = next(iter(models.values())).config.sample
    count = min(options.classes * options.per_class, len(source))
    numbers = np.random.default_rng(seed).permutation(len(source))[:count].tolist()
    images = np.stack([source.read(i, np.random.default_rng(seed))["data"] for i in numbers])
    columns = min(options.per_class, count)
    grids = {
        name: _interleaved(images, model.reconstruct(images), columns)
        for name, model in models.items()
    }
    if not distributed.first():
        return
    rows = ["data", "made"] * (count // columns)
    written = picture.save_grids(grids, path, columns=columns, rows=rows)
    say("picture", f"{written} in {time.monotonic() - began:.1f} s")


def _interleaved(images: np.ndarray, made: np.ndarray, columns: int) -> np.ndarray:
    """Returns each whole row of images followed by the same row of reconstructions."""
    count = len(images)
    lines = [slice(i, i + columns) for i in range(0, count - count % columns, columns)]
    return np.concatenate([part for line in lines for part in (images[line], made[line])])
