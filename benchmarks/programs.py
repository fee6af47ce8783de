"""The programs of a config with arguments in place: a training step and the sampling of a batch.

They are those of `jaxar.training.step` and `jaxar.runs.model`, on all devices of the config's mesh,
with initial parameters and random data made in memory. Sampling ends with latents where the system
models those of an autoencoder: the decoder is not part of it.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.pipe import BenchmarkError
from jaxar import assembly
from jaxar import config as configs
from jaxar.core.random import key_for
from jaxar.parallel import sharding
from jaxar.runs import setup
from jaxar.runs.abilities import can
from jaxar.runs.model import sampler
from jaxar.training.memory import state_shardings
from jaxar.training.step import compile_step, training_of
from launch.programs import count_operations, frozen_zeros


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program, ready to run again and again.

    Attributes:
      what: "train" or "sample".
      batch: Images in one run, on all devices.
      devices: Of the mesh.
      dispatch: dispatch(count) starts `count` runs, each with what the one before it left, and
        returns what can be waited for.
      operations: Of the matrix products and convolutions of the traced program, in one run.
      compiled: The compiler's result.
      seconds: Of tracing and compiling.
    """

    what: str
    batch: int
    devices: tuple[Any, ...]
    dispatch: Callable[[int], Any]
    operations: float
    compiled: Any
    seconds: float

    def run(self, count: int) -> None:
        """Runs the program `count` times and waits for the last."""
        jax.block_until_ready(self.dispatch(count))


def load(name: str, fields: Sequence[str], batch: int | None) -> Any:
    """Returns a config with fields set and, if one is given, the batch size."""
    more = [] if batch is None else [f"batch_size={batch}"]
    return configs.override(configs.load(name), [*fields, *more])


def make(config: Any, what: str) -> Program:
    """Returns a program of a config, for its batch size.

    Raises:
      ConfigError: a setting cannot work on these devices.
      BenchmarkError: the system does not sample.
    """
    return {"train": training_step, "sample": sampling}[what](config)


def training_step(config: Any) -> Program:
    """Returns the training step; the state goes from one run to the next, its memory reused."""
    ready = setup.prepare(config, training=True)
    system, mesh, frozen = ready.system, ready.mesh, frozen_zeros(ready)
    training = training_of(config, system)
    shapes = jax.eval_shape(training.init, jax.random.key(0))
    places = state_shardings(shapes, mesh, training.memory)
    state = jax.jit(training.init, out_shardings=places)(key_for("init", config.seed))
    batch = sharding.spread(mesh, config.batch_size)(random_batch(config))
    began = time.perf_counter()
    compiled = compile_step(training.step, state, frozen, batch, mesh, training.memory)
    seconds = time.perf_counter() - began
    operations = count_operations(jax.make_jaxpr(training.step)(state, frozen, batch))
    kept = [state]
    del state

    def dispatch(count: int) -> Any:
        for _ in range(count):
            kept[0], metrics = compiled(kept[0], frozen, batch)
        return metrics

    return Program(
        "train",
        config.batch_size,
        tuple(mesh.devices.flat),
        dispatch,
        operations,
        compiled,
        seconds,
    )


def sampling(config: Any) -> Program:
    """Returns the sampler of one batch; every run draws the next images."""
    ready = setup.prepare(config)
    system, mesh, count = ready.system, ready.mesh, config.batch_size
    if not can(system, "sample"):
        raise BenchmarkError(f"{config.name} reconstructs its data: leave it to --what=train.")
    places = sharding.shardings(jax.eval_shape(system.init, jax.random.key(0)), mesh)
    params = jax.jit(system.init, out_shardings=places)(key_for("init", config.seed))
    place = sharding.batch_sharding(mesh)
    labels = np.arange(count, dtype=np.int32) % config.num_classes
    condition = jax.tree.map(lambda x: sharding.put(x, place), system.condition.read(labels))
    numbers = sharding.put(np.arange(count, dtype=np.uint32), place)
    run = sampler(system, None, assembly.build_settings(config))
    weight = float(config.sample.guidance)
    weights = (params, frozen_zeros(ready), {})
    arguments = (weights, 0, numbers, condition, weight, None)
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        compiled = run.lower(*arguments).compile()
    seconds = time.perf_counter() - began
    operations = count_operations(jax.make_jaxpr(run)(*arguments))
    seed = [0]

    def dispatch(count: int) -> Any:
        for _ in range(count):
            seed[0] += 1
            images = compiled(weights, seed[0], numbers, condition, weight, None)
        return images

    return Program(
        "sample", count, tuple(mesh.devices.flat), dispatch, operations, compiled, seconds
    )


def random_batch(config: Any) -> dict[str, np.ndarray]:
    """Returns a batch of uniform numbers in [-1, 1] of the config's shape, and labels."""
    rng = np.random.default_rng(config.seed)
    shape = (config.batch_size, *config.data_shape)
    data = rng.uniform(-1, 1, shape).astype(np.float32)
    return {"data": data, "condition": np.arange(len(data), dtype=np.int32) % config.num_classes}
