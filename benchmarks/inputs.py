"""How long the training loop waits for cached latents: the share that its own log prints."""

import importlib.util
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pipe import BenchmarkError
from jaxar import config as configs
from jaxar.runs import setup
from launch.programs import frozen_zeros

RECORDS = 1024
"""Latents in the cache; an epoch is read again and again."""

NEEDED = ("grain", "array_record")


def data_wait(config: Any, rounds: int, *, steps: int = 10) -> dict[str, float]:
    """Returns median, least and most of the share of a step that the loop waits for its data.

    The loop is `jaxar.training.loop.fit` over latents that `jaxar.data.writer` wrote, with the
    config's workers; each round is an interval of its log.

    Args:
      config: The whole config; its system is trained on the latents' shape.
      rounds: Intervals, after one that warms up.
      steps: In an interval.

    Raises:
      BenchmarkError: a data library is missing, or the config models no cached latents.
    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise BenchmarkError(
            f"--what=input needs {' and '.join(missing)}, which this machine lacks: leave it out."
        )
    if config.data.name not in ("latent_folder", "latent_records"):
        raise BenchmarkError(
            f"--what=input: {config.name} reads {config.data.name}, not cached latents: choose "
            "xar_b, for instance."
        )
    with tempfile.TemporaryDirectory() as folder:
        return _waited(config, rounds, steps, Path(folder))


def _waited(config: Any, rounds: int, steps: int, folder: Path) -> dict[str, float]:
    from jaxar.data.latents import LatentRecords
    from jaxar.data.writer import write_latents
    from jaxar.training.loop import fit
    from jaxar.training.progress import read_history

    cache, count = folder / "latents", (rounds + 1) * steps
    write_latents(str(cache), _latents(config), num_classes=config.num_classes)
    fields = [f"steps={count}", f"log_every={steps}", "sample.every=0"]
    fields += [f"checkpoint.every={count}", "optimizer.warmup_steps=1"]
    config = configs.override(config, fields)
    ready = setup.prepare(config, training=True)
    source = LatentRecords(str(cache))
    frozen = frozen_zeros(ready)
    fit(ready.system, frozen, source, config, folder / "run", ready.mesh, lambda *_: None)
    shares = [record["data_wait"] for record in read_history(folder / "run")[1:]]
    return {"median": statistics.median(shares), "least": min(shares), "most": max(shares)}


def _latents(config: Any) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yields random moments, those of the mirror image, and a label."""
    rng = np.random.default_rng(0)
    for number in range(RECORDS):
        moments = rng.uniform(-1, 1, config.data_shape).astype(np.float32)
        yield moments, moments[:, ::-1], number % config.num_classes
