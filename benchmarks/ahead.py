"""Estimates for a TPU that is not there, by `launch`: the columns of the table where they exist."""

from collections.abc import Sequence
from typing import Any

from benchmarks.floors import least


def estimated(config: Any, what: str, *, fields: Sequence[str], topology: Any) -> dict[str, Any]:
    """Returns the report of a program compiled for a topology; nothing is run.

    Time is by the compiler's cycles, without communication, and MFU against the chip's peak rate
    of bfloat16: see docs/scale.md for how far to trust them.

    Args:
      config: The whole config; its batch size is that of a step or sampling on all chips.
      what: "train" or "sample".
      fields: Fields of the config that were set by hand, for the title.
      topology: See `launch.chips.parse_topology`.
    """
    from launch import programs, report

    devices = programs.topology_devices(topology)
    if what == "train":
        made = programs.train_step(config, devices)
    else:
        made = programs.whole_sampler(config, devices, config.batch_size)
    found = report.make(config, what, topology, made, fields)
    used, floor = found["used"], least(config, what)
    needed = None if floor is None else floor * made.batch
    time = found.get("seconds") or None
    return {
        "config": config.name,
        "fields": list(fields),
        "what": what,
        "batch": made.batch,
        "devices": used,
        "topology": topology.name,
        "time": None if time is None else {"median": time, "least": time, "most": time},
        "images_a_second": None if time is None else made.batch / time / used,
        "done": found["done"] * used if "done" in found else None,
        "least": needed,
        "mfu": needed / used / time / topology.chip.flops if time and needed else None,
        "memory": {"bytes": found["needed"], "of": "compiler"},
        "compile_seconds": made.seconds,
    }
