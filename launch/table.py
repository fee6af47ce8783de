"""Compiles configs for topologies and writes docs/scale_table.md.

    python -m launch.table                              compile what is missing, write the table
    python -m launch.table --config=xar_b,xar_h         rows of these configs
    python -m launch.table --render                     write the table of the stored reports

Every program is compiled in a separate process, within --limit seconds. Its report is stored in
docs/scale_table.json at once, so that an interrupted run continues where it stopped; --fresh
compiles all rows again. A row that was not compiled is not in the table.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxar import console
from launch.compile import NOT_FIT, environment

CONFIGS = "xar_b,xar_l,xar_h,var_d30,flowar_h,mar_h"
TOPOLOGIES = "v5e:16x16,v5p:4x4x8,v6e:16x16"
TRAINING_BATCH, IMAGES_A_CHIP = 2048, 8
DOCS = Path(__file__).resolve().parents[1] / "docs"

HEADER = f"""\
# Scale, by compiling

Made by `python -m launch.table` with the TPU compiler on a CPU machine; nothing here ran on a TPU.
Training is one step of {TRAINING_BATCH:,} images, sampling one whole draw of {IMAGES_A_CHIP} images
a chip with the config's own settings, decoder included. fsdp is the smallest power of two that
leaves half of the memory to activations, or one asked for; the other chips are data parallel.
[scale.md](scale.md) says how each column is found and how far it can be trusted.
"""

COLUMNS = (
    "config",
    "chips",
    "fsdp",
    "images a chip",
    "memory",
    "TFLOP a chip",
    "of them needed",
    "time",
    "communication",
    "images/s a chip",
    "MFU",
    "collectives",
    "compiled in",
)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of all flags."""
    flags = console.parser("python -m launch.table", __doc__)
    add = flags.add_argument
    add("--config", default=CONFIGS, help=f"configs (default: {CONFIGS})")
    add("--topology", default=TOPOLOGIES, help=f"topologies (default: {TOPOLOGIES})")
    add("--what", default="train,sample", help="programs (default: train,sample)")
    add("--fsdp", type=int, help="rows with this fsdp (default: by the rule of the table)")
    add("--limit", type=float, default=1800, help="seconds for each (default: 1800)")
    add("--fresh", action="store_true", help="compile stored rows again, too")
    add("--render", action="store_true", help="compile nothing")
    add("--hlo", help="folder to keep the compiled programs in, as text")
    add("--output", type=Path, default=DOCS, help="folder of the table (default: docs)")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    options = parser().parse_args(argv)
    store = options.output / "scale_table.json"
    reports = json.loads(store.read_text()) if store.exists() else []
    wanted = [] if options.render else _wanted(options)
    for row in wanted:
        if any(_key(report) == row for report in reports) and not options.fresh:
            continue
        print(" ".join(map(str, row)), "...", flush=True)
        report = _compiled(*row, options)
        if report is not None:
            reports = [other for other in reports if _key(other) != row] + [report]
            store.write_text(json.dumps(reports, indent=1) + "\n")
    (options.output / "scale_table.md").write_text(render(reports))
    print(f"wrote {options.output / 'scale_table.md'}, {len(reports)} rows")


Row = tuple[str, str, str, int]
"""Config, topology, program and fsdp."""


def _key(report: dict[str, Any]) -> Row:
    return report["config"], report["topology"], report["what"], report["mesh"]["fsdp"]


def _wanted(options: argparse.Namespace) -> list[Row]:
    return [
        (name, place, kind, options.fsdp or _fsdp(name, place, kind))
        for name in options.config.split(",")
        for place in options.topology.split(",")
        for kind in options.what.split(",")
    ]


def _compiled(
    name: str, place: str, kind: str, fsdp: int, options: argparse.Namespace
) -> dict[str, Any] | None:
    """Returns the report of one row, or None if compiling failed or took too long."""
    from launch.chips import parse_topology

    topology = parse_topology(place)
    batch = TRAINING_BATCH if kind == "train" else IMAGES_A_CHIP * topology.chips
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "launch.compile", f"--config={name}"),
                *(f"--topology={place}", f"--what={kind}", f"--batch={batch}"),
                *("--config.mesh.data=-1", f"--config.mesh.fsdp={fsdp}"),
                *(f"--limit={options.limit}", f"--json={file}"),
                *([f"--hlo={options.hlo}"] if options.hlo else []),
            ]
        )
        if done.returncode not in (0, NOT_FIT) or not file.exists():
            print(f"{name} {kind} {place}: no report, code {done.returncode}", flush=True)
            return None
        (report,) = json.loads(file.read_text())
    return report


def _fsdp(name: str, place: str, kind: str) -> int:
    environment()
    from jaxar import config as configs
    from launch import fitting, programs
    from launch.chips import parse_topology

    topology = parse_topology(place)
    config = configs.override(configs.load(name), ["mesh.data=-1"])
    sizes = programs.state_sizes(config, programs.topology_devices(topology), kind)
    return fitting.smallest_fsdp(topology.chips, topology.chip.usable, sizes)


def render(reports: Sequence[dict[str, Any]]) -> str:
    """Returns the table as Markdown."""
    lines = [HEADER]
    titles = {"train": "Training", "sample": "Sampling"}
    for kind, heading in titles.items():
        chosen = [report for report in reports if report["what"] == kind]
        if not chosen:
            continue
        lines += [
            f"\n## {heading}\n",
            f"| {' | '.join(COLUMNS)} |",
            "|" + "---|" * len(COLUMNS),
            *(_row(report) for report in sorted(chosen, key=_key)),
        ]
    versions = sorted({tuple(report["versions"].items()) for report in reports})
    named = "; ".join(", ".join(f"{k} {v}" for k, v in pairs) for pairs in versions)
    return "\n".join([*lines, f"\nCompiled with {named}.\n"])


def _row(report: dict[str, Any]) -> str:
    from launch.report import duration  # JAX comes with it, after `environment`

    share = f"{report['needed'] / report['usable']:.0%}" if report["needed"] else "too much"
    cells = [
        report["config"],
        report["topology"],
        str(report["mesh"]["fsdp"]),
        f"{report['batch'] / report['used']:g}",
    ]
    if not report["fits"]:
        cells += [f"does not fit: {share}", *["-"] * 7, _seconds(report)]
        return f"| {' | '.join(cells)} |"
    rate = report["batch"] / report["used"] / report["seconds"]
    talk = "; ".join(
        f"{row['count']} {row['kind']} over {row['axes']}, {row['bytes'] / 1e6:.0f} MB"
        for row in report["collectives"]
    )
    cells += [
        share,
        f"{report['done'] / 1e12:.3g}",
        f"{report['operations'] / 1e12:.3g}",
        duration(report["seconds"]),
        duration(report["communication"]),
        f"{rate:.3g}",
        f"{report['mfu']:.0%}",
        talk or "none",
        _seconds(report),
    ]
    return f"| {' | '.join(cells)} |"


def _seconds(report: dict[str, Any]) -> str:
    return f"{report['compile_seconds']:.0f} s"


if __name__ == "__main__":
    main()
