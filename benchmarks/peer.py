"""jaxar and the official PyTorch code at the same work, in alternating rounds.

Each side is a worker process; while one computes, the other waits for its pipe. So both meet the
same load of the machine, and each has its own peak of memory. Ratios are taken round by round.
"""

import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import cores
from benchmarks.measure import Rounds, ratios, runs_a_round
from benchmarks.pipe import BenchmarkError, Worker

ENVIRONMENT = {"OMP_WAIT_POLICY": "passive"}
"""Threads of the side that waits must not turn in circles on the other's cores."""


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
    """Returns times, ratio and memory of both sides; see `peaks` for the memory.

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
    other = sizes(config)
    same = {"what": what, "batch": config.batch_size, "compiled": compiled}
    with (
        Worker("jaxar", [sys.executable, "-m", "benchmarks.worker"], ENVIRONMENT) as ours,
        Worker(
            "the official code",
            [python, "-m", "benchmarks.peer_worker", str(checkout.resolve())],
            ENVIRONMENT,
        ) as theirs,
    ):
        facts = [
            ours.ask("prepare", **same, config=name, fields=fields),
            theirs.ask("prepare", **same, dtype=config.model.dtype, threads=cores(), sizes=other),
        ]
        pair = (ours, theirs)
        times = alternate(pair, rounds)
        sides = [
            {**fact, "memory": peaks(worker), "time": spent.facts(), "rounds": list(spent.values)}
            for fact, worker, spent in zip(facts, pair, times, strict=True)
        ]
    ratio = ratios(times[1].values, times[0].values)
    return {
        "config": config.name,
        "fields": fields,
        "what": what,
        "batch": config.batch_size,
        "compiled": compiled,
        "ours": sides[0],
        "peer": sides[1],
        "ratio": ratio.facts(),
    }


def alternate(pair: tuple[Worker, Worker], rounds: int) -> tuple[Rounds, Rounds]:
    """Returns the seconds of one run of each worker, measured in alternating rounds.

    Which one begins changes from round to round. The peak of memory in rounds begins anew
    after the runs that warm up.
    """
    counts = []
    for worker in pair:
        worker.ask("run", count=1)
        counts.append(runs_a_round(worker.ask("run", count=1)["seconds"], least=1.0))
        worker.ask("memory", again=True)
    spent: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for index in (0, 1) if number % 2 == 0 else (1, 0):
            answer = pair[index].ask("run", count=counts[index])
            spent[index].append(answer["seconds"] / counts[index])
    return Rounds(tuple(spent[0])), Rounds(tuple(spent[1]))


def peaks(worker: Worker) -> dict[str, Any]:
    """Returns the peaks of a side's memory in bytes.

    `whole` is that of the process's whole life: imports, initial values, compiling and running
    (`ru_maxrss`). `since` is that of the measured rounds, with what was not given back before,
    None where the system keeps none. `device` is the peak of the accelerator's memory, None on a
    CPU.
    """
    return {**worker.ask("memory"), "device": worker.ask("device_peak")["peak"]}
