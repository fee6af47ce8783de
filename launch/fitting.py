"""What would make a program fit: settings in a fixed order, each judged from the parts it changes.

    needed = state by the table of shardings + the rest                                       (1)

The state of a changed mesh is computed exactly. The rest (activations, gradients, buffers) is taken
from the compiler's refusal and scaled with the images of a chip; it is not known how much of it
more rematerialisation would save, so that is proposed first and left to a compile.
"""

from collections.abc import Callable, Iterator
from typing import Any

from launch.report import Report

Change = tuple[list[str], str]
"""Fields to set, as "field=value", and why."""

ROOM = 0.95
"""Share of the memory that a prediction may fill: the compiler's own need is not that exact."""


def advice(config: Any, report: Report, state_of: Callable[[dict[str, int]], int]) -> list[str]:
    """Returns sentences on what would make a program fit, the first that should be tried first.

    Args:
      config: The config that does not fit.
      report: Its report.
      state_of: state_of(mesh) -> bytes on a chip of what the program is given.
    """
    if report["fits"] or report["needed"] is None:
        return []
    lines, least = [], 1.0 * report["needed"]
    for fields, why in candidates(config, report):
        words = " ".join(f"--config.{field}" for field in fields)
        needed = predicted(report, fields, state_of, config.memory.accumulate)
        if needed is None:
            lines.append(f"{words}: {why}; compile to see how much it saves")
        elif needed <= ROOM * report["usable"]:
            return [*lines, f"{words}: about {needed / report['usable']:.0%} of the memory; {why}"]
        else:
            least = min(least, needed)
    share = least / report["usable"]
    return [*lines, f"more chips, or chips with more memory: here at least {share:.0%} are needed"]


def candidates(config: Any, report: Report) -> Iterator[Change]:
    """Yields changes, those that cost the least first; later ones include what helped before.

    Rematerialisation changes nothing else; more fsdp communicates more; accumulation takes the
    batch in parts, whose products are smaller.
    """
    now = config.model.get("remat")
    kept = ("none", "projections", "branches", "blocks")
    for place, remat in enumerate(kept):
        if report["what"] == "train" and now in kept[:place]:
            yield [f"model.remat={remat}"], "fewer values are kept for the backward pass"
    mesh = report["mesh"]
    fsdp, free = mesh["fsdp"], mesh["data"]
    while free % 2 == 0 and free > 1:
        fsdp, free = 2 * fsdp, free // 2
        yield [f"mesh.fsdp={fsdp}", "mesh.data=-1"], "more of the state is shared out"
    images = report["batch"] * mesh.get("tensor", 1) // report["chips"]
    parts = config.memory.accumulate
    while report["what"] == "train" and images % (2 * parts) == 0:
        parts *= 2
        yield (
            [f"mesh.fsdp={fsdp}", "mesh.data=-1", f"memory.accumulate={parts}"],
            "fewer images at a time",
        )


def predicted(
    report: Report,
    fields: list[str],
    state_of: Callable[[dict[str, int]], int],
    parts: int = 1,
) -> int | None:
    """Returns the bytes by (1) after a change; None where they do not follow from the parts.

    Args:
      report: Of the program that does not fit.
      fields: What is changed.
      state_of: state_of(mesh) -> bytes on a chip of what the program is given.
      parts: In which the program cuts a batch already.
    """
    values = dict(field.split("=") for field in fields)
    if "model.remat" in values:
        return None
    mesh = dict(report["mesh"])
    if "mesh.fsdp" in values:
        together = mesh["data"] * mesh["fsdp"]
        mesh["fsdp"] = int(values["mesh.fsdp"])
        mesh["data"] = together // mesh["fsdp"]
    rest = max(report["needed"] - report["state"], 0)
    if "memory.accumulate" in values:
        rest *= parts / int(values["memory.accumulate"])
    return int(state_of(mesh) + rest)


def smallest_fsdp(chips: int, usable: int, state_of: Callable[[dict[str, int]], int]) -> int:
    """Returns the smallest fsdp, a power of two, that leaves half of the memory to activations.

    That of all chips where none does.
    """
    fsdp = 1
    while chips % (2 * fsdp) == 0 and state_of(dict(data=-1, fsdp=fsdp, tensor=1)) > usable / 2:
        fsdp *= 2
    return fsdp
