"""One training step: loss, gradients, parameter update and moving average."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from jaxar.core.random import key_for
from jaxar.core.task import Task
from jaxar.parallel import axes
from jaxar.parallel.sharding import batch_sharding, replicated, shardings
from jaxar.training.memory import PLAIN, Memory, fetched, narrowed, state_shardings, trim, widened
from jaxar.training.optim import Optimizer, make_optimizer
from jaxar.training.state import TrainState, ema_decay, init_state
from jaxar.typing import Array, Params

Batch = dict[str, Any]
Frozen = Mapping[str, Params]
"""Parameters of frozen networks, by name."""
TrainStep = Callable[[TrainState, Frozen, Batch], tuple[TrainState, dict[str, Array]]]


class Training(NamedTuple):
    """Functions and settings that train a system, apart from its data.

    Attributes:
      init: init(key) -> the state before the first step.
      step: See `make_step`.
      memory: What is stored between steps, and how.
    """

    init: Callable[[Array], TrainState]
    step: TrainStep
    memory: Memory


def training_of(config: Any, system: Task) -> Training:
    """Returns the training of a system, given the whole config."""
    memory = Memory(**config.memory)
    options = Optimizer(**config.optimizer)
    optimizer = make_optimizer(options, steps=config.steps, batch_size=config.batch_size)

    def init(key: Array) -> TrainState:
        return init_state(system, optimizer, key, memory)

    step = make_step(system, optimizer, ema=config.ema, seed=config.seed, memory=memory)
    return Training(init, step, memory)


def make_step(
    system: Task,
    optimizer: optax.GradientTransformation,
    *,
    ema: float,
    seed: int,
    memory: Memory = PLAIN,
) -> TrainStep:
    """Returns the pure function (state, frozen, batch) -> (state, metrics) of one step.

    A loss or gradient that is not finite changes nothing but `step` and `skipped`.

    Args:
      system: Task to train.
      optimizer: See `make_optimizer`.
      ema: Rate of the moving average.
      seed: Seed of all randomness; the key of a step follows from it and the step.
      memory: What is stored between steps, and how.
    """
    gradient = _accumulated(system, memory.accumulate)

    def step(
        state: TrainState, frozen: Frozen, batch: Batch
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(key_for("train", seed), state.step)
        (loss, metrics), gradients = gradient(state.params, frozen, batch, state.step, key)
        seen = metrics.pop("seen", None)
        norm = optax.tree.norm(gradients)
        before = fetched(state.ema, memory)
        rate = 1 - ema_decay(ema, state.step)
        rounding = jax.random.fold_in(key_for("rounding", seed), state.step)

        def moved() -> tuple[Any, Any, Any]:
            updates, after = optimizer.update(gradients, widened(state.optimizer), state.params)
            params: Any = optax.apply_updates(state.params, updates)
            params = system.settle(params, seen, key)
            average = optax.incremental_update(params, widened(before), rate)
            first, second = (jax.random.fold_in(rounding, i) for i in range(2))
            average = narrowed(average, memory.ema, first)
            return params, average, narrowed(after, memory.moments, second)

        def kept() -> tuple[Any, Any, Any]:
            return state.params, before, state.optimizer

        # A skipped step also leaves the optimiser's step count, and with it the learning rate.
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        params, average, moments = _either(finite, moved, kept)
        state = TrainState(state.step + 1, params, average, moments, state.skipped + ~finite)
        return state, {**metrics, "gradient_norm": norm, "skipped": state.skipped}

    return step


def jitted_step(
    step: TrainStep,
    state: TrainState,
    frozen: Frozen,
    mesh: Mesh | AbstractMesh,
    memory: Memory = PLAIN,
) -> jax.stages.Wrapped:
    """Returns the step jitted for a state and batches on the mesh; the state's memory is reused.

    Args:
      step: See `make_step`.
      state: The state or its shapes.
      frozen: Parameters of frozen networks or their shapes, by name.
      mesh: Device mesh; an abstract one is enough for lowering.
      memory: Memory options of the step.
    """
    places = state_shardings(state, mesh, memory)
    return jax.jit(
        step,
        in_shardings=(places, shardings(frozen, mesh), batch_sharding(mesh)),
        out_shardings=(places, replicated(mesh)),
        donate_argnums=0,
    )


def compile_step(
    step: TrainStep,
    state: TrainState,
    frozen: Frozen,
    batch: Batch,
    mesh: Mesh,
    memory: Memory = PLAIN,
) -> jax.stages.Compiled:
    """Returns the step compiled for these shapes on the mesh; see `jitted_step`.

    Args:
      step: See `make_step`.
      state: The state or its shapes.
      frozen: Parameters of frozen networks or their shapes, by name.
      batch: A batch or its shapes.
      mesh: Device mesh.
      memory: Memory options of the step.
    """
    jitted = jitted_step(step, state, frozen, mesh, memory)
    with jax.set_mesh(mesh):
        compiled = jitted.lower(state, frozen, batch).compile()
    trim()
    return compiled


def _either(which: Array, one: Callable[[], Any], other: Callable[[], Any]) -> Any:
    """Returns one() or other(), trees of the same form.

    On CPUs a branch is faster, 1.8 times for a parameter update. Elsewhere an elementwise select
    is: on v5e a branch makes xAR-B's step a quarter longer, by the compiler's estimate.
    """
    if axes.platform() == "cpu":
        return jax.lax.cond(which, one, other)
    return jax.tree.map(lambda a, b: jnp.where(which, a, b), one(), other())


def _accumulated(system: Task, parts: int) -> Callable[..., Any]:
    """Returns the function from a batch to ((loss, metrics), gradients), computed part by part.

    Losses are means over examples, so the mean over equal parts is the mean over the batch. Each
    part has its own randomness.
    """

    def whole(params, frozen, batch, step, key):
        value_and_gradient = jax.value_and_grad(system.loss, has_aux=True)
        found, gradients = value_and_gradient(params, frozen, {**batch, "step": step}, key)
        return found, axes.placed(gradients)

    def summed(params, frozen, batch, step, key):
        def body(total, part):
            number, rows = part
            found, gradients = whole(params, frozen, rows, step, jax.random.fold_in(key, number))
            return axes.placed(jax.tree.map(jnp.add, total, gradients)), found

        nothing = axes.placed(jax.tree.map(jnp.zeros_like, params))
        cut = jax.tree.map(lambda x: _cut(x, parts), batch)
        total, (losses, metrics) = jax.lax.scan(body, nothing, (jnp.arange(parts), cut))
        seen = metrics.pop("seen", None)
        metrics = jax.tree.map(lambda x: jnp.mean(x, 0), metrics)
        if seen is not None:
            metrics["seen"] = seen.reshape(-1, *seen.shape[2:])
        return (jnp.mean(losses), metrics), jax.tree.map(lambda x: x / parts, total)

    return whole if parts == 1 else summed


def _cut(x: Array, parts: int) -> Array:
    """Returns (parts, b / parts, ...): part i has rows i, i + parts, ..., some on every device."""
    cut = jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)
    return axes.hold(cut, None, "batch")
