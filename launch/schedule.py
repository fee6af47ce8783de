"""Cycles of machine code: the TPU compiler's schedule of each instruction of a program.

On request the compiler writes its code to files: bundles of operations that start together, in
loops with a stated number of iterations. An instruction then takes

    cycles = max(bundles x iterations, results of the busiest matrix unit x cycles of a result)  (1)

These cycles exclude waiting for memory. Unlike the compiler's own estimate
(`hlo.Instruction.cycles`) they include kernels, and do not treat vector memory as slow.
"""

import atexit
import functools
import re
import shutil
import tempfile
from collections import Counter
from pathlib import Path

_FILE = re.compile(r"\d+-(?P<name>.+)-\d+-final_bundles\.txt")
_LINE = re.compile(
    r"(?P<bundle>^ *(?:0x[0-9a-f]+|0) +(?P<loop>LB)?)"
    r"|(?P<stage>iteration index, stage)"
    r"|(?:scmp\.ge\.s32\.totalorder [^,\n]+, (?P<turns>\d+) )?/\* (?P<end>loop exit test)"
    r"|= vpop\.[\w.]*mrf\.mxu(?P<unit>\d)",
    re.MULTILINE,
)
FILLING = 2
"""Extra iterations that a loop takes to fill and drain its pipeline."""


@functools.cache
def folder() -> Path:
    """Returns the folder of this process's compiled code; removed when the process ends."""
    made = Path(tempfile.mkdtemp(prefix="schedule-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def arguments() -> str:
    """Returns the flags for LIBTPU_INIT_ARGS, to be set before libtpu is loaded."""
    return (
        f"--xla_jf_dump_to={folder()} --xla_jf_dump_llo_text=true --xla_jf_dump_hlo_text=false "
        "--xla_jf_dump_llo_pass_label_regex=.*final_bundles"
    )


def forget() -> None:
    """Removes the code of all programs compiled so far."""
    for file in folder().iterdir():
        file.unlink()


def collect(result: int) -> dict[str, int]:
    """Returns the cycles by (1) of the last program's instructions, by name; removes its code.

    Identical instructions share code, which is stored under one of their names.

    Args:
      result: Cycles that a matrix unit takes for a vector of results, see `chips.Chip`.
    """
    found = {}
    for file in folder().iterdir():
        if name := _FILE.fullmatch(file.name):
            found[name["name"]] = cycles(file.read_text(), result)
    forget()
    return found


def cycles(code: str, result: int) -> int:
    """Returns (1) for the code of one instruction."""
    bundles, results = 0, Counter()
    around: list[tuple[int, Counter[str]]] = []
    staged: list[bool] = []
    for found in _LINE.finditer(code):
        if found["loop"]:
            around.append((bundles, results))
            staged.append(False)
            bundles, results = 0, Counter()
        if found["bundle"]:
            bundles += 1
        elif found["unit"]:
            results[found["unit"]] += 1
        elif found["stage"] and staged:
            staged[-1] = True
        elif found["end"] and around:
            turns = int(found["turns"] or 1)
            turns = max(turns - FILLING, 1) if staged.pop() else turns
            outer, before = around.pop()
            bundles = outer + turns * bundles
            results = before + Counter({unit: turns * n for unit, n in results.items()})
    for outer, before in around:  # loops without a recognised end
        bundles, results = bundles + outer, results + before
    return max(bundles, result * max(results.values(), default=0))
