"""The two sides of a comparison: how their threads are set, and their alternating rounds.

Each side has the setting that is fastest for it on this machine, found before the rounds: OpenMP
threads that sleep while they wait halve the speed of a small PyTorch network, and threads that spin
lose as much where other work takes their processors.
"""

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.measure import Rounds, runs_a_round
from benchmarks.pipe import Worker

SEARCH = 3
"""Rounds of each setting in the search."""

HOPELESS = 3
"""A setting whose first runs take this many times the fastest setting's is not tried further."""

Run = tuple[Worker, str]
"""A worker, and the request that has it work."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a side uses the processors.

    Attributes:
      threads: That compute at once.
      environment: Variables beside those of this process, which say how threads wait.
    """

    threads: int
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        words = [f"{self.threads} thread{'s' * (self.threads > 1)}"]
        return ", ".join(words + [f"{key}={value}" for key, value in self.environment.items()])


POLICIES = (
    {},
    {"OMP_WAIT_POLICY": "active"},
    {"OMP_WAIT_POLICY": "passive"},
    {"GOMP_SPINCOUNT": "10000"},
)
"""Ways of OpenMP threads to wait: the library's own, to spin, to sleep, to spin shortly."""


def of_torch(cores: int) -> list[Setting]:
    """Returns the settings to try for PyTorch, the usual one first; one thread waits for none."""
    many = [Setting(count, policy) for count in _counts(cores)[1:] for policy in POLICIES]
    return [*many, Setting(1)]


def of_jax(cores: int) -> list[Setting]:
    """Returns the settings to try for JAX, the usual one first.

    Its threads sleep while they wait, in one way. Small matrix products may be faster on a single
    thread while loops still use all of them.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    many = [Setting(count) for count in _counts(cores)[:0:-1]]
    return [*many, *(Setting(s.threads, {"XLA_FLAGS": flags}) for s in many), Setting(1)]


def _counts(cores: int) -> list[int]:
    return sorted({1, max(1, cores // 2), cores})


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes:
      name: What to call it in errors.
      command: The command line of its worker.
      request: Arguments of `prepare`, but for the threads.
      settings: To try, the usual one first.
    """

    name: str
    command: Sequence[str]
    request: Mapping[str, Any]
    settings: Sequence[Setting]

    def worker(self, setting: Setting) -> Worker:
        """Returns a new worker with a setting; use it in a `with` block."""
        return Worker(self.name, self.command, setting.environment)

    def prepare(self, worker: Worker, setting: Setting) -> dict[str, Any]:
        """Returns what a worker says of itself once it is ready to run."""
        return worker.ask("prepare", **self.request, threads=setting.threads)

    def search(self) -> tuple[Setting, dict[str, float]]:
        """Returns the setting with the least median time, and the seconds of all, by their names.

        On an accelerator the first is taken, and nothing is tried.
        """
        with contextlib.ExitStack() as stack:
            runs: list[Run] = []
            for setting in self.settings:
                worker = stack.enter_context(self.worker(setting))
                if self.prepare(worker, setting)["device"] != "cpu":
                    return setting, {}
                runs.append((worker, "run"))
            times = [min(worker.ask(ask, count=1)["seconds"] for _ in "12") for worker, ask in runs]
            hopeful = [i for i, time in enumerate(times) if time <= HOPELESS * min(times)]
            rounds = alternate([runs[i] for i in hopeful], SEARCH)
        for i, spent in zip(hopeful, rounds, strict=True):
            times[i] = spent.median
        best = min(hopeful, key=times.__getitem__)
        return self.settings[best], dict(zip(map(str, self.settings), times, strict=True))


def alternate(runs: Sequence[Run], rounds: int) -> list[Rounds]:
    """Returns the seconds of one run of each kind, measured in alternating rounds.

    Which one begins changes from round to round. The peak of memory in rounds starts again after
    the runs that warm up.
    """
    counts = []
    for worker, request in runs:
        worker.ask(request, count=1)
        counts.append(runs_a_round(worker.ask(request, count=1)["seconds"], least=1.0))
    for worker, _ in runs:
        worker.ask("memory", again=True)
    spent: list[list[float]] = [[] for _ in runs]
    for number in range(rounds):
        for place in range(len(runs)):
            index = (number + place) % len(runs)
            (worker, request), count = runs[index], counts[index]
            spent[index].append(worker.ask(request, count=count)["seconds"] / count)
    return [Rounds(tuple(values)) for values in spent]
