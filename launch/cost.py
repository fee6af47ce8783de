"""The costs of a compiled program on one chip: operations, memory traffic, cycles.

    time by cycles = sum of max(cycles / clock, bytes of HBM / (BANDWIDTH x bandwidth)) x runs   (1)
    roofline       = sum of max(operations / peak rate, bytes of HBM / bandwidth) x runs         (2)

The sums are over instructions and the number of times each runs. Cycles are those of `schedule`, or
the compiler's own estimate for instructions without code. Both leave out collectives, see
`communication`.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod

import numpy as np

from launch.chips import Chip
from launch.communication import Collective, Talk, kind_of
from launch.hlo import Computation, Instruction, Program, Shape, operand

SLICES_OF = ("dynamic-slice", "slice", "gather")
FREE = {
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "call"),
    *("conditional", "after-all", "partition-id", "replica-id", "opt-barrier", "async-start"),
    *("send", "recv"),
}
"""Instructions without memory traffic of their own."""

BANDWIDTH = 0.8
"""Achieved fraction of the memory bandwidth, from the compiler's own cycles for copies."""


@dataclasses.dataclass(frozen=True)
class Costs:
    """Totals of one run of a program on one chip.

    Attributes:
      flops: Operations of matrix products and convolutions; a multiply-add is 2.
      traffic: Bytes read from and written to main memory.
      cycles: Cycles by (1); 0 if there are none, as for CPUs.
      roofline: Seconds by (2).
      collectives: Collectives by kind and axes.
      heaviest: (part of the program, fraction of the cycles), the most expensive first.
      unknown: What could not be counted: loops with unknown iterations, kernels with unknown
        operations.
    """

    flops: float
    traffic: float
    cycles: int
    roofline: float
    collectives: tuple[Collective, ...]
    heaviest: tuple[tuple[str, float], ...]
    unknown: tuple[str, ...]


def measure(
    program: Program,
    chip: Chip,
    devices: np.ndarray,
    axes: Sequence[str],
    scheduled: Mapping[str, int] | None = None,
) -> Costs:
    """Returns the costs of a program.

    Args:
      program: Program compiled for the mesh.
      chip: Chip that it runs on.
      devices: The mesh's devices, with one dimension for each axis.
      axes: Names of the mesh's axes.
      scheduled: Cycles of instructions by name, see `schedule.collect`.
    """
    spends = _spends(program, scheduled or {})
    total = traffic = roofline = 0.0
    cycles: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    talk = Talk(chip, devices, axes)
    for instruction, computation, times, known in program.walk():
        work, moved = 0.0, 0.0
        if not instruction.op.endswith("-done"):
            work = flops(program, instruction, computation)
            moved = hbm_bytes(program, instruction, computation)
            talk.hear(program, instruction, computation, times, known)
        if work is None:
            work = 0.0
            unknown[f"operations of a kernel: {instruction.source or instruction.name}"] += 1
        if instruction.op == "while" and program.turns(instruction, computation) is None:
            unknown[f"turns of a loop, counted once: {instruction.source}"] += 1
        total += times * work
        traffic += times * moved
        roofline += times * max(work / chip.flops, moved / chip.bandwidth)
        spent = spends(instruction, computation)
        if work or not any(kind_of(inner) for inner in _all(program, instruction)):
            if spent is None and instruction.op == "custom-call" and work:
                unknown[f"cycles of a kernel: {instruction.source or instruction.name}"] += 1
            waits = moved / (BANDWIDTH * chip.bandwidth) * chip.clock if spent is not None else 0
            if longest := round(max(spent or 0, waits)):
                cycles[_part(instruction)] += times * longest
    clock = sum(cycles.values())
    return Costs(
        flops=total,
        traffic=traffic,
        cycles=clock,
        roofline=roofline,
        collectives=talk.grouped(),
        heaviest=tuple((part, count / clock) for part, count in cycles.most_common(12)),
        unknown=tuple(unknown),
    )


def _spends(
    program: Program, scheduled: Mapping[str, int]
) -> Callable[[Instruction, Computation], int | None]:
    """Returns the function from an instruction to its cycles; identical ones share one code."""

    def code(instruction, computation):
        taken = range(len(instruction.operands))
        shapes = tuple(operand(computation, instruction, number) for number in taken)
        inside = tuple((inner.op, inner.shapes) for inner, _ in program.inside(instruction))
        return instruction.op, instruction.shapes, instruction.cycles, shapes, inside

    alike = {
        code(instruction, computation): scheduled[instruction.name]
        for instruction, computation, _, _ in program.walk()
        if instruction.name in scheduled
    }

    def spends(instruction, computation):
        found = scheduled.get(instruction.name)
        if found is None and alike and instruction.op not in FREE:
            found = alike.get(code(instruction, computation))
        return instruction.cycles if found is None else found

    return spends


def _all(program: Program, instruction: Instruction) -> Iterator[Instruction]:
    yield instruction
    yield from (inner for inner, _ in program.inside(instruction))


# Operations.


def flops(program: Program, instruction: Instruction, computation: Computation) -> float | None:
    """Returns the operations of an instruction's matrix products; None for an unknown kernel."""
    if instruction.op == "custom-call" and "tpu_custom_call" in instruction.attributes:
        return _said(instruction, "flops")
    own = _products(instruction, computation)
    return own + sum(_products(*inner) for inner in program.inside(instruction))


def _products(instruction: Instruction, computation: Computation) -> float:
    if instruction.op == "dot":
        left = operand(computation, instruction, 0)
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        contracted = [int(axis) for axis in axes.group(1).split(",") if axis] if axes else []
        inner = prod(left.dims[axis] for axis in contracted)
        return 2.0 * prod(instruction.shapes[0].dims) * inner
    if instruction.op == "convolution":
        return _convolution(instruction, computation)
    return 0.0


def _convolution(instruction: Instruction, computation: Computation) -> float:
    """Returns 2 x the number of products, without those with padding and dilation zeros.

    The TPU compiler writes batched matrix products as convolutions whose windows are mostly
    padding.
    """
    text = instruction.attributes
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", text)
    if not labels:
        return 0.0
    left_labels, right_labels, out_labels = labels.groups()
    left = dict(zip(left_labels, operand(computation, instruction, 0).dims, strict=True))
    right = dict(zip(right_labels, operand(computation, instruction, 1).dims, strict=True))
    out = dict(zip(out_labels, instruction.shapes[0].dims, strict=True))
    spatial = sorted(label for label in out if label.isdigit())
    window = _window(text, len(spatial))
    positions = 1
    for number, axis in enumerate(spatial):
        positions *= _positions(left[axis], right[axis], out[axis], **window[number])
    return 2.0 * positions * left["b"] * left["f"] * out["f"] / (
        _count(text, "feature_group_count") * _count(text, "batch_group_count")
    )  # fmt: skip


def _positions(
    size: int, kernel: int, out: int, stride: int, low: int, left: int, right: int
) -> int:
    """Returns the number of pairs of output and kernel positions that read an input value."""
    at = np.arange(out)[:, None] * stride - low + np.arange(kernel)[None] * right
    return int(((at >= 0) & (at <= (size - 1) * left) & (at % left == 0)).sum())


def _window(text: str, axes: int) -> list[dict[str, int]]:
    def values(name: str, default: str) -> list[str]:
        found = re.search(rf"window=\{{[^}}]*?\b{name}=([\dx_\-]+)", text)
        return found.group(1).split("x") if found else [default] * axes

    return [
        dict(stride=int(s), low=int(p.split("_")[0]), left=int(a), right=int(b))
        for s, p, a, b in zip(
            values("stride", "1"),
            values("pad", "0_0"),
            values("lhs_dilate", "1"),
            values("rhs_dilate", "1"),
            strict=True,
        )
    ]


def _count(text: str, name: str) -> int:
    found = re.search(rf"{name}=(\d+)", text)
    return int(found.group(1)) if found else 1


# Memory traffic.


def hbm_bytes(program: Program, instruction: Instruction, computation: Computation) -> float:
    """Returns the bytes that an instruction reads from and writes to main memory.

    For an operand that is only sliced, the slices count. For a result that is an operand with an
    updated part, the part counts. Arrays in a TPU's vector memory do not count.
    """
    op = instruction.op
    if op in FREE or op.endswith("-done") or kind_of(instruction):
        return 0.0
    if op in ("copy-start", "slice-start"):
        # Result and source, one of them in vector memory; only the smaller one is moved.
        arrives = min(instruction.shapes[:2], key=lambda shape: shape.bytes)
        return float(sum(arrives.bytes for s in instruction.shapes[:2] if s.space == 0))
    inner = program.computations[instruction.called[0]] if op == "fusion" else None
    if inner is None and op == "custom-call" and "tpu_custom_call" not in instruction.attributes:
        return 0.0  # buffers and annotations
    total = 0.0
    for number in range(len(instruction.operands)):
        shape = operand(computation, instruction, number)
        if shape.space == 0:
            total += _read(program, instruction, number, shape)
    for number, shape in enumerate(instruction.shapes):
        if shape.space == 0:
            total += _written(inner, instruction, computation, number, shape)
    # A kernel may read only a part of its operands.
    said = _said(instruction, "bytes_accessed") if op == "custom-call" else None
    return total if said is None else min(total, said)


def _said(kernel: Instruction, what: str) -> float | None:
    """Returns a kernel's own cost estimate, or None."""
    found = re.search(rf'"?{what}"?:\s*"?(\d+)', kernel.attributes)
    return float(found.group(1)) if found else None


def _read(program: Program, instruction: Instruction, number: int, shape: Shape) -> float:
    """Returns the bytes read from an operand; in fusions, also nested ones, only its slices."""
    whole = float(shape.bytes)
    if instruction.op in SLICES_OF and number == 0:
        return float(instruction.shapes[0].bytes)
    if instruction.op == "dynamic-update-slice" and number == 0:
        return 0.0
    if instruction.op != "fusion":
        return whole
    inner = program.computations[instruction.called[0]]
    names = [i.name for i in inner.values() if i.op == "parameter" and i.operands == (str(number),)]
    if not names:
        return whole
    total = 0.0
    for user, place in _users(inner, names[0]):
        total += _read(program, user, place, shape)
    return min(total, whole)


def _written(
    inner: Computation | None,
    instruction: Instruction,
    computation: Computation,
    number: int,
    shape: Shape,
) -> float:
    if inner is None:
        if instruction.op == "dynamic-update-slice":
            return float(operand(computation, instruction, 1).bytes)
        return float(shape.bytes)
    root = next(i for i in inner.values() if i.root)
    if root.op == "tuple":
        root = inner[root.operands[number]]
    while root.op in ("bitcast", "copy") and root.operands[0] in inner:
        root = inner[root.operands[0]]
    if root.op == "dynamic-update-slice":
        return float(inner[root.operands[1]].shapes[0].bytes)
    return float(shape.bytes)


def _users(inner: Computation, name: str) -> Iterator[tuple[Instruction, int]]:
    """Yields the users of a value, looking through bitcasts, and their operand indices."""
    for instruction in inner.values():
        for place, operand_name in enumerate(instruction.operands):
            if operand_name == name and instruction.op == "bitcast":
                yield from _users(inner, instruction.name)
            elif operand_name == name:
                yield instruction, place


def _part(instruction: Instruction) -> str:
    """Returns a short name of the traced operation and its phase, such as the backward pass.

    "jit(step)/transpose(jvp())/while/body/checkpoint/dot_general" is "dot_general, backward".
    """
    words = instruction.source.split("/")
    phase = "forward" if "jvp" in instruction.source else ""
    if "rematted_computation" in words:
        phase = "computed again"
    elif "transpose" in instruction.source:
        phase = "backward"
    return ", ".join(word for word in (words[-1] or instruction.op, phase) if word)
