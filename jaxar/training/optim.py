"""The optimiser of all systems: AdamW with warm-up, a constant rate and a decay at the end.

xAR and FlowAR decay by a cosine, VAR linearly, MAR not at all.
Source: OliverRensu/xAR main_mar.py, util/lr_sched.py and util/misc.py `add_weight_decay`;
FoundationVision/VAR utils/lr_control.py.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxar.typing import Array


def learning_rate(options: Any, *, steps: int, batch_size: int) -> optax.Schedule:
    """Returns the rate as a function of the step, 0 <= step < steps.

    It rises linearly from `warmup_from` times the peak over `warmup_steps`, then is constant. Over
    the last `decay_fraction` of the run it falls by a cosine or linearly, to `final_learning_rate`
    at the last step. xAR's released code fixes the cosine to epochs 600 to 800, so shorter runs
    never decay; ours scales with the run.

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
        warm = options.warmup_from + (1 - options.warmup_from) * (
            step / max(options.warmup_steps, 1)
        )
        progress = jnp.clip((step - start) / length, 0, 1)
        left = (1 + jnp.cos(jnp.pi * progress)) / 2 if options.decay == "cosine" else 1 - progress
        return jnp.where(step < options.warmup_steps, peak * warm, final + (peak - final) * left)

    return rate


def weight_decay(options: Any, *, steps: int) -> optax.Schedule | float:
    """Returns the weight decay: a constant, or a cosine schedule to `final_weight_decay`."""
    first, last = options.weight_decay, options.final_weight_decay
    if first == last:
        return first
    return lambda step: (
        last + (first - last) * (0.5 + 0.5 * jnp.cos(jnp.pi * step / max(steps - 1, 1)))
    )


def make_optimizer(options: Any, *, steps: int, batch_size: int) -> optax.GradientTransformation:
    """Returns AdamW after clipping by the global norm, with the schedules above."""
    rate = learning_rate(options, steps=steps, batch_size=batch_size)
    mask = functools.partial(decayed, spared=tuple(options.no_decay))
    return optax.chain(
        optax.clip_by_global_norm(options.clip_norm),
        optax.scale_by_adam(b1=options.beta1, b2=options.beta2),
        optax.add_decayed_weights(weight_decay(options, steps=steps), mask),
        optax.scale_by_learning_rate(rate),
    )


def decayed(params: Any, spared: tuple[str, ...] = ()) -> Any:
    """Returns True for leaves that weight decay acts on.

    These are all but biases, norm scales, and leaves with one of the `spared` words in their path.
    """

    def rule(path, leaf):
        keys = [entry.key for entry in path]
        return keys[-1] not in ("bias", "scale") and not set(keys) & set(spared)

    return jax.tree_util.tree_map_with_path(rule, params)
