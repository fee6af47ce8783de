"""Parser of compiled programs as text (HLO): instructions, and how many times each runs.

The compiler's own totals (`cost_analysis`) count the body of a loop once. Here it counts once per
iteration; the number of iterations follows from the loop's condition.
"""

import dataclasses
import re
from collections.abc import Iterator
from math import prod

BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
"""Bits of types whose names do not tell them, as the digits of f32, bf16, s8 and f8e4m3 do."""

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?")
_NAME = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = ")
_CALLED = re.compile(
    r"\b(?:calls|body|to_apply|called_computations|branch_computations|true_computation|"
    r"false_computation)=(?:\{([^}]*)\}|(%?[\w.\-]+))"
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """Shape, dtype and memory space of an array.

    Attributes:
      dtype: "f32", "bf16", ...
      dims: Sizes of its axes.
      space: Memory space: 0 is the device's main memory, 1 a TPU's vector memory.
    """

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> int:
        """Bytes in memory, without padding."""
        if self.dtype in BITS:
            bits = BITS[self.dtype]
        else:
            bits = int(re.findall(r"\d+", self.dtype)[0])
        return -(-prod(self.dims) * bits // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One operation.

    Attributes:
      name: Its name in its computation.
      op: "dot", "fusion", "all-gather-start", ...
      shapes: Its result: one array, or the arrays of a tuple, flattened.
      operands: Names of its operands; for a constant or parameter, its value or number.
      attributes: The rest of its line.
      root: Whether it is the result of its computation.
    """

    name: str
    op: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    root: bool

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations it runs, without a loop's condition."""
        return tuple(
            name.strip().lstrip("%")
            for several, one in _CALLED.findall(self.attributes)
            for name in (several or one).split(",")
        )

    @property
    def source(self) -> str:
        """The operation in the traced program: "jit(step)/jvp()/while/body/dot_general"."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found.group(1) if found else ""

    @property
    def cycles(self) -> int | None:
        """The TPU compiler's own estimate, or None."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(found.group(1)) if found else None


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled module.

    Attributes:
      computations: Instructions by name, for each computation.
      entry: Name of the computation that runs first.
    """

    computations: dict[str, Computation]
    entry: str

    def walk(self) -> Iterator[tuple[Instruction, Computation, int, bool]]:
        """Yields (instruction, computation, runs, known) for all instructions outside fusions.

        `runs` is how many times it runs, `known` whether that is exact: the body of a loop with an
        unknown number of iterations counts once. All sides of a branch count. `inside` yields the
        instructions of a fusion.
        """
        yield from self._walk(self.entry, 1, True)

    def _walk(self, name: str, times: int, known: bool) -> Iterator:
        computation = self.computations[name]
        for instruction in computation.values():
            yield instruction, computation, times, known
            if instruction.op == "while":
                turns = self.turns(instruction, computation)
                body = re.search(r"body=%?([\w.\-]+)", instruction.attributes)
                if body:
                    again = times * (turns or 1)
                    yield from self._walk(body.group(1), again, known and turns is not None)
            elif instruction.op in ("call", "conditional", "async-start"):
                for called in instruction.called:
                    yield from self._walk(called, times, known)

    def inside(self, instruction: Instruction) -> Iterator[tuple[Instruction, Computation]]:
        """Yields the instructions of a fusion and its nested fusions; nothing for others.

        A custom fusion may call further computations; their instructions count as inside.
        """
        if instruction.op != "fusion":
            return
        for called in instruction.called:
            computation = self.computations[called]
            for inner in computation.values():
                yield inner, computation
                yield from self.inside(inner)

    def turns(self, loop: Instruction, computation: Computation) -> int | None:
        """Returns the number of iterations of a loop, or None if it is unknown.

        Either the compiler states it, or the condition compares a counter of the loop's state,
        which increases by one, with a constant.
        """
        found = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if found:
            return int(found.group(1))
        condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
        if not condition:
            return None
        asked = self.computations[condition.group(1)]
        root = next(i for i in asked.values() if i.root)
        if root.op == "fusion":  # holds only the comparison
            outside = root.operands
            inner = self.computations[root.called[0]]
            root = next(i for i in inner.values() if i.root)
            numbers = {i.name: int(i.operands[0]) for i in inner.values() if i.op == "parameter"}
            names = [outside[numbers[name]] for name in root.operands if name in numbers]
        else:
            names = list(root.operands)
        direction = re.search(r"direction=(LT|LE)", root.attributes)
        if root.op != "compare" or not direction or len(names) != 2:
            return None
        start, stop = (self._state(asked, name, loop, computation) for name in names)
        if start is None or stop is None:
            return None
        return max(stop - start + (direction.group(1) == "LE"), 0)

    def _state(
        self, condition: Computation, name: str, loop: Instruction, computation: Computation
    ) -> int | None:
        """Returns the integer the condition reads before the first iteration, if constant."""
        value = _through(condition, name)
        if value.op == "constant":
            return _whole(value)
        index = re.search(r"index=(\d+)", value.attributes)
        if value.op != "get-tuple-element" or not index or not loop.operands:
            return None
        state = computation.get(loop.operands[0])
        if state is None or state.op != "tuple":
            return None
        first = _through(computation, state.operands[int(index.group(1))])
        return _whole(first) if first.op == "constant" else None


def parse(text: str) -> Program:
    """Returns the program of a text from `compiled.as_text()`.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        begins = _COMPUTATION.match(line)
        if begins and not line.startswith(" "):
            current = computations.setdefault(begins.group(2), {})
            entry = begins.group(2) if begins.group(1) else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (instruction := _instruction(line)):
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("This text is not a compiled program: it has no ENTRY computation.")
    return Program(computations, entry)


def operand(computation: Computation, instruction: Instruction, number: int) -> Shape:
    """Returns the shape of an operand; an empty one if the operand is a tuple."""
    shapes = computation[instruction.operands[number]].shapes
    return shapes[0] if len(shapes) == 1 else Shape("token", ())


def _instruction(line: str) -> Instruction | None:
    named = _NAME.match(line)
    if not named:
        return None
    rest = re.sub(r"/\*.*?\*/", "", line[named.end() :])
    kind = rest[: _closing(rest, 0) + 1] if rest.startswith("(") else rest.split(" ", 1)[0]
    rest = rest[len(kind) :].lstrip()
    op, _, rest = rest.partition("(")
    end = _closing("(" + rest, 0) - 1
    words = _split(rest[:end])
    operands = tuple(word.split(" ")[-1].lstrip("%") for word in words)
    shapes = tuple(_shape(*found) for found in _SHAPE.findall(kind))
    return Instruction(
        named.group(2), op, shapes, operands, rest[end + 1 :], named.group(1) is not None
    )


def _shape(dtype: str, dims: str, layout: str) -> Shape:
    space = re.search(r"S\((\d+)\)", layout)
    sizes = tuple(int(size.lstrip("<=")) for size in dims.split(",") if size)
    return Shape(dtype, sizes, int(space.group(1)) if space else 0)


def _closing(text: str, start: int) -> int:
    """Returns the index at which the bracket at `start` closes."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return len(text) - 1


def _split(text: str) -> list[str]:
    """Returns the parts of a text, split at commas outside brackets."""
    parts, depth, part = [], 0, ""
    for letter in text:
        depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append(part.strip())
            part = ""
        else:
            part += letter
    return [*parts, part.strip()] if part.strip() else parts


def _through(computation: Computation, name: str) -> Instruction:
    """Returns the instruction that makes a value, looking through copies and conversions."""
    instruction = computation[name]
    while instruction.op in ("copy", "convert", "bitcast", "copy-done", "copy-start"):
        instruction = computation[instruction.operands[0]]
    return instruction


def _whole(constant: Instruction) -> int | None:
    try:
        return int(constant.operands[0])
    except ValueError:
        return None
