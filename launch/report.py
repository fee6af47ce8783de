"""The report of a compiled program: JSON data, printed alone or beside another report."""

import contextlib
import dataclasses
import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from typing import Any

from launch import cost, hlo, schedule
from launch.chips import GIB, Chip, Topology
from launch.programs import Made

Report = dict[str, Any]
"""JSON data of a report: see `make`."""


def make(
    config: Any, what: str, topology: Topology, made: Made, changes: Sequence[str] = ()
) -> Report:
    """Returns the report of a program.

    Bytes, operations and times are per chip and per run of the program: one training step, or the
    whole sampling of one batch.

    Args:
      config: The whole config.
      what: "train" or "sample".
      topology: Topology of the chips.
      made: The program.
      changes: Config fields that were overridden, for the title.
    """
    chip = topology.chip
    report: Report = {
        "config": config.name,
        "changes": list(changes),
        "what": what,
        "topology": topology.name,
        "chips": topology.chips,
        "used": made.mesh.size,
        "mesh": {axis: int(size) for axis, size in made.mesh.shape.items()},
        "batch": made.batch,
        "versions": _versions(),
        "compile_seconds": round(made.seconds, 1),
        "usable": chip.usable,
        "state": made.state,
        "operations": made.operations / made.mesh.size,
    }
    if made.compiled is None:
        needed = needed_bytes(made.problem)
        return {**report, "fits": False, "needed": needed, "problem": made.problem}
    return {
        **report,
        "fits": True,
        **_memory(made.compiled),
        **_costs(made, chip),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in ("jax", "libtpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _memory(compiled: Any) -> Report:
    sizes = compiled.memory_analysis()
    memory = {
        "arguments": sizes.argument_size_in_bytes,
        "outputs": sizes.output_size_in_bytes,
        "reused": sizes.alias_size_in_bytes,
        "temporaries": sizes.temp_size_in_bytes,
        "code": sizes.generated_code_size_in_bytes,
    }
    together = sum(memory.values()) - 2 * memory["reused"]
    return {"needed": together, "memory": memory}


def _costs(made: Made, chip: Chip) -> Report:
    program = hlo.parse(made.compiled.as_text())
    costs = cost.measure(
        program, chip, made.mesh.devices, made.mesh.axis_names, schedule.collect(chip.result)
    )
    seconds = costs.cycles / chip.clock
    talking = sum(collective.seconds for collective in costs.collectives)
    operations = made.operations / made.mesh.size
    return {
        "done": costs.flops,
        "traffic": costs.traffic,
        "seconds": seconds,
        "roofline": costs.roofline,
        "communication": talking,
        "mfu": operations / chip.flops / seconds if seconds else None,
        "mfu_alone": operations / chip.flops / (seconds + talking) if seconds else None,
        "collectives": [dataclasses.asdict(collective) for collective in costs.collectives],
        "heaviest": [list(part) for part in costs.heaviest],
        "unknown": list(costs.unknown),
    }


def needed_bytes(problem: str) -> int | None:
    """Returns the bytes that a program needs by the compiler's error; None if it does not say.

    It says "Used 24.02G of 15.75G hbm", or "(23.57G) exceeds available HBM (15.75G)".
    """
    found = re.search(r"Used ([\d.]+)([KMGT]?) of", problem) or re.search(
        r"\(([\d.]+)([KMGT]?)\) exceeds available HBM", problem
    )
    if not found:
        return None
    return int(float(found.group(1)) * 1024 ** " KMGT".index(found.group(2) or " "))


# As text.


def text(report: Report) -> str:
    """Returns the report as readable lines."""
    return "\n".join([title(report), *(f"  {k:<15}{v}" for k, v in rows(report).items())])


def title(report: Report) -> str:
    """Returns one line that names the program: config, changes, kind and topology."""
    name = " ".join([report["config"], *report["changes"]])
    return f"{name}, {report['what']}, {report['topology']} ({report['chips']} chips)"


def rows(report: Report) -> dict[str, str]:
    """Returns the lines of a report by name."""
    mesh = " ".join(f"{axis}={size}" for axis, size in report["mesh"].items())
    if report["used"] < report["chips"]:
        mesh += f": {report['used']} of {report['chips']} chips; mesh.data=-1 takes all"
    a_chip = report["batch"] / report["used"]
    found = {
        "mesh": mesh,
        "batch": f"{report['batch']:,} images, {a_chip:g} a chip",
        "memory": _memory_line(report),
        "compiled in": f"{report['compile_seconds']} s, "
        + ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
    }
    if not report["fits"]:
        return found
    unit = "a step" if report["what"] == "train" else "a batch"
    rate = report["batch"] / report["seconds"] if report["seconds"] else 0
    found |= {
        "operations": f"{report['done'] / 1e12:.3g} T done, {report['operations'] / 1e12:.3g} T of "
        "the algorithm",
        "traffic": f"{report['traffic'] / 1e9:.3g} GB of HBM",
        "time": f"{duration(report['seconds'])} {unit} by the cycles of its code, roofline "
        f"{duration(report['roofline'])}; communication {duration(report['communication'])} more "
        "if none of it overlaps",
        "speed": f"{rate:,.0f} images/s, {rate / report['used']:.3g} a chip",
        "MFU": f"{report['mfu']:.1%}, {report['mfu_alone']:.1%} if no communication overlaps"
        if report["mfu"]
        else "unknown: the compiler gave no cycles",
    }
    for number, row in enumerate(report["collectives"]):
        found[f"collective {number + 1}"] = collective_line(row)
    if not report["collectives"]:
        found["collectives"] = "none"
    parts = [f"{part} {share:.0%}" for part, share in report["heaviest"][:6]]
    found["cycles go to"] = "; ".join(parts) or "unknown"
    for number, line in enumerate(report["unknown"]):
        found[f"not counted {number + 1}"] = line
    return found


def collective_line(row: Mapping[str, Any]) -> str:
    """Returns the line of one collective."""
    count = f"{row['count']:,}" if row["known"] else f"{row['count']:,} or more"
    return (
        f"{row['kind']} over {row['axes']} ({row['group']}): {count} times, "
        f"{_size(row['bytes'])}, {duration(row['seconds'])}"
    )


def _memory_line(report: Report) -> str:
    if report["needed"] is None:
        return f"does not fit: {report['problem'].splitlines()[0]}"
    share = report["needed"] / report["usable"]
    line = f"{_size(report['needed'])} of {_size(report['usable'])} ({share:.0%})"
    if not report["fits"]:
        over = _size(report["needed"] - report["usable"])
        return f"does not fit: {line}, {over} too much; parameters and optimiser are " + _size(
            report["state"]
        )
    memory = report["memory"]
    fresh = memory["outputs"] - memory["reused"]
    return (
        f"{line}: arguments {_size(memory['arguments'])}, new outputs {_size(fresh)}, temporaries "
        f"{_size(memory['temporaries'])}, code {_size(memory['code'])}"
    )


def side_by_side(left: Report, right: Report) -> str:
    """Returns two reports line by line, and the ratios of the second to the first."""
    one, two = rows(left), rows(right)
    names = [*one, *(name for name in two if name not in one)]
    lines = ["1: " + title(left), "2: " + title(right)]
    for name in names:
        lines += [f"  {name:<15}1  {one.get(name, '-')}", f"  {'':<15}2  {two.get(name, '-')}"]
    if left["fits"] and right["fits"]:
        pairs = {
            "memory": "needed",
            "operations": "done",
            "traffic": "traffic",
            "time": "seconds",
            "communication": "communication",
        }
        ratios = [
            f"{name} x {right[key] / left[key]:.2f}" for name, key in pairs.items() if left[key]
        ]
        lines.append("  2 against 1    " + ", ".join(ratios))
    return "\n".join(lines)


def _size(count: float | int) -> str:
    for unit, size in (("GiB", GIB), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(count) >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} B"


def duration(seconds: float) -> str:
    """Returns a time as text: in seconds from 1 s on, otherwise in milliseconds."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
