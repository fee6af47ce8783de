"""How time grows with tokens, batch and steps: a power law fitted to measured times.

    time = a x^p,   p the slope of log time over log x by least squares                     (1)

p = 1 is linear growth; below it a constant part counts, above it attention does.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.measure import Rounds, seconds
from benchmarks.pipe import BenchmarkError
from benchmarks.programs import make
from jaxar import config as configs

FACTORS = (1, 2, 4)


def growth(config: Any, rounds: int) -> list[dict[str, Any]]:
    """Returns a report for tokens and batch of a training step, and for steps of sampling.

    Args:
      config: The whole config; its plan is of cells, and grows with its grid.
      rounds: How many to measure for each point.

    Raises:
      BenchmarkError: the plan is not of cells, or the sampler has no steps.
    """
    if config.plan.name != "cell" or "steps" not in config.sample:
        raise BenchmarkError(
            f"--what=scaling needs cells and solver steps, which {config.name} lacks: choose "
            "xar_digits, for instance."
        )
    height, width, _ = config.data_shape
    steps = config.sample.steps
    kinds = {
        "tokens": ("train", [_taller(config, height * factor) for factor in FACTORS]),
        "batch": ("train", [[f"batch_size={config.batch_size * f}"] for f in FACTORS]),
        "steps": ("sample", [[f"sample.steps={steps * factor}"] for factor in FACTORS]),
    }
    first = {"tokens": height * width, "batch": config.batch_size, "steps": steps}
    return [
        {"over": kind, "what": what, "config": config.name, **_fitted(config, what, points, rounds)}
        | {"x": [first[kind] * factor for factor in FACTORS]}
        for kind, (what, points) in kinds.items()
    ]


def _taller(config: Any, height: int) -> list[str]:
    """Returns the fields that make a grid taller, its cells with it."""
    _, width, channels = config.data_shape
    factor = height // config.data_shape[0]
    return [
        f"data_shape=({height},{width},{channels})",
        f"plan.height={config.plan.height * factor}",
    ]


def _fitted(config: Any, what: str, points: Sequence[list[str]], rounds: int) -> dict[str, Any]:
    spent: list[Rounds] = []
    for fields in points:
        spent.append(seconds(make(configs.override(config, fields), what).run, rounds))
    times = [one.median for one in spent]
    return {"seconds": times, "exponent": exponent(FACTORS, times)}


def exponent(x: Sequence[float | int], times: Sequence[float | int]) -> float:
    """Returns p of (1)."""
    return float(np.polyfit(np.log(x), np.log(times), 1)[0])
