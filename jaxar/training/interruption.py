"""Stopping on request: SIGTERM and SIGINT set a flag that the loop reads."""

import os
import signal
from typing import Any

from jaxar.parallel import distributed


class Interruption:
    """Turns the first SIGTERM or SIGINT into a request to stop; a second one acts at once.

    With several processes, a request to one of them stops all at the same step; a second signal
    then changes nothing.
    """

    def __init__(self):
        self._asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        shared = distributed.many()
        # JAX's preemption service then handles SIGTERM, from the start of the process.
        numbers = (signal.SIGINT,) if shared else (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            try:
                self._before[number] = signal.signal(number, self._pass_on if shared else self._ask)
            except ValueError:  # not the main thread: a notebook's worker, a test
                break
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def asked(self, step: int) -> bool:
        """Returns whether to stop after this step. Call it after every step."""
        return distributed.asked_to_stop(step) if distributed.many() else self._asked

    def _ask(self, number: int, frame: Any) -> None:
        self._asked = True
        signal.signal(number, self._before[number] or signal.SIG_DFL)

    def _pass_on(self, number: int, frame: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
