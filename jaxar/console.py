"""Command-line interface: the flag parser, one line per stage, and a progress bar."""

import argparse
import sys
import time

_silent = False


BAD_INPUT = 2
"""Exit code for invalid input."""


def parser(program: str, about: str | None, examples: str | None = None) -> argparse.ArgumentParser:
    """Returns a parser without flags; its texts are printed unchanged.

    Args:
      program: Name of the program, "python -m jaxar.main".
      about: Description of the program.
      examples: Text at the end of --help.
    """
    return argparse.ArgumentParser(
        prog=program,
        description=about,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def silence() -> None:
    """Stops all printing by this process: another process of the job prints."""
    global _silent
    _silent = True


def say(stage: str, text: str) -> None:
    """Prints one line for a stage: "data: 1,437 images ..."."""
    if not _silent:
        print(f"{stage + ':':<12}{text}", flush=True)


def duration(seconds: float) -> str:
    """Returns 1:02:03 or 2:03 for a time in seconds."""
    minutes, seconds = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Bar:
    """Shows the progress of a loop: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, stage: str, total: int, *, start: int = 0, unit: str = "images"):
        """Starts the clock.

        Args:
          stage: Name of the stage in the lines.
          total: Count at the end of the loop.
          start: Count at its beginning; earlier items do not count for the speed.
          unit: Name of the counted items.
        """
        self.stage, self.total, self.start, self.unit = stage, total, start, unit
        self._began = self._spoken = time.monotonic()
        self._terminal = sys.stdout.isatty() and not _silent

    def left(self, done: int) -> str:
        """Returns the time left after `done` items, at the speed so far."""
        elapsed = time.monotonic() - self._began
        return duration(elapsed / max(done - self.start, 1) * (self.total - done))

    def show(self, done: int, text: str) -> None:
        """Shows a text: beside the bar on a terminal, elsewhere as a separate line."""
        if not self._terminal:
            say(self.stage, text)
            return
        filled = round(24 * done / self.total)
        end = "\n" if done >= self.total else ""
        print(f"\r\x1b[2K|{'█' * filled}{'·' * (24 - filled)}| {text}", end=end, flush=True)

    def count(self, done: int, *, every: float = 10.0) -> None:
        """Shows count, speed, time left; off a terminal, every `every` seconds and at the end."""
        now = time.monotonic()
        due = self._terminal or done >= self.total or now - self._spoken >= every
        if not due:
            return
        self._spoken = now
        speed = (done - self.start) / max(now - self._began, 1e-9)
        self.show(
            done,
            f"{done:,}/{self.total:,} {self.unit}  {speed:,.1f}/s  eta {self.left(done)}",
        )

    def interrupt(self) -> None:
        """Ends the line of the bar, so that something else can be printed."""
        if self._terminal:
            print(flush=True)
