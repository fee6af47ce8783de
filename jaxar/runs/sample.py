"""The verb `sample`: pictures of what models draw."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxar.config import ConfigError
from jaxar.console import say
from jaxar.parallel import distributed
from jaxar.runs import picture
from jaxar.runs.command import Command
from jaxar.runs.model import Model


def run(command: Command) -> None:
    """Draws samples of a model into `samples_seed<seed>.png` of its run."""
    flags, seed = command.flags, command.flags.seed or 0
    model = command.model("sample")
    path = command.workdir / f"samples_seed{seed}.png"
    draw({"": model}, path, labels=read_labels(flags.labels), seed=seed)


def draw(
    models: Mapping[str, Model],
    path: Path,
    *,
    labels: Sequence[int] | None = None,
    seed: int = 0,
) -> None:
    """Writes a picture with one grid of samples for each model, side by side under their names.

    A row of a grid is a class, or the grid is one row of the given labels. All calls with one seed
    use the same noise, so that pictures of a run can be compared. Latents, which cannot be shown,
    are written as .npy instead.

    Args:
      models: Models of one config, by the name to write above their grid; a single one has none.
      path: File to write.
      labels: Classes to draw; by default `config.sample.classes` of them, `per_class` samples each.
      seed: Seed of the noise.

    Raises:
      ConfigError: a label is out of range.
    """
    began = time.monotonic()
    first = next(iter(models.values()))
    options = first.config.sample
    classes = np.arange(min(options.classes, first.system.num_classes))
    rows = [] if labels else [str(c) for c in classes]
    drawn = labels or np.repeat(classes, options.per_class)
    try:
        grids = {name: model.sample(drawn, seed=seed) for name, model in models.items()}
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not distributed.first():
        return
    columns = options.per_class if rows else len(drawn)
    written = picture.save_grids(grids, path, columns=columns, rows=rows)
    say("picture", f"{written} in {time.monotonic() - began:.1f} s")


def read_labels(text: str | None) -> list[int] | None:
    """Returns the classes of "3,1,4"; None for None.

    Raises:
      ConfigError: the text is not whole numbers separated by commas.
    """
    if text is None:
        return None
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"--labels must be whole numbers separated by commas, as 3,1,4, not {text!r}."
        ) from None
