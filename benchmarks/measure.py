"""Measured times: rounds of equal work, their median and spread."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence

LEAST = 0.5
"""Seconds that a round takes at least, so that starting and waiting do not count."""

Run = Callable[[int], object]
"""run(count) does some work `count` times and returns when all of it is done."""


@dataclasses.dataclass(frozen=True)
class Rounds:
    """Numbers of one kind, one for each round.

    Attributes:
      values: In the order they were measured.
    """

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.values)

    @property
    def least(self) -> float:
        """The least."""
        return min(self.values)

    @property
    def most(self) -> float:
        """The most."""
        return max(self.values)

    def facts(self) -> dict[str, float]:
        """Returns median, least and most, as JSON keeps them."""
        return {"median": self.median, "least": self.least, "most": self.most}

    def interval(self, coverage: float = 0.95) -> dict[str, float]:
        """Returns the ends of an interval for the median, `low` and `high`, and its `coverage`.

        The ends are the kth least and the kth most value, for the largest k whose interval has the
        coverage; the whole range, with less coverage, where the rounds are too few. It holds for
        independent rounds of any distribution: how many lie below the median is binomial.
        Source: Hahn and Meeker, Statistical Intervals (1991), section 5.2.

        Args:
          coverage: Probability that the interval holds the median, in (0, 1).
        """
        count, ordered, k = len(self.values), sorted(self.values), 1
        while _coverage(count, k + 1) >= coverage:
            k += 1
        return {"low": ordered[k - 1], "high": ordered[-k], "coverage": _coverage(count, k)}


def seconds(run: Run, rounds: int, *, least: float = LEAST) -> Rounds:
    """Returns the seconds of one run, measured in rounds of several; see `in_turns`."""
    return in_turns([run], rounds, least=least)[0]


def in_turns(runs: Sequence[Run], rounds: int, *, least: float = LEAST) -> list[Rounds]:
    """Returns the seconds of one run of each kind, whose rounds take turns: all meet the same load.

    The first run of a kind warms up, the second says how many runs a round has.

    Args:
      runs: What to measure.
      rounds: How many of each to measure.
      least: Seconds that a round takes at least.
    """
    counts = []
    for run in runs:
        run(1)
        counts.append(runs_a_round(_timed(run, 1), least))
    pairs = list(zip(runs, counts, strict=True))
    spent = [[_timed(run, count) / count for run, count in pairs] for _ in range(rounds)]
    return [Rounds(values) for values in zip(*spent, strict=True)]


def runs_a_round(one: float, least: float = LEAST) -> int:
    """Returns how many runs of `one` second each make a round of at least `least` seconds."""
    return max(1, math.ceil(least / max(one, 1e-6)))


def ratios(over: Sequence[float], under: Sequence[float]) -> Rounds:
    """Returns over / under of each round."""
    return Rounds(tuple(a / b for a, b in zip(over, under, strict=True)))


def _coverage(count: int, k: int) -> float:
    """Returns the chance that a median lies between the kth least and kth most of `count`."""
    return 1 - 2 * sum(math.comb(count, below) for below in range(k)) / 2**count


def _timed(run: Run, count: int) -> float:
    began = time.perf_counter()
    run(count)
    return time.perf_counter() - began
