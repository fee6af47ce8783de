"""What a person sees of a run: a bar on a terminal, a plain line an interval elsewhere."""

import json
import sys
import time
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"


def say(stage: str, text: str) -> None:
    """Prints one line for one stage: "data: 1,437 images ..."."""
    print(f"{stage + ':':<12}{text}", flush=True)


def duration(seconds: float) -> str:
    """Returns 1:02:03 or 2:03 for a time in seconds."""
    minutes, seconds = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Progress:
    """Prints the progress of a loop and keeps its history in `metrics.jsonl`."""

    def __init__(self, workdir: Path, *, start: int, steps: int):
        """Reads the history up to step `start`, so that a resumed run has one history."""
        self.start, self.steps = start, steps
        self.path = workdir / METRICS
        self.history = [r for r in read_history(workdir) if r["step"] <= start]
        replace_text(self.path, "".join(json.dumps(r) + "\n" for r in self.history))
        self._began = time.monotonic()
        self._bar = sys.stdout.isatty()

    def update(self, record: dict[str, Any]) -> None:
        """Shows and stores the record of one interval; it has "step", "loss", "images_per_s"."""
        self.history.append(record)
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        done, elapsed = record["step"] - self.start, time.monotonic() - self._began
        left = duration(elapsed / done * (self.steps - record["step"]))
        text = (
            f"step {record['step']:,}/{self.steps:,}  loss {record['loss']:.4f}  "
            f"{record['images_per_s']:,.0f} images/s  data wait {record['data_wait']:.1%}  "
            f"eta {left}"
        )
        if record["skipped"]:
            text += f"  ({record['skipped']:,} updates skipped: not finite)"
        if not self._bar:
            say("train", text)
            return
        filled = round(24 * record["step"] / self.steps)
        end = "\n" if record["step"] == self.steps else ""
        print(f"\r\x1b[2K|{'█' * filled}{'·' * (24 - filled)}| {text}", end=end, flush=True)

    def interrupt(self) -> None:
        """Ends the line of the bar, so that something else can be printed."""
        if self._bar:
            print(flush=True)


def replace_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all, whenever the process may be killed."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text)
    aside.replace(path)


def read_history(workdir: Path) -> list[dict[str, Any]]:
    """Returns the records of `metrics.jsonl`; a line cut short by a kill is left out."""
    path = workdir / METRICS
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records
