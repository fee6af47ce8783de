"""Names of parts in configs, where they are defined, and what a config may say of them.

    PARTS[kind][name] = "module:attribute"

A row is resolved when it is used, so importing this module imports no part. A name may also be
"module:attribute" itself: an own part, which needs no row. What stands in a config beside the name
are the arguments of the constructor (`arguments`); those that a config does not give have their
defaults (`filled`), and `build(kind, spec)` makes the part, parts inside it first.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from jaxar.errors import ConfigError, FieldError, advice
from jaxar.signatures import (
    EMPTY,
    GROUP,
    Arguments,
    Part,
    group_of,
    inlined,
    kind_of,
    require_whole,
    signature,
    typed,
    writable,
)
from jaxar.trust import is_own

PARTS: dict[str, dict[str, str]] = {
    "system": {
        "next_x": "jaxar.assembly:next_x",
        "autoencoder": "jaxar.assembly:autoencoder",
        "vq_autoencoder": "jaxar.assembly:autoencoder",
    },
    "data": {
        "digits": "jaxar.data.source:Digits",
        "folder": "jaxar.data.folder:ImageFolder",
        "glyphs": "jaxar.data.glyphs:Glyphs",
        "latent_folder": "jaxar.data.latents:LatentFolder",
        "latent_records": "jaxar.data.latents:LatentRecords",
        "tfds": "jaxar.data.tfds:Tfds",
    },
    "tokenizer": {
        "patch": "jaxar.tokenizers.adapters.patch:Patch",
        "moments": "jaxar.tokenizers.adapters.moments:Moments",
        "features": "jaxar.tokenizers.adapters.features:FeatureMap",
    },
    "plan": {
        "block": "jaxar.core.plan:block",
        "token": "jaxar.core.plan:token",
        "cell": "jaxar.core.plan:cell",
        "row": "jaxar.core.plan:row",
        "frame": "jaxar.core.plan:frame",
        "clip": "jaxar.core.plan:clip",
        "subsample": "jaxar.core.plan:subsample",
        "scale": "jaxar.core.plan:scale",
        "image": "jaxar.core.plan:image",
    },
    "model": {
        "xar": "jaxar.systems.image.xar:XAR",
        "var": "jaxar.systems.image.var:VAR",
        "flowar": "jaxar.systems.image.flowar:FlowAR",
        "mar": "jaxar.systems.image.mar:MAR",
    },
    "head": {
        "velocity": "jaxar.heads.flow:Velocities",
        "categorical": "jaxar.heads.categorical:Categorical",
        "flow_network": "jaxar.heads.flow_network:FlowNetwork",
        "diffusion": "jaxar.heads.diffusion:DiffusionHead",
    },
    "context": {
        "noisy": "jaxar.schemes.noisy:Noisy",
        "clean": "jaxar.schemes.noisy:Clean",
        "shifted": "jaxar.schemes.shifted:Shifted",
        "masked": "jaxar.schemes.masked:Masked",
    },
    "autoencoder": {
        "none": "jaxar.tokenizers.base:no_autoencoder",
        "kl": "jaxar.tokenizers.autoencoders.kl:KLAutoencoder",
        "vq": "jaxar.tokenizers.autoencoders.vq:VQAutoencoder",
        # where they are the model, their names are those of released weights
        "kl_autoencoder": "jaxar.tokenizers.autoencoders.kl:KLAutoencoder",
        "vq_autoencoder": "jaxar.tokenizers.autoencoders.vq:VQAutoencoder",
    },
    "quantizer": {
        "vector": "jaxar.tokenizers.quantizers.vector:VectorQuantizer",
        "finite_scalar": "jaxar.tokenizers.quantizers.implicit:FiniteScalar",
        "lookup_free": "jaxar.tokenizers.quantizers.implicit:LookupFree",
    },
    "loss": {
        "autoencoder": "jaxar.objectives.variational:VariationalAutoencoding",
        "quantized": "jaxar.objectives.quantized:QuantizedAutoencoding",
    },
    "perceptual": {
        "none": "jaxar.objectives.perceptual:no_features",
        "inception": "jaxar.evaluation.inception_weights:InceptionMaps",
    },
    "path": {"linear": "jaxar.flow.path:Linear", "cosine": "jaxar.flow.path:Cosine"},
    "time": {
        "uniform": "jaxar.flow.time:Uniform",
        "logit_normal": "jaxar.flow.time:LogitNormal",
        "shifted": "jaxar.flow.time:ShiftedUniform",
    },
    "evaluation": {
        "none": "jaxar.runs.result:NoEvaluation",
        "recognition": "jaxar.evaluation.recognition:Recognition",
        "fidelity": "jaxar.evaluation.fidelity:Fidelity",
    },
    "weights": {
        "xar": "jaxar.systems.image.xar:from_state_dict",
        "flowar": "jaxar.systems.image.flowar:from_state_dict",
        "mar": "jaxar.systems.image.mar:from_state_dict",
        "var": "jaxar.systems.image.var:from_state_dict",
        "inception": "jaxar.evaluation.inception_weights:from_release",
        "kl": "jaxar.tokenizers.autoencoders.kl:from_state_dict",
        "vq": "jaxar.tokenizers.autoencoders.vq:from_state_dict",
        "kl_autoencoder": "jaxar.tokenizers.autoencoders.kl:from_state_dict",
        "vq_autoencoder": "jaxar.tokenizers.autoencoders.vq:from_state_dict",
    },
}

GIVEN: dict[str, tuple[int, tuple[str, ...]]] = {
    "plan": (1, ()),  # grid
    "model": (3, ("key",)),  # plan, channels, condition
    "head": (3, ("flow", "key")),  # plan, width of hidden vectors, channels or vocabulary
    "context": (1, ("flow",)),  # entities
    "autoencoder": (0, ("quantizer", "key")),
    "quantizer": (0, ("key",)),
    "loss": (2, ("perceptual",)),  # make, shape
}
"""What the program gives to parts of a kind: how many first arguments, and the names of others."""

BESIDE: dict[str, tuple[inspect.Parameter, ...]] = {
    "autoencoder": (
        inspect.Parameter("weights", inspect.Parameter.KEYWORD_ONLY, default="", annotation=str),
    )
}
"""What a field of a config says beside the arguments of its part, where it names one."""


def lookup(kind: str, name: Any, where: str = "") -> Any:
    """Returns what a name of a kind of part stands for, imported now.

    Args:
      kind: Row of `PARTS`; of own parts any word.
      name: Row of the kind, or "module:attribute".
      where: Path in the config, for errors; the kind by default.

    Raises:
      ConfigError: there is no such name.
    """
    table, where = PARTS.get(kind, {}), f"config.{where or kind}"
    if not isinstance(name, str) or (name not in table and not is_own(name)):
        raise ConfigError(f"{where} has no choice {name!r}: choose one of {sorted(table)}.")
    module, attribute = (name if is_own(name) else table[name]).split(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{where}={name!r} cannot be imported: {error}.") from error
    if not callable(found):
        raise ConfigError(f"{where}={name!r} is no class or function, but {found!r}.")
    return found


# What a constructor says of itself.


def arguments(kind: str, name: Any) -> Arguments:
    """Returns the arguments of a part that a config may give; `EMPTY` is the default of some.

    Not those that the program gives (`GIVEN`), and none whose default cannot be written in a
    config. A keyword whose default is a dataclass, as `Compute`, counts by its fields.
    """
    count, named = GIVEN.get(kind, (0, ()))
    return fields(lookup(kind, name), count, named)


def taken(kind: str, name: Any) -> frozenset[str]:
    """Returns the names in `GIVEN` that a part takes: what it needs of the rest of a config."""
    names = {parameter.name for parameter in signature(lookup(kind, name))}
    return frozenset(names.intersection(GIVEN.get(kind, (0, ()))[1]))


def fields(make: Any, skip: int = 0, but: Collection[str] = ()) -> Arguments:
    """Returns the parameters of a class or function that can be written in a config.

    Args:
      make: Class or function.
      skip: How many first ones to leave out.
      but: Names of others to leave out.
    """
    found: Arguments = {}
    for one in signature(make)[skip:]:
        if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) or one.name in but:
            continue
        if inlined(one) and (made := _part_of(one.name, one.default)):
            found[one.name] = one.replace(default=made)
        elif inlined(one):
            for field in signature(type(one.default)):
                found[field.name] = field.replace(default=getattr(one.default, field.name))
        elif one.default is EMPTY or writable(one.default):
            found[one.name] = one
    return found


def _part_of(kind: str, value: Any) -> Part | None:
    """Returns the name and arguments of a default that is a part made already, or None."""
    home = f"{type(value).__module__}:{type(value).__qualname__}"
    for name, row in PARTS.get(kind, {}).items():
        if row == home:
            return {"name": name, **dataclasses.asdict(value)}
    return None


# What a config says of it.


def filled(where: str, given: Any, wanted: Arguments) -> dict[str, Any]:
    """Returns the fields of a group: those given, then the defaults of the others.

    What is missing and has no default is `EMPTY`: `require_whole` refuses it.

    Args:
      where: Path of the group, with a dot at its end, or "".
      given: Fields by name.
      wanted: Fields that it can have.

    Raises:
      ConfigError: there is no such field, or it is of another type.
    """
    for key in given:
        if key not in wanted:
            known = [f"{where}{other}" for other in wanted]
            near = get_close_matches(f"{where}{key}", known, n=1)
            raise ConfigError(f"config has no field {f'{where}{key}'!r}: {advice(near, known)}")
    whole = {key: _filled(f"{where}{key}", given[key], wanted[key]) for key in given}
    for key, parameter in wanted.items():
        if key not in whole and not _absent(parameter):
            whole[key] = _filled(f"{where}{key}", parameter.default, parameter)
    return whole


def part(kind: str, spec: Any, where: str) -> dict[str, Any]:
    """Returns a part as a config has it, with the defaults of its arguments."""
    given = dict(spec)
    name = given.pop("name")
    if name is EMPTY:
        return {"name": name}
    wanted = arguments(kind, name)
    if name != "none":
        wanted |= {one.name: one for one in BESIDE.get(where, ())}
    return {"name": name, **filled(f"{where}.", given, wanted)}


def _absent(parameter: inspect.Parameter) -> bool:
    """Returns whether a part or group that is not given is none at all."""
    return parameter.default is None and bool(kind_of(parameter) or group_of(parameter))


def _filled(path: str, value: Any, parameter: inspect.Parameter) -> Any:
    """Returns the value of a field: a part, a group or a setting."""
    kind, inside = kind_of(parameter), group_of(parameter)
    if value is EMPTY and kind:
        return {"name": EMPTY}
    if isinstance(value, GROUP) and "name" in value:
        return part(kind or parameter.name, value, path)
    if kind:
        raise ConfigError(f"{path} must be a part: spec(name, ...), not {value!r}.")
    if inside and (value is EMPTY or isinstance(value, GROUP)):
        return filled(f"{path}.", {} if value is EMPTY else value, fields(inside))
    if inside:
        raise ConfigError(f"{path} must be a group of fields, not {value!r}.")
    if isinstance(value, GROUP):
        raise ConfigError(f"{path} must be a setting, not a group of fields.")
    return typed(path, value, parameter.annotation)


# Making it.


def build(kind: str, spec: Any, *given: Any, where: str = "", **named: Any) -> Any:
    """Returns the part that a spec names, e.g. {"name": "cell", "height": 8, "width": 8}.

    Arguments that are parts themselves are made first.

    Args:
      kind: Row of `PARTS`.
      spec: "name" and arguments of its constructor.
      *given: Further arguments, given by the program.
      where: Path in the config, for errors; the kind by default.
      **named: Further keyword arguments, given by the program.

    Raises:
      ConfigError: unknown name, or an argument the constructor does not take or lacks.
    """
    where = where or kind
    stated = dict(spec)
    make = lookup(kind, stated.pop("name", None), where)
    count, but = GIVEN.get(kind, (0, ()))
    wanted = fields(make, max(count, len(given)), {*but, *named})
    whole = _made(where, stated, wanted)
    for one in signature(make):
        if inlined(one) and one.name not in {*wanted, *named}:
            make_it = type(one.default)
            own = {field.name: whole.pop(field.name) for field in signature(make_it)}
            whole[one.name] = called(where, make_it, **own)
    return called(where, make, *given, **whole, **named)


def group(make: Any, given: Any, where: str) -> Any:
    """Returns the dataclass whose fields a group of a config has, parts inside it made first."""
    return called(where, make, **_made(where, given, fields(make)))


def _made(where: str, given: Any, wanted: Arguments) -> dict[str, Any]:
    """Returns all arguments of a part or group, with those made that are parts or groups."""
    whole = filled(f"{where}.", given, wanted)
    require_whole((f"{where}.{key}", value) for key, value in whole.items())
    for key, value in whole.items():
        path, inside = f"{where}.{key}", wanted[key]
        if isinstance(value, GROUP) and "name" in value:
            whole[key] = build(kind_of(inside) or key, value, where=path)
        elif isinstance(value, GROUP):
            whole[key] = group(group_of(inside), value, path)
    return whole


def called(where: str, make: Any, *given: Any, **named: Any) -> Any:
    """Returns make(*given, **named); what is wrong with arguments becomes a ConfigError.

    Args:
      where: Path in the config, or "" for its first level.
      make: Class or function.
      *given: Its arguments.
      **named: Its keyword arguments.
    """
    try:
        return make(*given, **named)
    except ConfigError:
        raise
    except FieldError as error:
        raise ConfigError(f"{where}.{error}" if where else str(error)) from error
    except (ValueError, TypeError, FileNotFoundError, ImportError) as error:
        raise ConfigError(f"config.{where}: {error}") from error


def convert(name: str, state: Mapping[str, Any], template: Any) -> dict[str, Any]:
    """Returns the parameters of a network that released weights hold.

    Args:
      name: Row of `PARTS["weights"]`: name of the network; of an own one its module has a function
        `from_state_dict`.
      state: Arrays by key of the release.
      template: Parameter tree of arrays or shapes.

    Raises:
      ValueError: nothing was released for this network, or the weights are not of it.
    """
    known = PARTS["weights"]
    if is_own(name):
        return lookup("weights", f"{name.split(':')[0]}:from_state_dict")(state, template)
    if name not in known:
        raise ValueError(f"no released weights are known for {name!r}, only for {sorted(known)}.")
    return lookup("weights", name)(state, template)
