"""Settings that make a program fit, in a fixed order, with a prediction of the memory of each.

    needed = state by the table of shardings + the rest                                       (1)

The state of a changed mesh is computed exactly. The rest (activations, gradients, buffers) comes
from the compiler's error message and scales with the images per chip. How much more
rematerialisation saves is unknown without compiling, so it is proposed first, without a prediction.
"""

from collections.abc import Callable, Iterator
from typing import Any

from launch.report import Report

Change = tuple[list[str], str]
"""Fields to set, as "field=value", and the reason."""

ROOM = 0.95
"""Fraction of the memory that a prediction may fill, since predictions are not exact."""


def advice(config: Any, report: Report, state_of: Callable[[dict[str, int]], int]) -> list[str]:
    """Returns advice on how to make a program fit, a line each, in the order to try.

    Args:
      config: The config that does not fit.
      report: Its report.
      state_of: state_of(mesh) -> bytes of the program's state on one chip.
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
    """Yields changes, the cheapest first; later ones include earlier ones that help.

    Rematerialisation changes nothing else; more fsdp communicates more; accumulation splits the
    batch into parts, which makes matrix products smaller.
    """
    now = config.model.get("remat")
    kept = ("none", "projections", "branches", "blocks")
    for place, remat in enumerate(kept):
        if report["what"] == "train" and now in kept[:place]:
            yield [f"model.remat={remat}"], "fewer values are stored for the backward pass"
    mesh = report["mesh"]
    fsdp, free = mesh["fsdp"], mesh["data"]
    while free % 2 == 0 and free > 1:
        fsdp, free = 2 * fsdp, free // 2
        yield [f"mesh.fsdp={fsdp}", "mesh.data=-1"], "the state is sharded over more chips"
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
    """Returns the bytes by (1) after a change; None if they cannot be predicted.

    Args:
      report: Report of the program that does not fit.
      fields: Fields that are changed.
      state_of: state_of(mesh) -> bytes of the program's state on one chip.
      parts: Parts into which the program already splits a batch.
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

    If none does, it returns the largest power of two that divides the chips.
    """
    fsdp = 1
    while chips % (2 * fsdp) == 0 and state_of(dict(data=-1, fsdp=fsdp, tensor=1)) > usable / 2:
        fsdp *= 2
    return fsdp
