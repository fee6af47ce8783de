"""How time grows with tokens, batch and steps: a power law fitted to measured times.

    time = a x^p,   p the slope of log time over log x by least squares                     (1)

p = 1 is linear growth; below it a constant part counts, above it attention does.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.measure import in_turns
from benchmarks.pipe import BenchmarkError
from benchmarks.programs import make
from jaxar import config as configs
from jaxar.assembly import build_system

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
    batch, steps = config.batch_size, config.sample.steps
    kinds = (
        ("tokens", "train", build_system(config).plan.tokens, _taller),
        ("batch", "train", batch, lambda _, factor: [f"batch_size={batch * factor}"]),
        ("steps", "sample", steps, lambda _, factor: [f"sample.steps={steps * factor}"]),
    )
    reports = []
    for over, what, first, fields in kinds:
        changed = [configs.override(config, fields(config, factor)) for factor in FACTORS]
        spent = in_turns([make(one, what).run for one in changed], rounds)
        times = [one.median for one in spent]
        reports.append(
            {
                "config": config.name,
                "over": over,
                "what": what,
                "x": [first * factor for factor in FACTORS],
                "times": [one.facts() for one in spent],
                "exponent": exponent(FACTORS, times),
            }
        )
    return reports


def _taller(config: Any, factor: int) -> list[str]:
    """Returns the fields that make a grid taller, its cells with it."""
    height, width, channels = config.data_shape
    return [
        f"data_shape=({height * factor},{width},{channels})",
        f"plan.height={config.plan.height * factor}",
    ]


def exponent(x: Sequence[float | int], times: Sequence[float | int]) -> float:
    """Returns p of (1)."""
    return float(np.polyfit(np.log(x), np.log(times), 1)[0])
