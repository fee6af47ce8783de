"""The optimiser of all systems: AdamW with warm-up, a constant rate and a decay at the end.

xAR and FlowAR decay by a cosine, VAR linearly, MAR not at all.
Source: OliverRensu/xAR main_mar.py, util/lr_sched.py and util/misc.py `add_weight_decay`;
FoundationVision/VAR utils/lr_control.py.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxar.checks import above, at_least, below_one, one_of, require, share, whole
from jaxar.typing import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW and its schedules; the fields of `config.optimizer`.

    Attributes:
      base_learning_rate: Peak for each 256 examples of a batch.
      final_learning_rate: At the last step.
      warmup_steps: Over which the rate rises in a straight line.
      warmup_from: Share of the peak at which it begins.
      decay: "cosine" or "linear", how it falls.
      decay_fraction: Share of the run, its end, in which it falls; 0 for a constant rate.
      beta1: Of Adam's first moment.
      beta2: Of the second.
      weight_decay: At the first step.
      final_weight_decay: At the last, reached by a cosine; None for the same throughout.
      no_decay: Words in the paths of parameters that do not decay, beside biases and norms.
      clip_norm: Largest norm of the whole gradient.
    """

    base_learning_rate: float
    final_learning_rate: float = 0.0
    warmup_steps: int = 0
    warmup_from: float = 0.0
    decay: str = "cosine"
    decay_fraction: float = 0.25
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.0
    final_weight_decay: float | None = None
    no_decay: tuple[str, ...] = ()
    clip_norm: float = 1.0

    def __post_init__(self):
        require(
            vars(self),
            base_learning_rate=above(0),
            final_learning_rate=at_least(0),
            warmup_steps=whole(0),
            warmup_from=share,
            decay=one_of("cosine", "linear"),
            decay_fraction=share,
            beta1=below_one,
            beta2=below_one,
            weight_decay=at_least(0),
            clip_norm=above(0),
        )
        if self.final_weight_decay is not None:
            require(vars(self), final_weight_decay=at_least(0))


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
    if last is None or first == last:
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
