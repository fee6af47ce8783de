"""A program of jaxar at work in a process of its own, for comparisons with the official code.

python -m benchmarks.worker
"""

import os
import time
from typing import Any

from benchmarks.pipe import serve


class Own:
    """One program of one config."""

    def prepare(
        self, *, what: str, config: str, fields: list[str], batch: int, threads: int, compiled: bool
    ) -> dict[str, Any]:
        """Compiles the program; `run` then takes steps, or draws batches.

        Args:
          what: "train" or "sample".
          config: A file of configs/, or its bare name.
          fields: Fields set, "model.width=128".
          batch: Images in a step or sampling.
          threads: Of the CPU.
          compiled: Not used: this program always is.
        """
        os.environ["NPROC"] = str(threads)  # read by XLA when JAX makes its client
        from benchmarks import programs

        self._program = programs.make(programs.load(config, fields, batch), what)
        return {
            "seconds": self._program.seconds,
            "operations": self._program.operations,
            "device": self._program.devices[0].device_kind,
        }

    def run(self, *, count: int) -> dict[str, Any]:
        """Returns the seconds of `count` steps or batches, all work done."""
        began = time.perf_counter()
        self._program.run(count)
        return {"seconds": time.perf_counter() - began}

    def device_peak(self) -> dict[str, Any]:
        """Returns the peak of the device's memory in bytes, None on a CPU."""
        facts = self._program.devices[0].memory_stats() or {}
        return {"peak": facts.get("peak_bytes_in_use")}


def main() -> None:
    """Serves until standard input ends."""
    own = Own()
    serve({"prepare": own.prepare, "run": own.run, "device_peak": own.device_peak})


if __name__ == "__main__":
    main()
