"""One training step: where the loss is taken, the parameters move and the average follows."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxar import axes
from jaxar.keys import key_for
from jaxar.sharding import batch_sharding, replicated, shardings
from jaxar.system import Trainable
from jaxar.training.state import TrainState, ema_decay
from jaxar.typing import Array

Batch = dict[str, Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]


def make_step(
    system: Trainable, optimizer: optax.GradientTransformation, *, ema: float, seed: int
) -> Step:
    """Returns the pure function (state, batch) -> (state, metrics) of one step.

    A loss or gradient that is not finite changes nothing but `step` and `skipped`.

    Args:
      system: What is trained.
      optimizer: See `make_optimizer`.
      ema: Rate of the moving average.
      seed: Of all randomness; the key of a step follows from it and the step.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(key_for("train", seed), state.step)
        (loss, metrics), gradients = jax.value_and_grad(system.loss, has_aux=True)(
            state.params, {**batch, "step": state.step}, key
        )
        gradients = axes.placed(gradients)
        seen = metrics.pop("seen", None)
        norm = optax.tree.norm(gradients)
        updates, moved = optimizer.update(gradients, state.optimizer, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        params = system.settle(params, seen, key)
        average = optax.incremental_update(params, state.ema, 1 - ema_decay(ema, state.step))

        # A skipped step also leaves the optimiser's count, and with it the learning rate.
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        new = (params, average, moved)
        old = (state.params, state.ema, state.optimizer)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)
        params, average, moved = kept
        state = TrainState(state.step + 1, params, average, moved, state.skipped + ~finite)
        return state, {**metrics, "gradient_norm": norm, "skipped": state.skipped}

    return step


def compile_step(
    step: Step, state: TrainState, batch: dict[str, Any], mesh: Mesh
) -> jax.stages.Compiled:
    """Returns the step compiled for these shapes on the mesh; the state's memory is reused.

    Args:
      step: See `make_step`.
      state: The state or its shapes.
      batch: A batch or its shapes.
      mesh: Devices.
    """
    places = shardings(state, mesh)
    jitted = jax.jit(
        step,
        in_shardings=(places, batch_sharding(mesh)),
        out_shardings=(places, replicated(mesh)),
        donate_argnums=0,
    )
    with jax.set_mesh(mesh):
        return jitted.lower(state, batch).compile()
