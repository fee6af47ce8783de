"""Several processes: how they find each other, which one prints and writes, and how they end.

They use JAX's multi-controller runtime: every process runs the same program over its own devices.
There is one process unless flags or the environment say otherwise (`launch`).

Exit codes of a job:

    0     done
    2     bad input, named in one sentence
    42    stopped by SIGTERM or SIGINT, the state is saved; the same command resumes
    43    stalled: no step for too long, another process died or hangs; the same command resumes
    134   JAX ended the process because another one died (SIGABRT; its message says which)
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from jaxar import console
from jaxar.config import ConfigError

INTERRUPTED = 42
STALLED = 43

PATIENCE = 300.0
"""Seconds without a step after which one of several processes gives up."""

HEARTBEAT = 100
"""Seconds without a sign of life from a process after which JAX ends the others."""

SLOW = 10
"""Factor on the patience during slow work: a first step, a picture, a save."""

_COUNTS = ("JAX_NUM_PROCESSES", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
_NUMBERS = ("JAX_PROCESS_ID", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "JOB_COMPLETION_INDEX")

_patience = PATIENCE


class Launch(NamedTuple):
    """How a process finds the others; JAX determines the fields that are None.

    Attributes:
      how: Name of the mechanism, for messages.
      coordinator: "host:port" of process 0.
      processes: Number of processes.
      process: Index of this process.
      devices: Indices of the host's GPUs that belong to this process.
    """

    how: str
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    devices: tuple[int, ...] | None = None


def launch(
    environment: Mapping[str, str],
    *,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    tpu: bool = False,
) -> Launch | None:
    """Returns how this process joins others, or None if it is alone.

    The first one found is used: the flags or JAX_COORDINATOR_ADDRESS, with process count and index
    from flags, JAX_NUM_PROCESSES and JAX_PROCESS_ID, SLURM, Open MPI or a Kubernetes Job
    (JOB_COMPLETION_INDEX); a SLURM step of several tasks; Open MPI; a TPU host.

    Args:
      environment: Environment variables of the process.
      coordinator: "host:port" of process 0, from the flags.
      processes: Number of processes, from the flags.
      process: Index of this process, from the flags.
      tpu: Whether this is a TPU host.

    Raises:
      ConfigError: a coordinator is given without the number of processes, or the reverse.
    """
    coordinator = coordinator or environment.get("JAX_COORDINATOR_ADDRESS")
    if coordinator:
        processes = _number(processes, environment, _COUNTS)
        process = _number(process, environment, _NUMBERS)
        if processes is None or process is None or not 0 <= process < processes:
            raise ConfigError(
                f"With a coordinator, {coordinator}, a process needs the number of processes and "
                f"its own index, from 0 on, not {processes} and {process}: give --processes and "
                "--process_id, or JAX_NUM_PROCESSES and JAX_PROCESS_ID."
            )
        return Launch("coordinator", coordinator, processes, process, _local(environment))
    if processes is not None or process is not None:
        raise ConfigError(
            "--processes and --process_id need --coordinator=HOST:PORT, an address of process 0 "
            "that the others can reach."
        )
    if int(environment.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_NODELIST" in environment:
        return Launch("slurm", devices=_local(environment))
    if int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        if "OMPI_MCA_orte_hnp_uri" not in environment:
            raise ConfigError(
                "This Open MPI does not say where process 0 is: give --coordinator=HOST:PORT, an "
                "address of the first host with a free port."
            )
        return Launch("mpi")
    return Launch("tpu") if tpu else None


def start(
    *,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    patience: float = PATIENCE,
    stoppable: bool = False,
) -> None:
    """Joins the other processes, if there are any. Call it before anything uses a device.

    Args:
      coordinator: See `launch`.
      processes: See `launch`.
      process: See `launch`.
      patience: Seconds without a step after which this process gives up; also how long it waits
        for the others to join.
      stoppable: Whether SIGTERM is reported by `asked_to_stop` instead of ending the process.

    Raises:
      ConfigError: the flags are incomplete, or the others do not join.
    """
    global _patience
    _patience = patience
    found = launch(
        os.environ, coordinator=coordinator, processes=processes, process=process, tpu=_on_tpu()
    )
    if found is None:
        return
    jax.config.update("jax_enable_preemption_service", stoppable)
    try:
        jax.distributed.initialize(
            found.coordinator,
            found.processes,
            found.process,
            list(found.devices) if found.devices else None,
            initialization_timeout=int(patience),
            heartbeat_timeout_seconds=max(int(min(HEARTBEAT, patience)), 1),
            shutdown_timeout_seconds=int(patience),
            cluster_detection_method="deactivate" if found.coordinator else None,
        )
    except (ValueError, RuntimeError) as error:
        if found.how == "tpu" and "coordinator_address" in str(error):
            return  # a single TPU host that belongs to no pod
        raise ConfigError(
            f"The processes of this job did not find each other ({found.how}): {error}"
        ) from error
    faulthandler.enable()
    if not first():
        console.silence()


def many() -> bool:
    """Returns whether there are other processes."""
    return jax.process_count() > 1


def first() -> bool:
    """Returns whether this is process 0, which prints and writes what is written once."""
    return jax.process_index() == 0


def meet(place: str) -> None:
    """Waits until all processes have reached this point; `place` names it."""
    if many():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(place)


def told(value: np.ndarray) -> np.ndarray:
    """Returns the value of process 0; the values of all have the same shape."""
    if not many():
        return value
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(value))


def gathered(array: Any) -> np.ndarray:
    """Returns a whole array on the host, gathered from all processes; all must call it."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def asked_to_stop(step: int) -> bool:
    """Returns whether any process was sent SIGTERM, at the same step in all of them.

    All must call it after every step. It does not wait for a device: a process that gets the signal
    tells the others, and they agree on a step that none of them has reached.
    """
    from jax.experimental import multihost_utils

    return bool(multihost_utils.reached_preemption_sync_point(step))


def leave(code: int) -> NoReturn:
    """Ends this process at once: a normal exit waits for the others, which may never come."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Ends this process if the block raises, without waiting for the others.

    They notice when its heartbeat stops, or by their own error.
    """
    try:
        yield
    except SystemExit as error:
        if not many() or error.code in (None, 0, INTERRUPTED):
            raise
        leave(error.code if isinstance(error.code, int) else 1)
    except (ConfigError, OSError) as error:
        if not many():
            raise
        print(f"process {jax.process_index()}: {error}", file=sys.stderr)
        leave(2)
    except BaseException:
        if not many():
            raise
        traceback.print_exc()
        print(f"process {jax.process_index()} ends with the error above", file=sys.stderr)
        leave(1)


class Watchdog:
    """Ends one of several processes if it makes no progress for too long.

    JAX's heartbeat detects a process that dies, but not one that hangs on its data or its disk: the
    others would wait in their next collective for ever.
    """

    def __init__(self, what: str, *, seconds: float | None = None):
        """Watches `what`; `seconds` defaults to the patience of `start`, or off if alone."""
        self._what = what
        self._seconds = seconds if seconds is not None else (_patience if many() else 0)
        self._limit = self._seconds * SLOW
        self._last, self._moved = "the beginning", time.monotonic()
        self._over = threading.Event()

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()

    def beat(self, where: str) -> None:
        """Records that work has reached `where`."""
        self._last, self._moved, self._limit = where, time.monotonic(), self._seconds

    @contextlib.contextmanager
    def slow(self) -> Iterator[None]:
        """Extends the patience inside the block, and up to the next `beat`."""
        self._limit = self._seconds * SLOW
        yield
        self._moved = time.monotonic()

    def _watch(self) -> None:
        while not self._over.wait(min(self._seconds / 10, 1.0)):
            waited = time.monotonic() - self._moved
            if waited > self._limit:
                print(
                    f"\nstalled: {self._what} has not moved for {waited:.0f} s after {self._last} "
                    f"in process {jax.process_index()} of {jax.process_count()}: another process "
                    "died or hangs, or this one does. Start the job again: it resumes from its "
                    "newest checkpoint. The stacks of this process:",
                    file=sys.stderr,
                )
                faulthandler.dump_traceback(all_threads=True)
                leave(STALLED)


def _number(
    given: int | None, environment: Mapping[str, str], names: tuple[str, ...]
) -> int | None:
    """Returns the given value, or else that of the first variable that is set."""
    if given is not None:
        return given
    return next((int(environment[name]) for name in names if name in environment), None)


def _local(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    """Returns the indices of the GPUs of this task, or None to let JAX decide.

    JAX gives every SLURM task the one GPU of its local index, even with one task per host.
    """
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    if tasks.split("(")[0] == "1" and "SLURM_GPUS_ON_NODE" in environment:
        return tuple(range(int(environment["SLURM_GPUS_ON_NODE"])))
    for rank, size in (("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),):
        if int(environment.get(size, 1)) > 1:
            return (int(environment[rank]),)
    return None


def _on_tpu() -> bool:
    """Returns whether this host has TPUs that JAX will use."""
    from importlib.util import find_spec

    wanted = os.environ.get("JAX_PLATFORMS", "tpu")
    there = any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    return "tpu" in wanted and there and find_spec("libtpu") is not None
