"""The loop around the step: data in, state forward, checkpoints and pictures out."""

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxar import checkpoint, sharding, tree
from jaxar.config import ConfigError
from jaxar.console import say
from jaxar.data import loader
from jaxar.keys import key_for
from jaxar.system import Trainable
from jaxar.training.optim import make_optimizer
from jaxar.training.progress import Progress
from jaxar.training.state import TrainState, init_state
from jaxar.training.step import compile_step, make_step
from jaxar.typing import Params

INTERRUPTED = 42
"""Exit code of a run that was told to stop, saved its state and can be started again."""

PATIENCE = 20
"""So many skipped updates in a row, seen at a log interval, end a run."""

AHEAD = 8
"""Steps that may wait for the device; more would only hold batches in memory."""


class DivergedError(RuntimeError):
    """One update after another was not finite."""


def fit(
    system: Trainable,
    source: Any,
    config: Any,
    workdir: Path,
    mesh: Mesh,
    preview: Callable[[Params, Params, int], None],
) -> TrainState:
    """Returns the state after `config.steps` steps, beginning at the newest checkpoint.

    Args:
      system: What is trained.
      source: Training data, see `jaxar.data.source`.
      config: The whole config.
      workdir: Directory for checkpoints and metrics.
      mesh: Devices.
      preview: preview(params, ema, step) draws a picture; called every `config.sample.every`
        steps.

    Raises:
      ConfigError: the checkpoint in `workdir` is of another model or of other data.
      DivergedError: `PATIENCE` updates in a row were not finite.
      SystemExit: with code 42 after SIGTERM or SIGINT, when the state is saved.
    """
    optimizer = make_optimizer(config.optimizer, steps=config.steps, batch_size=config.batch_size)
    checkpoints = checkpoint.Checkpoints(
        workdir, keep=config.checkpoint.keep, keep_every=config.checkpoint.keep_every
    )
    record = {"data": loader.fingerprint(source)}
    state, start = _begin(system, optimizer, config.seed, checkpoints, record, mesh)
    if start >= config.steps:
        say("train", f"already at step {start:,} of {config.steps:,}")
        checkpoints.close()
        return state

    batches = loader.batches(
        source,
        batch_size=config.batch_size,
        seed=config.seed,
        start=start,
        workers=config.workers,
    )
    waiting = _Waiting(map(_placer(mesh), batches))
    batch = next(waiting)
    began = time.monotonic()
    step = make_step(system, optimizer, ema=config.ema, seed=config.seed)
    compiled = compile_step(step, state, batch, mesh)
    say("compile", f"training step in {time.monotonic() - began:.1f} s")

    progress = Progress(workdir, start=start, steps=config.steps)
    pending: list[dict[str, Any]] = []
    skips = _Skips(int(state.skipped))
    with _Interruption() as interruption:
        waiting.take()
        clock = time.monotonic()
        for now in range(start + 1, config.steps + 1):
            state, metrics = compiled(state, batch)
            pending.append(metrics)
            if len(pending) > AHEAD:
                pending[-AHEAD]["loss"].block_until_ready()
            last = now == config.steps
            if now % config.log_every == 0 or last:
                values = jax.device_get(pending)
                seconds = time.monotonic() - clock
                progress.update(_summary(now, values, seconds, config.batch_size, waiting.take()))
                skips.count(len(values), int(values[-1]["skipped"]), now)
                pending, clock = [], time.monotonic()
            if now % config.checkpoint.every == 0 or last or interruption.asked:
                checkpoints.save(now, state, record)
            if interruption.asked and not last:
                checkpoints.wait()
                progress.interrupt()
                say("stopped", f"step {now:,} is saved; the same command goes on from here")
                raise SystemExit(INTERRUPTED)
            if config.sample.every and now % config.sample.every == 0 and not last:
                progress.interrupt()
                preview(state.params, state.ema, now)
                clock = time.monotonic()
            if not last:
                batch = next(waiting)
    checkpoints.close()
    return state


def _begin(system, optimizer, seed, checkpoints, record, mesh) -> tuple[TrainState, int]:
    """Returns the newest state there is, or the initial one, and its step.

    Converted weights are the newest state until the first checkpoint of their training: parameters
    and average begin there, all else as in a new run.
    """

    def init(key):
        return init_state(system, optimizer, key)

    shapes = jax.eval_shape(init, jax.random.key(0))
    places = sharding.shardings(shapes, mesh)
    say("model", f"{tree.count(shapes.params):,} parameters")
    latest = checkpoints.latest()
    stored = {} if latest is None else checkpoints.record(latest)
    if latest is None or "weights" in stored:
        state = jax.jit(init, out_shardings=places)(key_for("init", seed))
        if latest is None:
            return state, 0
        say("begin", f"with the weights of {stored['weights'].get('file', 'a file')}")
        wanted = checkpoint.placed(shapes.ema, places.ema)
        ema = checkpoints.restore(latest, wanted, part="ema")
        return state._replace(params=jax.tree.map(jnp.copy, ema), ema=ema), 0
    if stored != record:
        raise ConfigError(
            f"{checkpoints.folder} was trained on other data (fingerprint {stored['data']}, now "
            f"{record['data']}): use another --workdir, or the same data."
        )
    say("resume", f"from step {latest:,} in {checkpoints.folder.parent}")
    return checkpoints.restore(latest, checkpoint.placed(shapes, places)), latest


def _placer(mesh: Mesh) -> Callable[[dict[str, np.ndarray]], dict[str, jax.Array]]:
    """Returns the function that puts this process's part of a batch on its devices."""
    place = sharding.batch_sharding(mesh)
    return lambda batch: {
        name: jax.make_array_from_process_local_data(place, value) for name, value in batch.items()
    }


def _summary(step, values, seconds, batch_size, waited) -> dict[str, Any]:
    """Returns the record of an interval; what the system measures is averaged over its steps."""
    return {
        "step": step,
        **{name: _mean(v[name] for v in values) for name in values[0]},
        "gradient_norm": float(values[-1]["gradient_norm"]),
        "skipped": int(values[-1]["skipped"]),
        "images_per_s": round(len(values) * batch_size / max(seconds, 1e-9), 1),
        "data_wait": round(min(waited / max(seconds, 1e-9), 1), 4),
    }


def _mean(numbers: Iterable[Any]) -> float:
    """Returns the mean of those that are finite; NaN where none are."""
    finite = [float(number) for number in numbers if np.isfinite(number)]
    return float(np.mean(finite)) if finite else float("nan")


class _Skips:
    """Counts skipped updates in a row, over log intervals."""

    def __init__(self, total: int):
        self._total, self._in_a_row = total, 0

    def count(self, updates: int, total: int, step: int) -> None:
        """Takes an interval of `updates` after which `total` are skipped.

        Raises:
          DivergedError: `PATIENCE` or more in a row.
        """
        skipped, self._total = total - self._total, total
        self._in_a_row = self._in_a_row + updates if skipped == updates else 0
        if self._in_a_row >= PATIENCE:
            raise DivergedError(
                f"The last {self._in_a_row} updates up to step {step} were not finite and were "
                "skipped: look at the data, or begin anew in another --workdir with a lower "
                "config.optimizer.base_learning_rate or config.model.dtype=float32."
            )


class _Waiting:
    """An iterator that counts the seconds its reader waits."""

    def __init__(self, items: Iterator[Any]):
        self._items, self._seconds = items, 0.0

    def __next__(self) -> Any:
        began = time.monotonic()
        item = next(self._items)
        self._seconds += time.monotonic() - began
        return item

    def take(self) -> float:
        """Returns the seconds waited since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class _Interruption:
    """Turns the first SIGTERM or SIGINT into a request; a second one acts at once."""

    def __init__(self):
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self):
        def ask(number, frame):
            self.asked = True
            signal.signal(number, self._before[number] or signal.SIG_DFL)

        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._before[number] = signal.signal(number, ask)
            except ValueError:  # not the main thread: a notebook's worker, a test
                break
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)
