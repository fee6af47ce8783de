"""Threaded reading in order, one batch ahead of the consumer."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_THREADS = 4


def batches_ahead(
    read: Callable[[Any], Any], items: Sequence[Any], size: int
) -> Iterator[list[Any]]:
    """Yields [read(item), ...] for each `size` items; the last list may be shorter.

    At most two lists are held: the one in use, and the next, which is being read.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        ahead: deque[list[Any]] = deque()
        for start in range(0, len(items), size):
            ahead.append([pool.submit(read, item) for item in items[start : start + size]])
            if len(ahead) > 1:
                yield [future.result() for future in ahead.popleft()]
        for futures in ahead:
            yield [future.result() for future in futures]
