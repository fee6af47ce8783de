"""Systems from configs: the parts that a config names, joined.

`build_system(config)` makes the whole, of any kind in `SYSTEMS`; nothing else knows how parts fit.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxar.config import ConfigError
from jaxar.core import plan
from jaxar.core.condition import Condition, Label
from jaxar.flow.guidance import Guidance
from jaxar.heads.flow import Flow
from jaxar.objectives.autoencoder import Autoencoding
from jaxar.registry import build, lookup
from jaxar.schemes.base import BackboneWithHead, Settings
from jaxar.system import System
from jaxar.tokenizers.tokens import Codes, Entities, Latents

FITTING: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "noisy": (("xar",), ("velocity",)),
    "clean": (("xar",), ("velocity",)),
    "shifted": (("var", "flowar"), ("categorical", "flow_network", "diffusion")),
    "masked": (("mar",), ("diffusion",)),
}
"""For each context the models and the heads that it can ask."""

SAMPLE_FIELDS = ("guidance", "schedule", "low", "high", "every", "per_class", "classes")
"""Fields of config.sample that every system has; the others are its head's."""


def build_system(config: Any) -> Any:
    """Returns the system of a config, without parameters, data or devices."""
    if config.system not in SYSTEMS:
        raise ConfigError(
            f"config.system has no choice {config.system!r}: choose one of {sorted(SYSTEMS)}."
        )
    return SYSTEMS[config.system](config)


def build_autoencoder(config: Any) -> Any:
    """Returns the template of the autoencoder whose latents a system models, or None."""
    if config.autoencoder.name == "none":
        return None
    arguments = {k: v for k, v in config.autoencoder.items() if k != "weights"}
    make = functools.partial(_make_autoencoder, arguments, config.get("quantizer"))
    return jax.eval_shape(make, jax.random.key(0))


def build_settings(config: Any, **changes: Any) -> Settings:
    """Returns the sampling settings of a config; `changes` replace fields of `config.sample`.

    Raises:
      ValueError: a setting makes no sense, or is not one of this system's.
    """
    given = {**config.sample, **{k: v for k, v in changes.items() if v is not None}}
    draw: Any = lookup("draw", config.head.name)
    own = [field.name for field in dataclasses.fields(draw)]
    masked = config.context.name == "masked"
    allowed = {*SAMPLE_FIELDS, *own, *(["iterations"] if masked else [])}
    if unknown := sorted(set(given) - allowed):
        raise ValueError(
            f"{config.name} has no sampling setting {unknown[0]!r}; it has {sorted(allowed)}."
        )
    return Settings(
        draw=draw(**{name: given[name] for name in own if name in given}),
        guidance=Guidance(given["schedule"], given["low"], given["high"]),
        guided=given["guidance"] != 1,
        iterations=given["iterations"] if masked else None,
    )


def _next_x(config: Any) -> System:
    models, heads = _fitting(config)
    if config.model.name not in models or config.head.name not in heads:
        raise ConfigError(
            f"config.context={config.context.name} goes with a model of {list(models)} and a head "
            f"of {list(heads)}, not with {config.model.name} and {config.head.name}."
        )
    entities = _entities(config)
    try:
        settings = build_settings(config)  # what cannot be sampled is found before it is trained
        if settings.iterations is not None:
            plan.unmasking(entities.plan.tokens, settings.iterations)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    condition = Label(config.num_classes, config.label_dropout)
    make = functools.partial(_make_network, config, entities, condition)
    return System(
        network=jax.eval_shape(make, jax.random.key(0)),
        make=make,
        scheme=build("context", config.context, entities, **_flow(config, "velocity")),
        condition=condition,
        shape=tuple(config.data_shape),
        autoencoder=build_autoencoder(config) if isinstance(entities, Codes) else None,
    )


def _fitting(config: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if config.context.name not in FITTING:
        raise ConfigError(
            f"config.context has no choice {config.context.name!r}: choose one of "
            f"{sorted(FITTING)}."
        )
    return FITTING[config.context.name]


def _entities(config: Any) -> Entities:
    """Returns the tokens of a config, codes or vectors, compared with the shape of its data."""
    shape = tuple(config.data_shape)
    tokenizer = build("tokenizer", config.tokenizer)
    try:
        grid, channels = tokenizer.latents(shape)
    except ValueError as error:
        raise ConfigError(f"config.tokenizer: {error}") from error
    if config.head.name != "categorical":
        return Latents(tokenizer, build("plan", config.plan, grid), channels)
    network = build_autoencoder(config)
    if not hasattr(network, "quantizer"):
        raise ConfigError(
            "A categorical head predicts codes: config.autoencoder must be of the kind vq, not "
            f"{config.autoencoder.name}."
        )
    quantizer = network.quantizer
    if (grid, channels) != (quantizer.grid, quantizer.channels):
        raise ConfigError(
            f"config.data_shape={shape} is not what config.autoencoder gives, "
            f"{(*quantizer.grid, quantizer.channels)}."
        )
    levels = build("plan", config.plan, grid)
    if levels.levels != quantizer.grids or levels.entities != len(quantizer.grids):
        raise ConfigError(
            f"config.plan must be scale(sizes={quantizer.grids}), the levels of config.autoencoder."
        )
    return Codes(tokenizer, quantizer, levels)


def _flow(config: Any, head: str) -> dict[str, Any]:
    """Returns the flow of a config as an argument, if its head is the one that this serves."""
    if config.head.name != head:
        return {}
    return {"flow": Flow(build("path", config.flow.path), build("time", config.flow.time))}


def _make_network(config: Any, entities: Entities, condition: Condition, key: jax.Array) -> Any:
    """Returns the network with initial values: the backbone, with its head where it has one."""
    first, second = jax.random.split(key)
    alone = config.head.name == "velocity"
    backbone = build(
        "model",
        config.model,
        entities.plan,
        entities.channels,
        condition,
        key=key if alone else first,
    )
    if alone:
        return backbone
    arguments = (entities.plan, config.model.width, entities.outcomes)
    flow = _flow(config, "flow_network")
    return BackboneWithHead(backbone, build("head", config.head, *arguments, **flow, key=second))


def _autoencoder(config: Any) -> Autoencoding:
    arguments = {**config.model, "name": "kl"}
    return _autoencoding(config, functools.partial(_make_autoencoder, arguments, None))


def _vq_autoencoder(config: Any) -> Autoencoding:
    arguments = {**config.model, "name": "vq"}
    return _autoencoding(config, functools.partial(_make_autoencoder, arguments, config.quantizer))


def _autoencoding(config: Any, make: Callable[[jax.Array], Any]) -> Autoencoding:
    features = build("perceptual", config.perceptual)
    shape = tuple(config.data_shape)
    return build("loss", config.loss, make, shape, perceptual=features)


def _make_autoencoder(arguments: Mapping[str, Any], quantizer: Any, key: jax.Array) -> Any:
    if arguments["name"] != "vq":
        return build("autoencoder", arguments, key=key)
    own, other = jax.random.split(key)
    return build("autoencoder", arguments, build("quantizer", quantizer, key=own), key=other)


SYSTEMS = {"next_x": _next_x, "autoencoder": _autoencoder, "vq_autoencoder": _vq_autoencoder}
