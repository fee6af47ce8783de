"""The loop around the step: data in, state forward, checkpoints and pictures out."""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxar import checkpoint, tree
from jaxar.config import ConfigError
from jaxar.console import say
from jaxar.core.random import key_for
from jaxar.core.task import Task
from jaxar.data import loader
from jaxar.parallel import distributed, sharding
from jaxar.training.interruption import Interruption
from jaxar.training.memory import averaged, kept_in, state_shardings
from jaxar.training.progress import Progress
from jaxar.training.state import TrainState
from jaxar.training.step import compile_step, training_of
from jaxar.typing import Params

PATIENCE = 20
"""So many skipped updates in a row, seen at a log interval, end a run."""

AHEAD = 8
"""Steps that may wait for the device; more would only hold batches in memory."""


class DivergedError(RuntimeError):
    """One update after another was not finite."""


def fit(
    system: Task,
    frozen: Mapping[str, Params],
    source: Any,
    config: Any,
    workdir: Path,
    mesh: Mesh,
    preview: Callable[[Params, Params, int], None],
) -> TrainState:
    """Returns the state after `config.steps` steps, beginning at the newest checkpoint.

    Args:
      system: What is trained.
      frozen: Parameters of its frozen networks, by name, on the devices.
      source: Training data, see `jaxar.data.source`.
      config: The whole config.
      workdir: Directory for checkpoints and metrics.
      mesh: Devices.
      preview: preview(params, ema, step) draws a picture; called every `config.sample.every`
        steps.

    Raises:
      ConfigError: the checkpoint in `workdir` is of another model or of other data.
      DivergedError: `PATIENCE` updates in a row were not finite.
      SystemExit: with code 42 after SIGTERM or SIGINT, when the state is saved; with several
        processes in all of them, at the same step.
    """
    training = training_of(config, system)
    checkpoints = checkpoint.Checkpoints(
        workdir, keep=config.checkpoint.keep, keep_every=config.checkpoint.keep_every
    )
    hashes = {name: tree.digest(params, distributed.gathered) for name, params in frozen.items()}
    record = {"data": loader.fingerprint(source), "frozen": hashes}
    state, start = _begin(training, config.seed, checkpoints, record, mesh)
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
        rows=sharding.rows_here(mesh, config.batch_size),
    )
    waiting = _Waiting(map(sharding.spread(mesh, config.batch_size), batches))
    batch = next(waiting)
    began = time.monotonic()
    compiled = compile_step(training.step, state, frozen, batch, mesh, training.memory)
    say("compile", f"training step in {time.monotonic() - began:.1f} s")

    writes = distributed.first()
    progress = Progress(workdir, start=start, steps=config.steps, writes=writes)
    pending: list[dict[str, Any]] = []
    skips = _Skips(int(state.skipped))
    with Interruption() as interruption, distributed.Watchdog("training") as watchdog:
        waiting.take()
        clock = time.monotonic()
        for now in range(start + 1, config.steps + 1):
            state, metrics = compiled(state, frozen, batch)
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
            watchdog.beat(f"step {now:,}")
            stop = interruption.asked(now)
            if now % config.checkpoint.every == 0 or last or stop:
                with watchdog.slow():
                    checkpoints.save(now, state, record)
                    if stop:
                        checkpoints.wait()
            if stop and not last:
                progress.interrupt()
                say("stopped", f"step {now:,} is saved; the same command goes on from here")
                raise SystemExit(distributed.INTERRUPTED)
            if config.sample.every and now % config.sample.every == 0 and not last:
                progress.interrupt()
                with watchdog.slow():
                    preview(state.params, averaged(state.ema, mesh), now)
                clock = time.monotonic()
            if not last:
                batch = next(waiting)
    checkpoints.close()
    return state


def _begin(training, seed, checkpoints, record, mesh) -> tuple[TrainState, int]:
    """Returns the newest state there is, or the initial one, and its step.

    Converted weights are the newest state until the first checkpoint of their training: parameters
    and average begin there, all else as in a new run.
    """
    shapes = jax.eval_shape(training.init, jax.random.key(0))
    places = state_shardings(shapes, mesh, training.memory)
    say("model", f"{tree.count(shapes.params):,} parameters")
    latest = checkpoints.latest()
    stored = {} if latest is None else checkpoints.record(latest)
    if latest is None or "weights" in stored:
        state = jax.jit(training.init, out_shardings=places)(key_for("init", seed))
        if latest is None:
            return state, 0
        say("begin", f"with the weights of {stored['weights'].get('file', 'a file')}")
        wanted = checkpoint.placed(shapes.params, places.params)
        params = checkpoints.restore(latest, wanted, part="ema")
        ema = kept_in(jax.tree.map(jnp.copy, params), training.memory.ema)
        return state._replace(params=params, ema=jax.device_put(ema, places.ema)), 0
    _require_same(checkpoints.folder, stored, record)
    say("resume", f"from step {latest:,} in {checkpoints.folder.parent}")
    return checkpoints.restore(latest, checkpoint.placed(shapes, places)), latest


def _require_same(folder: Path, stored: Any, record: Any) -> None:
    """Raises ConfigError where a run would go on with other data or another frozen network.

    Runs of the first format do not say which frozen networks they had.
    """
    if stored["data"] != record["data"]:
        raise ConfigError(
            f"{folder} was trained on other data (fingerprint {stored['data']}, now "
            f"{record['data']}): use another --workdir, or the same data."
        )
    for name, before in stored.get("frozen", {}).items():
        now = record["frozen"].get(name)
        if now != before:
            raise ConfigError(
                f"{folder} was trained with another {name} (SHA-256 {before}, now {now}): give the "
                "same weights, or another --workdir."
            )


def _summary(step, values, seconds, batch_size, waited) -> dict[str, Any]:
    """Returns the record of an interval from the metrics of its steps: means of each loss."""
    parts = [key for key in values[-1] if key not in ("loss", "gradient_norm", "skipped")]
    return {
        "step": step,
        **{key: _finite_mean([v[key] for v in values]) for key in ("loss", *parts)},
        "gradient_norm": float(values[-1]["gradient_norm"]),
        "skipped": int(values[-1]["skipped"]),
        "images_per_s": round(len(values) * batch_size / max(seconds, 1e-9), 1),
        "data_wait": round(min(waited / max(seconds, 1e-9), 1), 4),
    }


def _finite_mean(values: list[Any]) -> float:
    """Returns the mean of the finite ones of some numbers; not a number where there are none."""
    finite = [float(value) for value in values if np.isfinite(value)]
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
