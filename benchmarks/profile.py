"""Where the time of a program goes: a trace for xprof and Perfetto, and its sum as text.

    share of an operation = its time / the time of all operations, over all threads of the device

The operations are those of the compiled program; what they were in the source, and how many
operations of the matrix units they do, is read off the program's text.
"""

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

AROUND = ("while", "call", "conditional")
"""Operations that other operations run inside of."""

_INSTRUCTION = re.compile(r"%?([\w.\-]+) = .*?(?<![\w.\-])([a-z][\w\-]*)\(", re.ASCII)
_SOURCE = re.compile(r'op_name="([^"]*)"')


class Source(NamedTuple):
    """What an operation of a compiled program is.

    Attributes:
      op: Its kind there: "dot", "fusion".
      name: Path in the source, "jit(step)/transpose(jvp())/while/body/dot_general".
    """

    op: str
    name: str

    @property
    def part(self) -> str:
        """What it is in the source: "dot_general, backward", "add in _uniform, forward".

        What is no part of a derivative has no direction, in training that of the optimiser too.
        """
        *path, last = [word for word in self.name.split("/") if word] or [self.op]
        inner = [word[4:-1] for word in path[1:] if re.fullmatch(r"jit\(\w+\)", word)]
        passes = {"rematted": "again", "transpose(": "backward", "jvp(": "forward"}
        found = [turn for word, turn in passes.items() if word in self.name]
        return ", ".join([f"{last} in {inner[-1]}" if inner else last, *found[:1]])


class Row(NamedTuple):
    """The time of one operation, or of those of one part.

    Attributes:
      name: Of the operation or part.
      seconds: In all runs, over all threads.
      count: How often it ran.
      share: Of the time of all operations.
    """

    name: str
    seconds: float
    count: int
    share: float


def trace(folder: Path, program: Any, runs: int) -> Path:
    """Returns the newest trace in a folder, after writing that of some runs of a program."""
    import jax

    program.run(1)
    with jax.profiler.trace(str(folder)):
        program.run(runs)
    return max(folder.rglob("*.trace.json.gz"), key=lambda file: file.stat().st_mtime)


def spans(file: Path) -> list[tuple[str, float]]:
    """Returns name and seconds of every operation of a device in a trace."""
    with gzip.open(file, "rt", encoding="utf-8") as text:
        events = json.load(text)["traceEvents"]
    device = {
        (event["pid"], event["tid"])
        for event in events
        if event.get("name") == "thread_name" and event["args"]["name"] == "XLA Ops"
    }
    found = []
    for event in events:
        name = event.get("args", {}).get("hlo_op")
        if name is None and (event.get("pid"), event.get("tid")) in device:
            name = event["name"]
        if name is not None and event.get("ph") == "X":
            found.append((name, event["dur"] / 1e6))
    return found


def sources(text: str) -> dict[str, Source]:
    """Returns what each operation of a compiled program is, from the program's text."""
    found = {}
    for line in text.splitlines():
        if match := _INSTRUCTION.match(line.strip().removeprefix("ROOT ")):
            name = _SOURCE.search(line)
            found[match.group(1)] = Source(match.group(2), name.group(1) if name else "")
    return found


def rows(items: Iterable[tuple[str, float]]) -> list[Row]:
    """Returns a row for each name, the longest first."""
    spent: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for name, seconds in items:
        spent[name] += seconds  # pyright: ignore
        count[name] += 1
    total = sum(spent.values()) or 1.0
    return [
        Row(name, seconds, count[name], seconds / total) for name, seconds in spent.most_common()
    ]


def summary(items: Iterable[tuple[str, float]], known: Mapping[str, Source], top: int = 20) -> str:
    """Returns the parts of a program and its longest operations as text.

    Args:
      items: Name and seconds of every operation that ran.
      known: What they are, see `sources`.
      top: How many of each to name.
    """
    items = [(n, s) for n, s in items if n not in known or known[n].op not in AROUND]
    if not items:
        return "the trace has no operations of a device"
    parts = rows((known[n].part if n in known else n, s) for n, s in items)
    lines = ["share    seconds    times  part of the program"]
    lines += [f"{r.share:6.1%} {r.seconds:10.4f} {r.count:8}  {r.name}" for r in parts[:top]]
    lines.append("\nshare    seconds    times  operation")
    for r in rows(items)[:top]:
        source = known.get(r.name, Source("", ""))
        lines.append(
            f"{r.share:6.1%} {r.seconds:10.4f} {r.count:8}  {r.name} ({source.op}): {source.name}"
        )
    return "\n".join(lines)
