"""What training carries from step to step, and what a checkpoint holds."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxar.core.task import Task
from jaxar.training.memory import PLAIN, Memory, kept_in
from jaxar.typing import Array, Params


class TrainState(NamedTuple):
    """State of a run. All randomness and the place in the data follow from `step`.

    Attributes:
      step: Steps taken, int32.
      params: Parameters being trained, float32.
      ema: Their exponential moving average: what is sampled from. In the dtype of `Memory.ema`.
      optimizer: State of the optimiser, in the dtype of `Memory.moments`.
      skipped: Steps whose loss or gradient was not finite and changed nothing, int32.
    """

    step: Array
    params: Params
    ema: Params
    optimizer: Any
    skipped: Array


def init_state(
    system: Task,
    optimizer: optax.GradientTransformation,
    key: Array,
    memory: Memory = PLAIN,
) -> TrainState:
    """Returns the state before the first step; jit it with shardings to make it in place."""
    params = system.init(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=kept_in(jax.tree.map(jnp.copy, params), memory.ema),
        optimizer=kept_in(optimizer.init(params), memory.moments),
        skipped=jnp.zeros((), jnp.int32),
    )


def ema_decay(rate: float, step: Array) -> Array:
    """Returns the decay of the average after `step` steps: min(rate, (1 + step) / (10 + step)).

    The warm-up keeps the average of a young run close to its parameters; without it 0.9999 is
    mostly initial noise for the first 30,000 steps (LTH14/mar issue 36).
    """
    return jnp.minimum(rate, (1 + step) / (10 + step))
