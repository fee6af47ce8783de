"""Communication in a compiled program: what is sent, over which axes of the mesh, how long.

    seconds of a collective = bytes a chip sends / bandwidth of the links it can use             (1)

(1) is the time if nothing else runs meanwhile; the TPU compiler lets much of it run beside
computation.
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
    # Bytes that are moved, and that a chip sends on a ring of g chips, for each byte it puts in.
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
      axes: Mesh axes it runs over, "data,fsdp"; "?" where the groups follow no axes.
      group: Chips that take part together.
      count: How often in one run of the program.
      bytes: Moved: of the whole array gathered, scattered or reduced; summed over all.
      sent: Bytes that a chip sends.
      seconds: By (1).
      known: Whether all loops around it are counted.
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
    """Gathers the collectives of a program, one instruction after the other."""

    def __init__(self, chip: Chip, devices: np.ndarray, axes: Sequence[str]):
        """Takes the chip, and the mesh's devices and names of axes."""
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
        """Adds the collectives that an instruction is, or that are fused in it.

        TPUs spread one collective over several fusions that compute meanwhile, in inner loops, too,
        all of one channel: the first counts. A fusion of a reduction with the slices of its result
        scatters.
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
        """Returns whether this is a further part of a collective that was added."""
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
        """Adds what goes over the data-centre network: the axis along which slices differ."""
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
        """Returns bytes a second that a chip can send within its group, by (1).

        A chip's links are shared out evenly to the dimensions of the torus; a group uses those of
        the dimensions along which it extends. Between slices there is the data-centre network.
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
        """Returns a row for each kind, axes and size of group, the most bytes first."""
        return tuple(sorted(self._rows.values(), key=lambda row: -row.bytes))


def kind_of(instruction: Instruction) -> str:
    """Returns the kind of a collective, or nothing for another instruction or its end.

    What slices of TPUs tell each other is sent through the hosts, and says what it is part of.
    """
    kind = instruction.op.removesuffix("-start")
    if kind == "send":
        found = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
        kind = found.group(1).lower().replace("_", "-") if found else ""
    return kind if kind in COLLECTIVES else ""


def parse_groups(text: str, devices: int) -> np.ndarray:
    """Returns the groups of a collective: numbers of devices in the mesh's order, a group a row.

    XLA writes them as `{{0,1},{2,3}}`, as `[2,2]<=[4]`, where devices are counted, perhaps after
    `T(1,0)` turned the axes round, or by axes, `mesh['a'=2,'b'=2] {'b'}`, perhaps of devices that
    are counted like that; pairs of a permutation as `source_target_pairs={{0,1},...}`. No groups
    at all mean all devices.
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
    """Returns device numbers: "[2,3]" counts from 0, "[2,3]T(1,0)" then turns the axes round."""
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

    An axis of which a group has only a part ends with "/", as "data/". Axes of size 1 are not
    named.
    """
    places = np.stack(np.unravel_index(groups, shape), -1)
    names = []
    for number, (axis, size) in enumerate(zip(axes, shape, strict=True)):
        found = np.unique(places[0, :, number])
        if len(found) > 1:
            names.append(axis if len(found) == size or groups.shape[1] == 2 else f"{axis}/")
    return ",".join(names) or "?"
