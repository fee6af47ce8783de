"""jaxar and the official PyTorch code at the same work, in alternating rounds.

Each side is a worker process; while one computes, the other is stopped. So both meet the same load
of the machine, and each has its own peak of memory. Ratios are taken round by round.
"""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.measure import Rounds, ratios
from benchmarks.pipe import BenchmarkError, Worker
from benchmarks.sides import Setting, Side, alternate, of_jax, of_torch

LOOPS = {"train": ("run", "run_released"), "sample": ("run",)}
"""Requests of the official side for each kind: training without its logging, and as released."""


def sizes(config: Any) -> dict[str, Any]:
    """Returns what the official model is made of, for the same work as a config's.

    Raises:
      BenchmarkError: the official code has no such model; says what it has.
    """
    from jaxar import assembly

    system, model = assembly.build_system(config), config.model
    plan, channels = system.plan, system.entities.channels
    (height, width), cells = plan.grid, plan.entities
    wrong = [
        (model.name != "xar" or config.context.name != "noisy", "noisy xAR alone"),
        (config.plan.name != "cell" or cells != 4, "2 x 2 cells alone"),
        (height != width, "square grids alone"),
        (channels != 16, "tokens of 16 channels alone"),
        (config.num_classes > 1000, "1000 classes at most"),
        (config.batch_size < 2, "batches of 2 or more (it squeezes axes of size 1)"),
        (config.sample.get("solver") != "euler_maruyama", "the solver euler_maruyama alone"),
        (config.sample.schedule != "linear", "the linear ramp of guidance alone"),
    ]
    if found := [what for bad, what in wrong if bad]:
        raise BenchmarkError(f"The official code cannot run {config.name}: it has {found[0]}.")
    options = config.optimizer
    return {
        "side": height,
        "channels": channels,
        "num_classes": config.num_classes,
        "label_dropout": config.label_dropout,
        "width": model.width,
        "depth": list(model.depth),
        "heads": model.heads,
        "mlp_ratio": model.mlp_ratio,
        "dropout": model.dropout,
        "attention_dropout": model.attention_dropout,
        "beta1": options.beta1,
        "beta2": options.beta2,
        "weight_decay": options.weight_decay,
        "clip_norm": options.clip_norm,
        "ema": config.ema,
        "steps": config.sample.steps,
        "guidance": config.sample.guidance,
    }


def compare(
    config: Any,
    what: str,
    *,
    name: str,
    fields: list[str],
    checkout: Path,
    python: str,
    compiled: bool,
    rounds: int,
) -> dict[str, Any]:
    """Returns times, ratios and memory of both sides.

    `ratio` is of the official time over ours, above 1 where jaxar is faster: in training that of
    the official loop without its logging; `released` has that of the loop as released. See `peaks`
    for the memory.

    Args:
      config: The whole config.
      what: "train" or "sample".
      name: File or name that the config comes from.
      fields: Fields set in it.
      checkout: Folder of the official code.
      python: Interpreter that has PyTorch.
      compiled: Whether the official code runs under `torch.compile`.
      rounds: How many of each side.

    Raises:
      BenchmarkError: the official code cannot do it, or is not there.
    """
    if not (checkout / "models" / "xar.py").is_file():
        raise BenchmarkError(
            f"--peer={checkout} holds no models/xar.py: give a checkout of OliverRensu/xAR."
        )
    same = {"what": what, "batch": config.batch_size, "compiled": compiled}
    ours = Side(
        "jaxar",
        [sys.executable, "-m", "benchmarks.worker"],
        {**same, "config": name, "fields": fields},
        of_jax(machine.cores()),
    )
    theirs = Side(
        "the official code",
        [python, "-m", "benchmarks.peer_worker", str(checkout.resolve())],
        {**same, "dtype": config.model.dtype, "sizes": sizes(config)},
        of_torch(machine.cores()),
    )
    found = [side.search() for side in (ours, theirs)]
    report = measured((ours, theirs), [setting for setting, _ in found], LOOPS[what], rounds)
    for side, (setting, tried) in zip(("ours", "peer"), found, strict=True):
        report[side] |= {"setting": str(setting), "tried": tried}
    return {"config": config.name, "fields": fields, **same, **report}


def measured(
    sides: Sequence[Side], settings: Sequence[Setting], loops: Sequence[str], rounds: int
) -> dict[str, Any]:
    """Returns what new workers of both sides need in rounds, and how quiet the machine was.

    Args:
      sides: jaxar's and the official one.
      settings: Theirs.
      loops: Requests of the official side; ratios are of each.
      rounds: How many of each.
    """
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(side.worker(setting))
            for side, setting in zip(sides, settings, strict=True)
        ]
        facts = [
            side.prepare(worker, setting)
            for side, worker, setting in zip(sides, workers, settings, strict=True)
        ]
        share, before = machine.others(), _processor(workers)
        own, *official = alternate(
            [(workers[0], "run"), *((workers[1], loop) for loop in loops)], rounds
        )
        others = share(_processor(workers) - before)
        found = [
            {**fact, "memory": peaks(worker), "waiting": worker.ask("processor")["waiting"]}
            for fact, worker in zip(facts, workers, strict=True)
        ]
    ratio, *released = [_ratio(times, own) for times in official]
    return {
        "ours": {**found[0], **_times(own)},
        "peer": {**found[1], **_times(official[0])},
        "ratio": ratio,
        "released": {**_times(official[1]), "ratio": released[0]} if released else None,
        "others": others,
    }


def _processor(workers: Sequence[Worker]) -> float:
    return sum(worker.ask("processor")["whole"] for worker in workers)


def _times(rounds: Rounds) -> dict[str, Any]:
    return {"time": rounds.facts(), "rounds": list(rounds.values)}


def _ratio(official: Rounds, own: Rounds) -> dict[str, float]:
    found = ratios(official.values, own.values)
    return {**found.facts(), **found.interval()}


def peaks(worker: Worker) -> dict[str, Any]:
    """Returns the peaks of a side's memory in bytes.

    `whole` is that of the process's whole life: imports, initial values, compiling and running
    (`ru_maxrss`). `since` is that of the measured rounds, with what was not given back before,
    None where the system keeps none. `device` is the peak of the accelerator's memory, None on a
    CPU.
    """
    return {**worker.ask("memory"), "device": worker.ask("device_peak")["peak"]}
