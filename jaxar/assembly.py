"""Systems from configs: the parts that a config names, joined.

`build_system(config)` makes the whole, of any kind in `registry.PARTS["system"]`: a function whose
arguments are fields of the config. Groups come to it made, as `flow`; parts as they stand there, by
name, and it makes them with `registry.build`.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, Any

import jax
from ml_collections import ConfigDict

from jaxar import registry
from jaxar.checks import require, share, sizes, whole
from jaxar.core import plan as plans
from jaxar.core.condition import Condition, Label
from jaxar.errors import ConfigError, FieldError
from jaxar.flow.guidance import Guided
from jaxar.heads.flow import Flow
from jaxar.objectives.autoencoder import Autoencoding
from jaxar.registry import PARTS, build, lookup, taken
from jaxar.schemes.base import BackboneWithHead, Settings
from jaxar.signatures import NONE, Part, group_of
from jaxar.system import System
from jaxar.tokenizers.tokens import Codes, Entities, Latents
from jaxar.training.run import Pictures


@dataclasses.dataclass(frozen=True)
class Nothing:
    """Settings of a head that declares none."""


def build_system(config: Any) -> Any:
    """Returns the system of a config, without parameters, data or devices.

    Raises:
      ConfigError: one sentence on the first setting that cannot work.
    """
    make, given = lookup("system", config.system), {}
    for name, argument in registry.fields(make).items():
        if name in config:
            value = config[name].to_dict() if isinstance(config[name], ConfigDict) else config[name]
            inside = group_of(argument)
            given[name] = registry.group(inside, value, name) if inside else value
    try:
        return make(**given)
    except FieldError as error:
        raise ConfigError(str(error)) from error


def build_autoencoder(config: Any) -> Any:
    """Returns the template of the autoencoder whose latents a system models, or None."""
    parts = [config.get(name, NONE) for name in ("autoencoder", "quantizer")]
    return _template(*(dict(part) for part in parts))


def build_settings(config: Any, **changes: Any) -> Settings:
    """Returns the sampling settings of a config; `changes` replace fields of `config.sample`.

    Raises:
      ValueError: a setting makes no sense, or is not one of this system's.
    """
    given = {**config.sample, **{k: v for k, v in changes.items() if v is not None}}
    return _settings(dict(config.context), dict(config.head), given)


def next_x(
    *,
    data_shape: tuple[int, int, int],
    num_classes: int,
    tokenizer: Part,
    plan: Part,
    context: Part,
    head: Part,
    model: Part,
    autoencoder: Part = NONE,
    quantizer: Part | None = None,
    flow: Flow | None = None,
    label_dropout: float = 0.1,
    sample: Any,
) -> System:
    """Returns a system that predicts entities X one after the other.

    Args:
      data_shape: (h, w, c) of one example of the data.
      num_classes: Labels lie in [0, num_classes).
      tokenizer: From data to a grid of latents.
      plan: The entities, and their order.
      context: What an entity sees of the others.
      head: The distribution of an entity.
      model: The network.
      autoencoder: The one whose latents the data are, or none.
      quantizer: Of an autoencoder that has one.
      flow: Path and training times, where head or context have a flow.
      label_dropout: Share of labels replaced by "no class" in training.
      sample: Settings of sampling.
    """
    require(locals(), data_shape=sizes(3), num_classes=whole(1), label_dropout=share)
    _require_fitting(context, model, head)
    network = _template(autoencoder, quantizer)
    entities = _entities(tokenizer, plan, head, data_shape, network)
    try:
        settings = _settings(context, head, sample)  # found before anything is trained
        if settings.iterations is not None:
            plans.unmasking(entities.plan.tokens, settings.iterations)
    except FieldError as error:
        raise ConfigError(f"sample.{error}") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error

    def given(kind: str, part: Part) -> dict[str, Any]:
        return {"flow": flow} if "flow" in taken(kind, part["name"]) else {}

    condition = Label(num_classes, label_dropout)
    make = functools.partial(_network, model, head, given("head", head), entities, condition)
    return System(
        network=jax.eval_shape(make, jax.random.key(0)),
        make=make,
        scheme=build("context", context, entities, **given("context", context)),
        condition=condition,
        shape=data_shape,
        autoencoder=network if isinstance(entities, Codes) else None,
    )


def autoencoder(
    *,
    data_shape: tuple[int, int, int],
    num_classes: int,
    model: Annotated[Part, "autoencoder"],
    loss: Part,
    quantizer: Part | None = None,
    perceptual: Part = NONE,
) -> Autoencoding:
    """Returns the training of an autoencoder.

    Args:
      data_shape: (h, w, c) of an image.
      num_classes: Labels lie in [0, num_classes).
      model: The autoencoder.
      loss: Its objective.
      quantizer: Of an autoencoder that has one.
      perceptual: Feature network of the loss.
    """
    require(locals(), data_shape=sizes(3), num_classes=whole(1))
    needs, offers = _declared("loss", loss, "needs"), _declared("autoencoder", model, "offers")
    if needs != offers:
        raise ConfigError(
            f"config.loss={loss['name']} is for autoencoders that offer {needs!r}, not for "
            f"config.model={model['name']}, which offers {offers!r}."
        )
    make = functools.partial(_autoencoder, "model", model, quantizer)
    features = build("perceptual", perceptual)
    return build("loss", loss, make, data_shape, perceptual=features)


def _settings(context: Part, head: Part, given: Mapping[str, Any]) -> Settings:
    """Returns sampling settings: those of the walk and those of the head's draw."""
    groups = {
        "walk": _declared("context", context, "sampling") or Guided,
        "draw": _declared("head", head, "sampling") or Nothing,
    }
    own = {name: registry.fields(group) for name, group in groups.items()}
    allowed = sorted({*own["walk"], *own["draw"], *registry.fields(Pictures)})
    if unknown := sorted(set(given) - set(allowed)):
        raise ValueError(
            f"There is no sampling setting {unknown[0]!r} of this system; it has {allowed}."
        )
    made = {
        name: group(**{key: given[key] for key in own[name] if key in given})
        for name, group in groups.items()
    }
    walk = made["walk"]
    return Settings(
        draw=made["draw"],
        guidance=walk.rule,
        guided=walk.guidance != 1,
        iterations=getattr(walk, "iterations", None),
    )


def _declared(kind: str, part: Part, what: str) -> Any:
    """Returns what the class of a part declares, or None."""
    return getattr(lookup(kind, part["name"]), what, None)


def _require_fitting(context: Part, model: Part, head: Part) -> None:
    """Raises ConfigError unless the network and the head are what the context needs."""
    needs = _declared("context", context, "needs")
    offers, serves = _declared("model", model, "offers"), _declared("head", head, "serves")
    if needs == offers and needs in (serves or ()):
        return
    models = [name for name in PARTS["model"] if lookup("model", name).offers == needs]
    heads = [name for name in PARTS["head"] if needs in lookup("head", name).serves]
    raise ConfigError(
        f"config.context={context['name']} needs a network that is {needs!r} and goes with a model "
        f"of {models} and a head of {heads}, not with {model['name']}, which is {offers!r}, and "
        f"{head['name']}, which serves {list(serves or ())}."
    )


def _entities(
    tokenizer: Part, plan: Part, head: Part, shape: tuple[int, int, int], autoencoder: Any
) -> Entities:
    """Returns the tokens of a config, codes or vectors, compared with the shape of its data."""
    cutter = build("tokenizer", tokenizer)
    try:
        grid, channels = cutter.latents(shape)
    except ValueError as error:
        raise ConfigError(f"config.tokenizer: {error}") from error
    if _declared("head", head, "predicts") != "codes":
        return Latents(cutter, build("plan", plan, grid), channels)
    if not hasattr(autoencoder, "quantizer"):
        raise ConfigError(
            f"config.head={head['name']} predicts codes: config.autoencoder must be of a kind that "
            "has them, such as vq."
        )
    quantizer = autoencoder.quantizer
    if (grid, channels) != (quantizer.grid, quantizer.channels):
        raise ConfigError(
            f"config.data_shape={shape} is not what config.autoencoder gives, "
            f"{(*quantizer.grid, quantizer.channels)}."
        )
    levels = build("plan", plan, grid)
    if levels.levels != quantizer.grids or levels.entities != len(quantizer.grids):
        raise ConfigError(
            f"config.plan must be scale(sizes={quantizer.grids}), the levels of config.autoencoder."
        )
    return Codes(cutter, quantizer, levels)


def _network(
    model: Part,
    head: Part,
    given: dict[str, Any],
    entities: Entities,
    condition: Condition,
    key: jax.Array,
) -> Any:
    """Returns the network with initial values: the backbone, with its head where it has one."""
    first, second = jax.random.split(key)
    alone = "denoiser" in _declared("head", head, "serves")
    own = key if alone else first
    backbone = build("model", model, entities.plan, entities.channels, condition, key=own)
    if alone:
        return backbone
    arguments = (entities.plan, model["width"], entities.outcomes)
    return BackboneWithHead(backbone, build("head", head, *arguments, **given, key=second))


def _template(part: Part, quantizer: Part | None) -> Any:
    """Returns the template of an autoencoder, or None where there is none."""
    if part["name"] == "none":
        return None
    own = {name: value for name, value in part.items() if name != "weights"}
    make = functools.partial(_autoencoder, "autoencoder", own, quantizer)
    return jax.eval_shape(make, jax.random.key(0))


def _autoencoder(where: str, part: Part, quantizer: Part | None, key: jax.Array) -> Any:
    """Returns an autoencoder with initial values, and with its quantizer where it has one."""
    if "quantizer" not in taken("autoencoder", part["name"]):
        return build("autoencoder", part, where=where, key=key)
    own, other = jax.random.split(key)
    codes = build("quantizer", quantizer, key=own)
    return build("autoencoder", part, where=where, quantizer=codes, key=other)
