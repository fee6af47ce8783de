"""What a field of a config may be: one table from dotted paths to ranges."""

from collections.abc import Callable
from typing import Any

Rule = tuple[Callable[[Any], bool], str]
"""A test of a value, and the words for what passes it."""


def _number(fits: Callable[[float], bool], allowed: str) -> Rule:
    return lambda value: type(value) in (int, float) and fits(value), allowed


def _whole(low: int) -> Rule:
    return lambda value: type(value) is int and value >= low, f"a whole number of at least {low}"


def _sizes(count: int) -> Rule:
    return (
        lambda value: (
            isinstance(value, tuple) and len(value) == count and all(map(_whole(1)[0], value))
        ),
        f"a tuple of {count} whole numbers of at least 1",
    )


def _choice(*names: str) -> Rule:
    return lambda value: value in names, " or ".join(map(repr, names))


_TEXT = lambda value: isinstance(value, str) and value != "", "a word"
_BOOL = lambda value: isinstance(value, bool), "True or False"
_PART = lambda value: isinstance(value, dict) and "name" in value, "a part: spec(name, ...)"
_POSITIVE = _number(lambda value: value > 0, "above 0")
_NOT_NEGATIVE = _number(lambda value: value >= 0, "at least 0")
_SHARE = _number(lambda value: 0 <= value <= 1, "from 0 to 1")
_BELOW_ONE = _number(lambda value: 0 <= value < 1, "at least 0 and below 1")
_SEED = (
    lambda value: type(value) is int and 0 <= value <= 2**31 - 3,
    "a whole number from 0 to 2147483645",
)
_DEPTH = (
    lambda value: (
        all(map(_whole(1)[0], value if isinstance(value, tuple) else [value])) and value != ()
    ),
    "a whole number of at least 1, or a tuple of them",
)
_AXIS = lambda value: value == -1 or _whole(1)[0](value), "-1 (what remains) or at least 1"

# What a field may be, where a config has it. The arguments of parts are also checked by the parts.
RULES: dict[str, Rule] = {
    "name": _TEXT,
    "*.name": _TEXT,
    "system": _TEXT,
    "seed": _SEED,
    "steps": _whole(1),
    "batch_size": _whole(1),
    "data": _PART,
    "data_shape": _sizes(3),
    "num_classes": _whole(1),
    "workers": _whole(0),
    "tokenizer": _PART,
    "autoencoder": _PART,
    "quantizer": _PART,
    "plan": _PART,
    "context": _PART,
    "head": _PART,
    "label_dropout": _SHARE,
    "flow.path": _PART,
    "flow.time": _PART,
    "model": _PART,
    "model.width": _whole(1),
    "model.depth": _DEPTH,
    "model.heads": _whole(1),
    "model.mlp_ratio": _POSITIVE,
    "model.dropout": _BELOW_ONE,
    "model.attention_dropout": _BELOW_ONE,
    "model.time_scale": _POSITIVE,
    "model.dtype": _choice("float32", "bfloat16"),
    "model.remat": _choice("none", "projections", "branches", "blocks"),
    "model.unroll": _whole(1),
    "loss": _PART,
    "loss.*_weight": _NOT_NEGATIVE,
    "loss.level_dropout": _SHARE,
    "loss.adversarial_start": _whole(0),
    "loss.learned_variance": _BOOL,
    "loss.discriminator_*": _whole(1),
    "perceptual": _PART,
    "optimizer.base_learning_rate": _POSITIVE,
    "optimizer.final_learning_rate": _NOT_NEGATIVE,
    "optimizer.warmup_steps": _whole(0),
    "optimizer.warmup_from": _SHARE,
    "optimizer.decay": _choice("cosine", "linear"),
    "optimizer.decay_fraction": _SHARE,
    "optimizer.beta1": _BELOW_ONE,
    "optimizer.beta2": _BELOW_ONE,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.final_weight_decay": _NOT_NEGATIVE,
    "optimizer.clip_norm": _POSITIVE,
    "ema": _BELOW_ONE,
    "memory.accumulate": _whole(1),
    "memory.moments": _choice("float32", "bfloat16"),
    "memory.ema": _choice("float32", "bfloat16"),
    "memory.offload_ema": _BOOL,
    "sample.steps": _whole(1),
    "sample.shift": _POSITIVE,
    "sample.guidance": _number(lambda value: value >= 1, "at least 1"),
    "sample.low": _SHARE,
    "sample.high": _SHARE,
    "sample.times": _choice("published", "two_part"),
    "sample.iterations": _whole(1),
    "sample.dtype": _choice("float32", "float64"),
    "sample.every": _whole(0),
    "sample.per_class": _whole(1),
    "sample.classes": _whole(1),
    "evaluation": _PART,
    "evaluation.per_class": _whole(1),
    "evaluation.samples": _whole(2),
    "evaluation.batch_size": _whole(1),
    "checkpoint.every": _whole(1),
    "checkpoint.keep": _whole(1),
    "checkpoint.keep_every": _whole(0),
    "log_every": _whole(1),
    "mesh.*": _AXIS,
}
