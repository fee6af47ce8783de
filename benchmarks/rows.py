"""The report of one program, measured: time, speed, operations, memory, compile time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import profile
from benchmarks.ceilings import Ceilings
from benchmarks.floors import least
from benchmarks.host import compilations
from benchmarks.measure import seconds
from benchmarks.memory import memory
from benchmarks.programs import Program, make

Report = dict[str, Any]


def measured(
    config: Any,
    what: str,
    *,
    fields: Sequence[str],
    rounds: int,
    ceilings: Ceilings,
    folder: Path | None = None,
) -> Report:
    """Returns the report of a program; operations are those of one run on all devices.

    Args:
      config: The whole config; its batch size is that of a step or sampling.
      what: "train" or "sample".
      fields: Fields of the config that were set by hand, for the title.
      rounds: How many to measure.
      ceilings: Rates of the device.
      folder: Where to write a trace and its summary, if anywhere.
    """
    program = make(config, what)
    with compilations() as compiled:
        spent = seconds(program.run, rounds)
    floor, rate = least(config, what), ceilings.flops[computes_in(config)]
    devices = len(program.devices)
    needed = None if floor is None else floor * program.batch
    report = {
        "config": config.name,
        "fields": list(fields),
        "what": what,
        "batch": program.batch,
        "devices": devices,
        "time": spent.facts(),
        "rounds": list(spent.values),
        "images_a_second": program.batch / spent.median / devices,
        "done": program.operations,
        "least": needed,
        "mfu": None if needed is None else needed / devices / spent.median / rate,
        "memory": memory(program.compiled, program.devices[0]),
        "compile_seconds": program.seconds,
        "compiled_again": compiled(),
    }
    if folder is not None:
        report["profile"] = _profile(program, folder / f"{config.name}_{what}")
    return report


def computes_in(config: Any) -> str:
    """Returns the dtype of a config's matrix products."""
    return config.model.get("dtype", "float32")


def _profile(program: Program, folder: Path) -> str:
    """Returns the summary of a trace, after writing both to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    file = profile.trace(folder, program, runs=2)
    known = profile.sources(program.compiled.as_text())
    text = profile.summary(profile.spans(file), known)
    (folder / "operations.txt").write_text(text + "\n")
    return text
