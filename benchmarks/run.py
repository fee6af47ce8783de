"""Measures the programs of configs on this machine: a table to read, and JSON to keep.

    python -m benchmarks.run --config=xar_b --batch=8

Exit codes: 0, all measured; 2, bad input.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine, table
from benchmarks.pipe import BenchmarkError
from jaxar import console

EXAMPLES = """\
examples:
  python -m benchmarks.run --config=xar_digits
      training and sampling of the demo, in a minute
  python -m benchmarks.run --config=xar_b --config=xar_l --batch=32 --what=train --json=h200.json
      two models, the training step alone
  python -m benchmarks.run --config=xar_b --batch=4 '--config.model.depth=(1,1)' \\
      --config.model.dtype=float32
      the width of xAR-B, on a small machine; any field of the config is a flag
  python -m benchmarks.run --config=xar_b --batch=64 --peer=../xAR --peer-python=../torch/bin/python
      beside the official code, in alternating rounds, each with its fastest threads
  python -m benchmarks.run --config=xar_b --batch=64 --topology=v5e:2x2
      nothing measured: what a TPU would need, by its compiler
  python -m benchmarks.run --config=xar_digits --what=scaling
      time against tokens, batch and steps
"""

KINDS = ("train", "sample", "input", "scaling")


def parser() -> argparse.ArgumentParser:
    """Returns the parser of all flags but those that override fields of the configs."""
    flags = console.parser(
        "python -m benchmarks.run",
        "Measure training steps and sampling: time, operations, memory, compile time.",
        EXAMPLES,
    )
    add = flags.add_argument
    add("--config", action="append", help="a file of configs/, or its bare name; any number")
    add("--what", default="train,sample", help="of train, sample, input, scaling, with commas")
    add("--batch", type=int, help="images of a step or sampling (default: the config's batch_size)")
    add("--rounds", type=int, default=5, help="measured rounds of each (default: 5)")
    add("--json", metavar="FILE", help="write the reports to a file, too")
    add("--profile", metavar="FOLDER", help="write a trace and the longest operations, too")
    add("--peer", metavar="FOLDER", help="compare with a checkout of OliverRensu/xAR")
    add("--peer-python", default=sys.executable, help="interpreter that has PyTorch")
    add("--compile", action="store_true", help="run the official code under torch.compile")
    add("--topology", help="estimate for TPUs that are not there, as launch.compile: v5e:2x2")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; exits with code 2 and one sentence where the input cannot work."""
    flags = parser()
    known, rest = flags.parse_known_args(argv)
    if known.topology:
        from launch.compile import environment

        environment()
    from jaxar.config import ConfigError
    from launch.chips import LaunchError

    try:
        reports = run(known, rest)
    except (BenchmarkError, ConfigError, LaunchError, OSError) as error:
        print(f"{flags.prog}: {error}", file=sys.stderr)
        raise SystemExit(console.BAD_INPUT) from error
    if known.json:
        Path(known.json).write_text(json.dumps(reports, indent=1) + "\n")


def run(flags: argparse.Namespace, rest: Sequence[str]) -> dict[str, Any]:
    """Returns the reports that the flags ask for, by section, and prints their tables."""
    from benchmarks.programs import load
    from jaxar.main import assignments

    kinds = _checked(flags)
    fields = assignments(rest)
    named = [(name, load(name, fields, flags.batch)) for name in flags.config]
    facts = machine.facts()
    print(machine.line(facts), flush=True)
    if flags.topology:
        sections = _estimated(flags, fields, kinds, named)
    elif flags.peer:
        sections = _compared(flags, fields, kinds, named)
    else:
        sections = _measured(flags, fields, kinds, named)
    return {"machine": facts, **sections}


def _checked(flags: argparse.Namespace) -> list[str]:
    """Returns the kinds asked for, after all checks that need no config."""
    kinds = flags.what.split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise BenchmarkError(f"--what has no {unknown[0]!r}: choose from {', '.join(KINDS)}.")
    if not flags.config:
        raise BenchmarkError("--config is missing: xar_digits, for instance.")
    for name in ("batch", "rounds"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise BenchmarkError(f"--{name} must be 1 or more, not {value}.")
    if flags.peer and flags.topology:
        raise BenchmarkError("--peer measures and --topology does not: give one of them.")
    if flags.compile and not flags.peer:
        raise BenchmarkError("--compile is of the official code: give --peer, too.")
    if flags.profile and (flags.peer or flags.topology):
        raise BenchmarkError("--profile goes with neither --peer nor --topology.")
    alone = [kind for kind in kinds if kind in ("input", "scaling")]
    if alone and (flags.peer or flags.topology):
        raise BenchmarkError(f"--what={alone[0]} goes with neither --peer nor --topology.")
    return kinds


Named = Sequence[tuple[str, Any]]
"""Configs by the name or file that they come from."""


def _estimated(
    flags: argparse.Namespace, fields: Sequence[str], kinds: Sequence[str], named: Named
) -> dict[str, Any]:
    from benchmarks.ahead import estimated
    from launch.chips import parse_topology

    topology = parse_topology(flags.topology)
    pairs = [(config, what) for _, config in named for what in kinds]
    reports = [estimated(config, what, fields=fields, topology=topology) for config, what in pairs]
    print(f"{topology.name}, estimated by its compiler\n\n{table.programs(reports)}")
    return {"estimated": reports}


def _compared(
    flags: argparse.Namespace, fields: Sequence[str], kinds: Sequence[str], named: Named
) -> dict[str, Any]:
    from benchmarks.peer import compare

    reports = []
    for name, config in named:
        for what in kinds:
            report = compare(
                config,
                what,
                name=name,
                fields=list(fields),
                checkout=Path(flags.peer),
                python=flags.peer_python,
                compiled=flags.compile,
                rounds=flags.rounds,
            )
            reports.append(report)
            print(f"compared {table.name(report)} {what}", flush=True)
    print(table.peers(reports))
    return {"peers": reports}


def _measured(
    flags: argparse.Namespace, fields: Sequence[str], kinds: Sequence[str], named: Named
) -> dict[str, Any]:
    from benchmarks import inputs, scaling

    found: dict[str, Any] = {}
    if programs := [kind for kind in kinds if kind in ("train", "sample")]:
        found = _programs(flags, fields, programs, named)
    if "input" in kinds:
        found["input"] = {c.name: inputs.data_wait(c, flags.rounds) for _, c in named}
        print(table.waits(found["input"]))
    if "scaling" in kinds:
        found["scaling"] = [row for _, c in named for row in scaling.growth(c, flags.rounds)]
        print(table.growth(found["scaling"]))
    return found


def _programs(
    flags: argparse.Namespace, fields: Sequence[str], kinds: Sequence[str], named: Named
) -> dict[str, Any]:
    from benchmarks import ceilings, host, rows

    rates = ceilings.measure(flags.rounds)
    folder = Path(flags.profile) if flags.profile else None
    reports = []
    for _, config in named:
        for what in kinds:
            report = rows.measured(
                config, what, fields=fields, rounds=flags.rounds, ceilings=rates, folder=folder
            )
            reports.append(report)
            print(f"measured {table.name(report)} {what}", flush=True)
    found = {"ceilings": vars(rates), "programs": reports, "host": host.overhead()}
    again = sum(report["compiled_again"] for report in reports)
    print(f"\n{table.ceilings(found['ceilings'])}\n\n{table.programs(reports)}\n")
    print(f"programs compiled after the first run: {again}")
    print(table.host(found["host"]))
    for report in reports:
        if "profile" in report:
            print(f"\n{table.name(report)} {report['what']}\n{report['profile']}")
    return found


if __name__ == "__main__":
    main()
