"""Workers: processes that are asked by a line of JSON, answer by one, and are stopped in between.

A process of its own has its own peak of memory, and the frameworks do not share threads. Only the
standard library is used: the worker of the official code has no other.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_TAIL = 2_000
_PR_SET_PDEATHSIG = 1


class BenchmarkError(ValueError):
    """Something asked for that cannot work: one sentence on what, and what to do."""


class Worker:
    """A worker, as the process that asks sees it; use it in a `with` block.

    After each answer all its threads are stopped (SIGSTOP) until the next request, so that threads
    that spin while they wait take nothing from the worker that computes. It has a process group of
    its own: signals reach its children too, and a Ctrl-C reaches this process alone, which kills
    it. See `serve` for what happens to a stopped worker when this process is killed.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]):
        """Starts the process.

        Args:
          name: What to call it in errors.
          command: Its command line.
          environment: Variables set beside those of this process.

        Raises:
          BenchmarkError: there is no such program.
        """
        self._name, self._log = name, tempfile.TemporaryFile("w+")  # noqa: SIM115 -- see __exit__
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                env={**os.environ, "PYTHONPATH": path, **environment},
                process_group=0,
            )
        except OSError as error:
            raise BenchmarkError(f"{name} does not start: {error}.") from error

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: Any) -> None:
        self._signal(signal.SIGKILL)
        self._process.communicate()
        self._log.close()

    @property
    def pid(self) -> int:
        """The process id, which is that of its group too."""
        return self._process.pid

    def ask(self, request: str, /, **arguments: Any) -> dict[str, Any]:
        """Returns the answer to a request; the worker runs for as long as that takes.

        Raises:
          BenchmarkError: the worker cannot do it, or has ended; says what it printed last.
        """
        sent, received = self._process.stdin, self._process.stdout
        assert sent and received
        self._signal(signal.SIGCONT)
        try:
            sent.write(json.dumps({"ask": request, **arguments}) + "\n")
            sent.flush()
            line = received.readline()
        except BrokenPipeError:
            line = ""
        if line:
            self._stop()
        answer = json.loads(line) if line else {"error": self._last_words()}
        if "error" in answer:
            raise BenchmarkError(f"{self._name} cannot {request}: {answer['error']}")
        return answer

    def _stop(self) -> None:
        """Stops the worker; returns when its last thread has stopped."""
        self._signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def _signal(self, number: signal.Signals) -> None:
        # A group that has ended is gone, or holds nothing but a process not yet waited for.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _last_words(self) -> str:
        self._process.wait()
        self._log.seek(0)
        return f"it ended with code {self._process.returncode}: {self._log.read()[-_TAIL:].strip()}"


def serve(requests: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """Answers the requests of standard input until it ends.

    What a request prints goes to standard error. Beside its own answers, every worker knows
    `memory` and `processor`: the processor seconds of its whole life, and of all threads between an
    answer and the next request. The process ends with the one that started it: running, at the end
    of standard input; stopped, by a signal that the kernel sends.
    """
    _end_with_parent()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    spent = {"whole": 0.0, "waiting": 0.0}
    known = {**requests, "memory": memory, "processor": lambda: spent}
    answered = time.process_time()
    for line in sys.stdin:
        spent["whole"] = time.process_time()
        spent["waiting"] += spent["whole"] - answered
        arguments = json.loads(line)
        try:
            answer = known[arguments.pop("ask")](**arguments)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
        answered = time.process_time()


def _end_with_parent() -> None:
    """Has Linux kill this process when its parent ends: a stopped one reads no end of its input.

    Elsewhere the parent's end leaves an orphaned process group, whose stopped members POSIX
    continues with SIGHUP, which ends them.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))


def memory(again: bool = False) -> dict[str, Any]:
    """Returns peaks of this process's memory in bytes: `whole` of its life, `since` the last reset.

    `since` is None where the system keeps no such peak.

    Args:
      again: Whether to begin a new peak after this.
    """
    peaks = {
        "whole": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "since": _high_water(),
    }
    if again and peaks["since"] is not None:
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            peaks["since"] = None
    return peaks


def _high_water() -> int | None:
    """Returns the peak that Linux keeps and `clear_refs` resets."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)
