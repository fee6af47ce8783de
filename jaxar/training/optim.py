"""The optimiser of xAR: AdamW with warm-up, a long constant rate and a cosine at the end.

Source: OliverRensu/xAR main_mar.py, util/lr_sched.py and util/misc.py `add_weight_decay`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxar.typing import Array


def learning_rate(options: Any, *, steps: int, batch_size: int) -> optax.Schedule:
    """Returns the rate as a function of the step, 0 <= step < steps.

    Linear from 0 over `warmup_steps`; constant; over the last `decay_fraction` of the run a cosine
    that reaches `final_learning_rate` at the last step. The released code pins the cosine to epochs
    600 to 800, so that shorter runs never decay; ours follows the run.

    Args:
      options: `config.optimizer`.
      steps: Length of the run.
      batch_size: Examples in a step: the rate is `base_learning_rate` for each 256.
    """
    peak = options.base_learning_rate * batch_size / 256
    final = min(options.final_learning_rate, peak)
    start = (steps - 1) - options.decay_fraction * (steps - 1)
    length = max(steps - 1 - start, 1)

    def rate(step: Any) -> Array:
        warm = step / max(options.warmup_steps, 1)
        progress = jnp.clip((step - start) / length, 0, 1)
        cosine = final + (peak - final) * (1 + jnp.cos(jnp.pi * progress)) / 2
        return jnp.where(step < options.warmup_steps, peak * warm, cosine)

    return rate


def make_optimizer(options: Any, *, steps: int, batch_size: int) -> optax.GradientTransformation:
    """Returns AdamW after clipping by the global norm, with the schedule above."""
    return optax.chain(
        optax.clip_by_global_norm(options.clip_norm),
        optax.adamw(
            learning_rate(options, steps=steps, batch_size=batch_size),
            b1=options.beta1,
            b2=options.beta2,
            weight_decay=options.weight_decay,
            mask=decayed,
        ),
    )


def decayed(params: Any) -> Any:
    """Returns True for leaves that weight decay acts on: all but biases and scales of norms."""

    def rule(path, leaf):
        return path[-1].key not in ("bias", "scale")

    return jax.tree_util.tree_map_with_path(rule, params)
