"""Runs a program as several processes on this machine, like a cluster on several machines.

    python -m launch.local --processes=2 --devices=4 -- python -m jaxar.main --config=xar_digits
    python -m launch.local --processes=8 --gpus -- python -m jaxar.main --config=xar_b

Each process finds the others by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. When
one fails, the others have --grace seconds to end by themselves, and are then killed. SIGTERM and
SIGINT are passed on to all, so that they save. The exit code is that of the first failed process.
"""

import argparse
import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

from jaxar import console


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the flags before "--"."""
    flags = console.parser("python -m launch.local", __doc__)
    add = flags.add_argument
    add("--processes", type=int, default=2, help="number of processes (default: 2)")
    add("--devices", type=int, help="CPU devices per process (default: JAX's choice)")
    add("--gpus", action="store_true", help="give process i GPU i")
    add("--grace", type=float, default=30, help="seconds from a failure to killing (default: 30)")
    add("command", nargs="*", help="command to run, after --")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with the job's code."""
    flags = parser()
    options = flags.parse_args(argv)
    problem = ""
    if not options.command:
        problem = "nothing to run: give the command after --, as -- python -m jaxar.main ..."
    elif options.processes < 1 or (options.devices is not None and options.devices < 1):
        problem = "--processes and --devices must be 1 or more."
    elif options.devices and options.gpus:
        problem = "--devices are CPU devices: leave them out with --gpus."
    if problem:
        print(f"{flags.prog}: {problem}", file=sys.stderr)
        raise SystemExit(console.BAD_INPUT)
    job = Job(
        options.command,
        processes=options.processes,
        devices=options.devices,
        gpus=options.gpus,
    )
    raise SystemExit(job.wait(options.grace))


def environments(
    base: Mapping[str, str], *, processes: int, devices: int | None, gpus: bool, port: int
) -> list[dict[str, str]]:
    """Returns the environment of every process."""
    shared = {
        **base,
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(processes),
    }
    if devices:
        count = f"--xla_force_host_platform_device_count={devices}"
        shared |= {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{base.get('XLA_FLAGS', '')} {count}".strip(),
        }
    found = []
    for number in range(processes):
        own = {**shared, "JAX_PROCESS_ID": str(number), "PYTHONUNBUFFERED": "1"}
        if gpus:
            own["CUDA_VISIBLE_DEVICES"] = str(number)
        found.append(own)
    return found


class Job:
    """The processes of one command; prints their output line by line, with the process index."""

    def __init__(
        self, command: Sequence[str], *, processes: int, devices: int | None, gpus: bool = False
    ):
        """Starts the processes, each in its own group, so that its children end with it.

        From then on, SIGTERM and SIGINT to this process are passed on.

        Raises:
          SystemExit: the command cannot be started.
        """
        self._members: list[subprocess.Popen[str]] = []
        self._readers: list[threading.Thread] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.end(signal.SIGTERM))
        given = environments(
            os.environ, processes=processes, devices=devices, gpus=gpus, port=free_port()
        )
        for number, environment in enumerate(given):
            try:
                member = subprocess.Popen(
                    command,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    start_new_session=True,
                )
            except OSError as error:
                self.end(signal.SIGKILL)
                print(f"cannot run {shlex.join(command)}: {error}", file=sys.stderr)
                raise SystemExit(console.BAD_INPUT) from error
            self._members.append(member)
            reader = threading.Thread(target=_copy, args=(number, member.stdout), daemon=True)
            reader.start()
            self._readers.append(reader)

    def wait(self, grace: float) -> int:
        """Returns the code of the first failed process, 0 if none failed, when all have ended."""
        code, deadline = 0, float("inf")
        while None in (codes := [member.poll() for member in self._members]):
            failed = [i for i, found in enumerate(codes) if found]
            if failed and not code:
                code, deadline = _code(codes[failed[0]] or 0), time.monotonic() + grace
                print(f"[job] process {failed[0]} ended with code {code}", flush=True)
            if time.monotonic() > deadline:
                left = [i for i, found in enumerate(codes) if found is None]
                print(f"[job] processes {left} did not end within {grace:g} s: killed", flush=True)
                self.end(signal.SIGKILL)
                deadline = float("inf")
            time.sleep(0.05)
        for reader in self._readers:
            reader.join(timeout=5)
        return code or next((_code(m.returncode) for m in self._members if m.returncode), 0)

    def end(self, number: int) -> None:
        """Sends a signal to all remaining processes and their children."""
        for member in self._members:
            if member.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(member.pid, number)


def free_port() -> int:
    """Returns a free port of this machine."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _copy(number: int, lines: IO[str] | Any) -> None:
    for line in lines:
        print(f"[{number}] {line}", end="", flush=True)


def _code(code: int) -> int:
    """Returns the exit code as in a shell: 128 + the signal for a process ended by a signal."""
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    main()
