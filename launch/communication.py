"""Communication in a compiled program: bytes, mesh axes and time of its collectives.

    seconds of a collective = bytes a chip sends / bandwidth of the links it can use             (1)

(1) is the time without overlap; the TPU compiler overlaps much of it with computation.
"""

import dataclasses
import re
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from launch.chips import Chip
from launch.hlo import Computation, Instruction, Program, operand

COLLECTIVES = {
    # Bytes moved, and bytes a chip sends on a ring of g chips, for each input byte of a chip.
    "all-gather": (lambda g: g, lambda g: g - 1),
    "reduce-scatter": (lambda g: 1, lambda g: (g - 1) / g),
    "all-reduce": (lambda g: 1, lambda g: 2 * (g - 1) / g),
    "all-to-all": (lambda g: 1, lambda g: (g - 1) / g),
    "ragged-all-to-all": (lambda g: 1, lambda g: (g - 1) / g),
    "collective-permute": (lambda g: 1, lambda g: 1),
    "collective-broadcast": (lambda g: 1, lambda g: 1),
}
_AXIS_PART = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


@dataclasses.dataclass(frozen=True)
class Collective:
    """Communication of one kind over the same mesh axes.

    Attributes:
      kind: Row of `COLLECTIVES`.
      axes: Mesh axes it runs over, "data,fsdp"; "?" if the groups follow no axes.
      group: Chips in a group.
      count: Number of times in one run of the program.
      bytes: Bytes of the whole arrays that are gathered, scattered or reduced, in total.
      sent: Bytes that a chip sends.
      seconds: Time by (1).
      known: Whether the iterations of all loops around it are known.
    """

    kind: str
    axes: str
    group: int
    count: int
    bytes: float
    sent: float
    seconds: float
    known: bool = True


class Talk:
    """Collects the collectives of a program, instruction by instruction."""

    def __init__(self, chip: Chip, devices: np.ndarray, axes: Sequence[str]):
        """Takes the chip, and the mesh's devices and axis names."""
        self._chip, self._devices, self._axes = chip, devices, axes
        self._rows: dict[tuple[str, str, int], Collective] = {}
        self._channels: set[str] = set()

    def hear(
        self,
        program: Program,
        instruction: Instruction,
        computation: Computation,
        times: int,
        known: bool,
    ) -> None:
        """Adds an instruction's collectives: itself, or those fused into it.

        The TPU compiler spreads one collective over several fusions that also compute, even in
        inner loops. All have one channel, and only the first is counted. A fusion of a reduction
        with slices of its result is a reduce-scatter.
        """
        scatters = any("all-reduce-scatter" in name for name in instruction.called)
        for inner, around in [(instruction, computation), *program.inside(instruction)]:
            kind = kind_of(inner)
            if kind and not self._heard(inner):
                if kind == "all-reduce" and scatters:
                    kind = "reduce-scatter"
                given = sum(operand(around, inner, i).bytes for i in range(len(inner.operands)))
                if inner.op == "send":
                    self._between_slices(kind, given, times, known)
                else:
                    self._in_groups(kind, given, inner.attributes, times, known)

    def _heard(self, instruction: Instruction) -> bool:
        """Returns whether this is another part of a collective that was added before."""
        channel = re.search(r"channel_id=(\d+)", instruction.attributes)
        if "async_collective_fusion_config" not in instruction.attributes or not channel:
            return False
        known = channel.group(1) in self._channels
        self._channels.add(channel.group(1))
        return known

    def _in_groups(self, kind: str, given: int, text: str, times: int, known: bool) -> None:
        groups = parse_groups(text, self._devices.size)
        axes = axes_of(groups, self._devices.shape, self._axes)
        self._add(kind, axes, groups.shape[1], given, self._bandwidth(groups), times, known)

    def _between_slices(self, kind: str, given: int, times: int, known: bool) -> None:
        """Adds a transfer over the data-centre network, along the axis where slices differ."""
        slices = np.vectorize(lambda device: getattr(device, "slice_index", 0))(self._devices)
        axes = [
            name
            for number, name in enumerate(self._axes)
            if (slices != slices.take([0], axis=number)).any()
        ]
        rate = self._chip.dcn or self._chip.ici
        self._add(kind, ",".join(axes), len(np.unique(slices)), given, rate, times, known)

    def _add(
        self, kind: str, axes: str, size: int, given: int, rate: float, times: int, known: bool
    ) -> None:
        if size == 1:
            return
        moved, sent = COLLECTIVES[kind]
        before = self._rows.get((kind, axes, size), Collective(kind, axes, size, 0, 0.0, 0.0, 0.0))
        more = times * given * sent(size)
        self._rows[kind, axes, size] = dataclasses.replace(
            before,
            count=before.count + times,
            bytes=before.bytes + times * given * moved(size),
            sent=before.sent + more,
            seconds=before.seconds + more / rate,
            known=before.known and known,
        )

    def _bandwidth(self, groups: np.ndarray) -> float:
        """Returns the bytes a second that a chip can send within its group, for (1).

        A chip's links are divided evenly among the dimensions of the torus; a group uses those of
        the dimensions along which it extends. Slices use the data-centre network.
        """
        chip = self._chip
        members: list[Any] = [self._devices.flat[int(number)] for number in groups[0]]
        slices = {getattr(device, "slice_index", None) or 0 for device in members}
        if len(slices) > 1:
            return chip.dcn or chip.ici
        places = np.asarray([getattr(device, "coords", (0,)) for device in members])
        used = int((places != places[:1]).any(0).sum())
        return chip.ici * min(max(used, 1), chip.dimensions) / chip.dimensions

    def grouped(self) -> tuple[Collective, ...]:
        """Returns a row for each kind, axes and group size, sorted by bytes, the most first."""
        return tuple(sorted(self._rows.values(), key=lambda row: -row.bytes))


def kind_of(instruction: Instruction) -> str:
    """Returns the kind of a collective, or "" for other instructions and for its end.

    Transfers between TPU slices go through the hosts, and name their collective.
    """
    kind = instruction.op.removesuffix("-start")
    if kind == "send":
        found = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
        kind = found.group(1).lower().replace("_", "-") if found else ""
    return kind if kind in COLLECTIVES else ""


def parse_groups(text: str, devices: int) -> np.ndarray:
    """Returns the groups of a collective, one per row: device indices in the mesh's order.

    XLA writes them as lists, `{{0,1},{2,3}}`; as counts, `[2,2]<=[4]`, optionally with a transpose
    `T(1,0)`; or by axes, `mesh['a'=2,'b'=2] {'b'}`, optionally of devices given as counts. Pairs of
    a permutation are `source_target_pairs={{0,1},...}`. No groups mean all devices.
    """
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}", text)
    if listed:
        rows = re.findall(r"\{([\d, ]+)\}", listed.group(1))
        return np.asarray([[int(number) for number in row.split(",")] for row in rows])
    counted = re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", text)
    if counted:
        return _counted(counted.group(2)).reshape(_numbers(counted.group(1)))
    named = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*(?:\([^)]*\))?)\))?\s*"
        r"\{([^}]*)\}",
        text,
    )
    if named:
        sizes = {k: int(n) for k, n in re.findall(r"'([^']+)'=(\d+)", named.group(1))}
        groups, order = _mesh_groups(sizes, named.group(3)), named.group(2)
        return groups if order is None else _counted(order).reshape(-1)[groups]
    return np.arange(devices)[None]


def _counted(text: str) -> np.ndarray:
    """Returns device indices: "[2,3]" counts from 0, "[2,3]T(1,0)" then transposes the axes."""
    shape, _, order = text.strip("[)").replace("]", "").partition("T(")
    if not text.startswith("["):
        return np.asarray(_numbers(shape))
    grid = np.arange(prod(_numbers(shape))).reshape(_numbers(shape))
    return grid.transpose(_numbers(order)) if order else grid


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _mesh_groups(sizes: dict[str, int], over: str) -> np.ndarray:
    """Returns the groups over axes of a mesh; `'a':(2)4` is the 4 parts after the first 2 of a.

    Source: "sub-axes" in Shardy's documentation of its mesh notation.
    """
    names, shape, chosen = [], [], []
    parts = {name: (int(low or 1), size) for name, low, size in _AXIS_PART.findall(over)}
    for name, whole in sizes.items():
        low, size = parts.get(name, (1, ""))
        middle = int(size) if size else whole
        names += [f"{name} before", name, f"{name} after"]
        shape += [low, middle, whole // (low * middle)]
    chosen = [names.index(name) for name in parts]
    rest = [place for place in range(len(names)) if place not in chosen]
    grid = np.arange(prod(shape)).reshape(shape).transpose(rest + chosen)
    return grid.reshape(-1, prod(shape[place] for place in chosen))


def axes_of(groups: np.ndarray, shape: Sequence[int], axes: Sequence[str]) -> str:
    """Returns the mesh axes along which the members of a group differ, "data,fsdp".

    An axis that a group covers only in part ends with "/", as "data/". Axes of size 1 are not
    named.
    """
    places = np.stack(np.unravel_index(groups, shape), -1)
    names = []
    for number, (axis, size) in enumerate(zip(axes, shape, strict=True)):
        found = np.unique(places[0, :, number])
        if len(found) > 1:
            names.append(axis if len(found) == size or groups.shape[1] == 2 else f"{axis}/")
    return ",".join(names) or "?"
