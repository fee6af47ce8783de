"""The history of a run: printed as the run goes on, stored in `metrics.jsonl`."""

import json
from pathlib import Path
from typing import Any

from jaxar.console import Bar
from jaxar.files import replace_text

METRICS = "metrics.jsonl"


class Progress:
    """Prints the progress of a loop and stores its history in `metrics.jsonl`."""

    def __init__(self, workdir: Path, *, start: int, steps: int, writes: bool = True):
        """Reads the history up to step `start`, so that a resumed run has one history.

        Args:
          workdir: Directory of the run.
          start: Step at which the loop begins.
          steps: Step at which it ends.
          writes: Whether this process writes the file; one process of a job does.
        """
        self.steps, self._writes = steps, writes
        self.path = workdir / METRICS
        self.history = [r for r in read_history(workdir) if r["step"] <= start]
        if writes:
            replace_text(self.path, "".join(json.dumps(r) + "\n" for r in self.history))
        self._bar = Bar("train", steps, start=start)

    def update(self, record: dict[str, Any]) -> None:
        """Shows and stores the record of one interval; it has "step", "loss", "images_per_s"."""
        self.history.append(record)
        if self._writes:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        text = (
            f"step {record['step']:,}/{self.steps:,}  loss {record['loss']:.4f}  "
            f"{record['images_per_s']:,.0f} images/s  data wait {record['data_wait']:.1%}  "
            f"eta {self._bar.left(record['step'])}"
        )
        if record["skipped"]:
            text += f"  ({record['skipped']:,} updates skipped: not finite)"
        self._bar.show(record["step"], text)

    def interrupt(self) -> None:
        """Ends the line of the bar, so that something else can be printed."""
        self._bar.interrupt()


def read_history(workdir: Path) -> list[dict[str, Any]]:
    """Returns the records of `metrics.jsonl`; a line cut off by a kill is skipped."""
    path = workdir / METRICS
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records
