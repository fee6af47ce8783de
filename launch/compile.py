"""Compiles a config's programs for TPUs ahead of time, and reports memory, time and communication.

    python -m launch.compile --config=configs/xar_h.py --topology=v5e:16x16 --config.mesh.fsdp=16

It runs on a CPU machine with the TPU compiler: pip install 'jaxar[aot]', in a separate environment.
Exit codes: 0, all programs fit; 1, a program does not fit or took too long; 2, bad input.
"""

import argparse
import json
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxar import console
from launch.schedule import arguments

NOT_FIT = 1
STACK = "--fibers_default_thread_stack_size=4194304"
"""Stack size of the compiler's threads, in bytes: the default overflows on the step of xAR-H."""

EXAMPLES = """\
examples:
  python -m launch.compile --config=xar_b --topology=v5e:16x16
      the training step, on 256 chips
  python -m launch.compile --config=xar_b --topology=v5e:16x16 --what=sample --batch=2048
      the sampler, 8 images a chip
  python -m launch.compile --config=xar_h --topology=v5p:4x4x8 --config.mesh.fsdp=8
      any field of the config is a flag
  python -m launch.compile --config=xar_b --config=xar_l --topology=v6e:16x16
      two configs side by side
  python -m launch.compile --config=xar_b --topology=v5e:4x4 --config.batch_size=128 \\
      --against='topology=v5e:16x16 batch_size=2048'
      one config with fields changed for the second column: what scaling costs
"""


def parser() -> argparse.ArgumentParser:
    """Returns the parser of all flags except those that override config fields."""
    flags = console.parser(
        "python -m launch.compile",
        "Compile for a TPU topology on a CPU machine: memory, time, communication.",
        EXAMPLES,
    )
    add = flags.add_argument
    add("--config", action="append", help="a file of configs/, or its bare name; once or twice")
    add("--topology", help="chips: v5e:16x16, v5p:4x4x8, or 2 x v5e:16x16 for two slices")
    add("--slices", type=int, default=1, help="slices of that topology (default: 1)")
    add("--what", default="train", help="train, sample, or train,sample (default: train)")
    add("--batch", type=int, help="images of a step or sampling (default: the config's, 8 a chip)")
    add("--against", help="fields changed for a second column: 'mesh.fsdp=16 topology=v5p:4x4x8'")
    add("--fix", action="store_true", help="compile what might fit instead, until something does")
    add("--json", metavar="FILE", help="write the reports to a file, too")
    add("--hlo", metavar="FOLDER", help="write the compiled programs as text, too")
    add("--limit", type=float, default=1800, help="seconds for everything (default: 1800)")
    return flags


def environment(version: str = "") -> None:
    """Sets the environment so that JAX and libtpu look for no TPU. Call it before importing JAX.

    By default libtpu loads in one process at a time, to protect the TPU; here there is no TPU.
    """
    os.environ.update(
        JAX_PLATFORMS="cpu",
        TPU_SKIP_MDS_QUERY="1",
        TPU_ACCELERATOR_TYPE=version or "v5litepod-4",
        TPU_WORKER_HOSTNAMES="localhost",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
        LIBTPU_INIT_ARGS=" ".join([os.environ.get("LIBTPU_INIT_ARGS", ""), STACK, arguments()]),
        TF_CPP_MIN_LOG_LEVEL=os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2"),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    flags = parser()
    known, rest = flags.parse_known_args(argv)
    environment()
    from jaxar.config import ConfigError
    from launch.chips import LaunchError

    try:
        with _Limit(known.limit):
            reports = run(known, rest)
    except (ConfigError, LaunchError, OSError) as error:
        print(f"{flags.prog}: {error}", file=sys.stderr)
        raise SystemExit(console.BAD_INPUT) from error
    if known.json:
        Path(known.json).write_text(json.dumps(reports, indent=1) + "\n")
    if not all(report["fits"] for report in reports):
        raise SystemExit(NOT_FIT)


def run(flags: argparse.Namespace, rest: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the requested reports; prints each when it is ready."""
    from jaxar.main import assignments
    from launch import report
    from launch.chips import LaunchError, parse_topology

    if not flags.config or len(flags.config) > 2:
        raise LaunchError("give --config once, or twice to compare.")
    if not flags.topology:
        raise LaunchError("--topology is missing: v5e:16x16, for instance.")
    if flags.against and len(flags.config) == 2:
        raise LaunchError("--against and a second --config exclude each other: give one of them.")
    kinds = flags.what.split(",")
    if unknown := [kind for kind in kinds if kind not in ("train", "sample")]:
        raise LaunchError(f"--what must be train, sample or train,sample, not {unknown[0]!r}.")
    if flags.batch is not None and flags.batch < 1:
        raise LaunchError(f"--batch must be 1 or more, not {flags.batch}.")
    fields = assignments(rest)
    columns = [(name, flags.topology, fields) for name in flags.config]
    if flags.against:
        changed = flags.against.split()
        places = [word.split("=", 1)[1] for word in changed if word.startswith("topology=")]
        more = [word for word in changed if not word.startswith("topology=")]
        columns.append((flags.config[0], (places or [flags.topology])[-1], [*fields, *more]))
    asked = [(name, parse_topology(place, flags.slices), words) for name, place, words in columns]
    found = []
    for kind in kinds:
        pair = []
        for name, topology, words in asked:
            pair.append(one(name, topology, words, kind, flags))
            if len(asked) == 1:
                _show(report.text(pair[-1]), pair[-1])
        if len(pair) == 2:
            _show(report.side_by_side(*pair), *pair)
        found += pair
    return found


def one(
    name: str, topology: Any, words: Sequence[str], kind: str, flags: argparse.Namespace
) -> dict[str, Any]:
    """Returns the report of one program; with --fix, that of the first change that fits."""
    from jaxar import config as configs
    from launch import fitting, programs

    if topology.slices > 1:
        words = [f"mesh.slices={topology.slices}", *words]
    config = configs.override(configs.load(name), words)
    devices = programs.topology_devices(topology)
    result = _compiled(config, words, topology, devices, kind, flags)
    if result["fits"]:
        return result
    states = programs.state_sizes(config, devices, kind)
    result["advice"] = fitting.advice(config, result, states)
    if not flags.fix:
        return result
    for fields, _ in fitting.candidates(config, result):
        guess = fitting.predicted(result, fields, states, config.memory.accumulate)
        if guess is not None and guess > result["usable"]:
            continue
        changed = configs.override(config, fields)
        attempt = _compiled(changed, [*words, *fields], topology, devices, kind, flags)
        if attempt["fits"]:
            return {**attempt, "advice": [f"it fits with {' '.join(fields)}"]}
    return result


def _compiled(
    config: Any,
    words: Sequence[str],
    topology: Any,
    devices: Any,
    kind: str,
    flags: argparse.Namespace,
) -> dict[str, Any]:
    from jaxar import config as configs
    from launch import programs, report

    if kind == "train":
        if flags.batch:
            config = configs.override(config, [f"batch_size={flags.batch}"])
        made = programs.train_step(config, devices)
    else:
        made = programs.whole_sampler(config, devices, flags.batch or 8 * len(devices))
    if flags.hlo and made.compiled:
        folder = Path(flags.hlo)
        folder.mkdir(parents=True, exist_ok=True)
        place = topology.name.replace(":", "-").replace(" ", "")
        (folder / f"{config.name}_{kind}_{place}.hlo").write_text(made.compiled.as_text())
    return report.make(config, kind, topology, made, words)


def _show(text: str, *reports: dict[str, Any]) -> None:
    print(text, flush=True)
    for report in reports:
        for line in report.get("advice", []):
            print(f"  {'to make it fit' if not report['fits'] else 'fitted':<15}{line}")
    print(flush=True)


class _Limit:
    """Ends the process with a message if a block takes too long; nothing else stops compiling."""

    def __init__(self, seconds: float | int):
        self._timer = threading.Timer(seconds, self._end, [seconds])
        self._timer.daemon = True

    def __enter__(self) -> "_Limit":
        self._timer.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._timer.cancel()

    @staticmethod
    def _end(seconds: float | int) -> None:
        print(
            f"python -m launch.compile: not done after {seconds:g} s: raise --limit, or change the "
            "setting that takes so long to compile (such as some kinds of rematerialisation).",
            file=sys.stderr,
            flush=True,
        )
        os._exit(NOT_FIT)


if __name__ == "__main__":
    main()
