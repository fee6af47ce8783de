"""Batches as a pure function of the training step, so that resuming needs no stored state.

Row r of the batch of step s has, with b rows in a batch, the position

    s b + r.                                                                              (1)

The record at a position is that of the shuffled order of its epoch, and everything random about it
is drawn from a generator seeded by (seed, position). A process reads the rows that its devices
hold. The same batches come out whatever the number of workers, threads and processes, and whatever
the step at which reading starts.

A record that cannot be read is replaced by the next one that can, by number. It is named once,
counted, and too many of them end the run.
"""

import atexit
import contextlib
import dataclasses
import functools
import hashlib
import logging
import sys
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxar.data.source import BadRecord, Source

_THREADS = 4  # of a process; each reads a batch of its own, ahead of the consumer
_RUN = 100  # bad records in a row that end the run at once

Batch = dict[str, Any]
"""{"data": tree, "condition": tree}: the records of a source, stacked array by array."""


class DataError(RuntimeError):
    """Too many records cannot be read; the text names the last one and the counts."""


def batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    workers: int = 0,
    rows: Sequence[int] | np.ndarray | None = None,
    max_bad_fraction: float = 0.001,
) -> Iterator[Batch]:
    """Returns the endless batches of the steps start, start + 1, ...

    Every record comes once per epoch, in another order each time; a batch may span two epochs.

    Args:
      source: Where the records come from.
      batch_size: Examples in a step, over all processes.
      seed: Of the order and of the random transforms, 0 or more.
      start: Step of the first batch.
      workers: Processes that read; 0 reads in threads of this one. With workers a script needs the
        `if __name__ == "__main__"` guard, as they start by importing it.
      rows: Rows of each batch that are wanted here, each in [0, batch_size); all by default.
      max_bad_fraction: Part of the records that may be unreadable.

    Raises:
      ValueError: no records, or arguments that do not fit each other.
      DataError: too many records cannot be read; raised by the iterator.
    """
    if not len(source):
        raise ValueError("The data set has no records.")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} has to be at least 1.")
    wanted = tuple(range(batch_size)) if rows is None else tuple(int(row) for row in rows)
    if not wanted or min(wanted) < 0 or max(wanted) >= batch_size:
        raise ValueError(f"rows={wanted} have to be some in 0 to {batch_size - 1}.")
    if seed < 0 or start < 0 or workers < 0:
        raise ValueError(f"seed={seed}, start={start} and workers={workers} cannot be negative.")
    order = _Shuffled(len(source), seed)
    reader = _Reader(source=source, seed=seed, stride=batch_size, rows=wanted, order=order)
    return _iterate(reader, range(start, sys.maxsize), workers, max_bad_fraction)


def epoch(
    source: Source, *, batch_size: int, seed: int = 0, max_bad_fraction: float = 0.001
) -> Iterator[Batch]:
    """Returns all records once, in their own order, in batches of which the last may be short.

    Args:
      source: Where the records come from.
      batch_size: Examples in a batch.
      seed: Of the random transforms.
      max_bad_fraction: Part of the records that may be unreadable.

    Raises:
      ValueError: no records, or a batch size below 1.
      DataError: too many records cannot be read; raised by the iterator.
    """
    if not len(source) or batch_size < 1:
        raise ValueError(f"{len(source)} records cannot be read in batches of {batch_size}.")
    rows = tuple(range(batch_size))
    reader = _Reader(source=source, seed=seed, stride=batch_size, rows=rows)
    return _iterate(reader, range(-(-len(source) // batch_size)), 0, max_bad_fraction)


def whole(source: Source, *, batch_size: int = 256, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns (data (n, h, w, c), labels (n,)) of all records in order; for small data."""
    parts = list(epoch(source, batch_size=batch_size, seed=seed))
    data, labels = ([part[key] for part in parts] for key in ("data", "condition"))
    return np.concatenate(data), np.concatenate(labels)


def fingerprint(source: Source) -> str:
    """Returns 16 hexadecimal digits that differ for other lengths, shapes, classes or labels.

    Kept in checkpoints, to notice on resuming that the data has changed.
    """
    labels = source.labels()
    facts = repr((len(source), tuple(source.shape), source.num_classes)).encode()
    content = b"" if labels is None else np.asarray(labels, "<i4").tobytes()
    return hashlib.sha256(facts + content).hexdigest()[:16]


def _stacked(records: Sequence[Any]) -> Any:
    """Returns records of one form, nested dicts of arrays, with their arrays stacked."""
    first = records[0]
    if isinstance(first, dict):
        return {key: _stacked([record[key] for record in records]) for key in first}
    return np.stack(records)


def _copied(batch: Any) -> Any:
    """Returns a batch whose arrays own their memory."""
    if isinstance(batch, dict):
        return {key: _copied(value) for key, value in batch.items()}
    return np.array(batch)


def _examples(batch: Any) -> int:
    """Returns the number of examples in a batch."""
    while isinstance(batch, dict):
        batch = next(iter(batch.values()))
    return len(batch)


@dataclasses.dataclass(frozen=True)
class _Shuffled:
    """The record number at each position of an endless sequence of shuffled epochs.

    The permutations take 8 bytes a record, two of them at a time. grain's own shuffle takes none,
    but 9 ms for each of ten records, and epoch e of seed s is there epoch e - 1 of seed s + 1.
    """

    length: int
    seed: int

    def __call__(self, position: int) -> int:
        number, place = divmod(position, self.length)
        return int(_permutation(self.length, self.seed, number)[place])


@functools.lru_cache(maxsize=2)  # a batch may span two epochs
def _permutation(length: int, seed: int, number: int) -> np.ndarray:
    stream = 1  # apart from the generators of the examples, seeded by (seed, position)
    return np.random.default_rng((seed, number, stream)).permutation(length)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Reader:
    """Reads the batch of a step: equation (1)."""

    source: Source
    seed: int
    stride: int
    rows: tuple[int, ...]
    order: _Shuffled | None = None

    def __call__(self, step: int) -> tuple[Batch | None, list[tuple[int, str]]]:
        """Returns (batch, bad): None in place of a batch that cannot be filled, and who is bad."""
        positions = [step * self.stride + row for row in self.rows]
        if self.order is None:
            positions = [position for position in positions if position < len(self.source)]
        examples, bad = [], []
        for position in positions:
            record = self.order(position) if self.order else position
            example = self._example(record, position, bad)
            if example is None:
                return None, bad
            examples.append(example)
        return _stacked(examples), bad

    def _example(self, record: int, position: int, bad: list) -> dict[str, Any] | None:
        """Returns the example of the first good record from `record` on; adds to `bad`."""
        length = len(self.source)
        for attempt in range(min(length, _RUN)):
            number = (record + attempt) % length
            try:
                return self.source.read(number, np.random.default_rng((self.seed, position)))
            except BadRecord as error:
                bad.append((number, str(error)))
        return None


def _iterate(reader: _Reader, steps: range, workers: int, limit: float) -> Iterator[Batch]:
    """Returns the batches of the steps, read ahead by threads or by worker processes."""
    import grain

    dataset = grain.MapDataset.range(steps.start, steps.stop).map(reader)
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_THREADS)
    if workers:
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    dataset = dataset.to_iter_dataset(options)
    if workers:
        _parse_flags()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    watched = _watch(iter(dataset), _Tally(len(reader.source), limit), shared=workers > 0)
    _OPEN.add(watched)
    return watched


def _watch(iterator: Any, tally: "_Tally", shared: bool) -> Iterator[Batch]:
    """Yields the batches; copies those in shared memory, which goes away with the array object."""
    try:
        for batch, bad in iterator:
            batch = tally.add(batch, bad)
            yield _copied(batch) if shared else batch
    finally:
        iterator.close()


_OPEN: weakref.WeakSet = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Ends readers that are still in use at exit, while the modules they need are there."""
    for watched in list(_OPEN):
        with contextlib.suppress(ValueError):  # another thread is waiting in it
            watched.close()


def _parse_flags() -> None:
    """Marks absl's flags as parsed where nobody did, as in notebooks: grain's workers read them."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


class _Tally:
    """Counts records and those that are bad, names each of these once, stops above the limit."""

    def __init__(self, length: int, limit: float):
        self._limit = limit
        self._enough = min(length, 1 / limit if limit > 0 else 0)
        self._read = 0
        self._bad = 0
        self._last = ""
        self._named: set[int] = set()

    def add(self, batch: Batch | None, bad: list[tuple[int, str]]) -> Batch:
        """Returns the batch; counts it and who is bad; DataError for None or above the limit."""
        self._bad += len(bad)
        self._read += len(bad) + (_examples(batch) if batch else 0)
        for number, reason in bad:
            self._last = reason
            if number not in self._named:
                self._named.add(number)
                logging.getLogger("jaxar").warning(
                    "Record %d cannot be read and is replaced by the next: %s", number, reason
                )
        too_many = self._bad > self._limit * self._read and self._read >= self._enough
        if batch is None or (self._bad and too_many):
            allowed = f"more than the limit of {self._limit:.2%}"
            why = allowed if batch else "and no record in a whole run was good"
            raise DataError(
                f"{self._bad} of {self._read} reads failed, {why}: the last is {self._last}"
            )
        return batch
