"""Names of parts in configs, and where they are defined.

    PARTS[kind][name] = "module:attribute"

A row is resolved when it is used, so importing this module imports no part. `build(kind, spec)`
makes one part, `convert(name, ...)` reads released weights of a network. Adding a part means adding
one row; `assembly` joins the parts of a config.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from jaxar.config import ConfigDict, ConfigError
from jaxar.typing import Params

PARTS: dict[str, dict[str, str]] = {
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
        "velocity": "jaxar.heads.base:no_head",
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
    "draw": {
        "velocity": "jaxar.heads.flow:Solving",
        "flow_network": "jaxar.heads.flow:Solving",
        "categorical": "jaxar.heads.categorical:Choosing",
        "diffusion": "jaxar.heads.diffusion:Denoising",
    },
    "autoencoder": {
        "kl": "jaxar.tokenizers.autoencoders.kl:KLAutoencoder",
        "vq": "jaxar.tokenizers.autoencoders.vq:VQAutoencoder",
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
        "none": "jaxar.evaluation.parts:NoEvaluation",
        "recognition": "jaxar.evaluation.parts:Recognition",
        "fidelity": "jaxar.evaluation.parts:Fidelity",
    },
    "weights": {
        "xar": "jaxar.systems.image.xar:from_state_dict",
        "flowar": "jaxar.systems.image.flowar:from_state_dict",
        "mar": "jaxar.systems.image.mar:from_state_dict",
        "var": "jaxar.systems.image.var:from_state_dict",
        "inception": "jaxar.evaluation.inception_weights:from_release",
        "kl_autoencoder": "jaxar.tokenizers.autoencoders.kl:from_state_dict",
        "vq_autoencoder": "jaxar.tokenizers.autoencoders.vq:from_state_dict",
    },
}


def lookup(kind: str, name: str | None) -> Any:
    """Returns what a name of a kind of part stands for, imported now.

    Raises:
      ConfigError: there is no such name.
    """
    table = PARTS[kind]
    if name not in table:
        raise ConfigError(f"config.{kind} has no choice {name!r}: choose one of {sorted(table)}.")
    module, attribute = table[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def build(kind: str, spec: Mapping[str, Any] | ConfigDict, *args: Any, **more: Any) -> Any:
    """Returns the part that a spec names, e.g. {"name": "cell", "height": 8, "width": 8}.

    A keyword argument whose default is a dataclass, as `Compute`, is given by its fields, which
    stand in the spec among the other arguments.

    Args:
      kind: Row of `PARTS`, named in errors.
      spec: "name" and keyword arguments of its constructor.
      *args: Further arguments, given by the program.
      **more: Further keyword arguments, given by the program.

    Raises:
      ConfigError: unknown name, or an argument the constructor does not take or lacks.
    """
    arguments = dict(spec)
    name = arguments.pop("name", None)
    make = lookup(kind, name)
    function, given = (make.__init__, (None, *args)) if inspect.isclass(make) else (make, args)
    parameters = list(inspect.signature(function).parameters.values())[len(given) :]
    own = {p.name: p.default for p in parameters if p.name not in more}
    groups = {
        name: group
        for name, group in own.items()
        if dataclasses.is_dataclass(group) and not isinstance(group, type)
    }
    allowed = {key: default for key, default in own.items() if key not in groups}
    for group in groups.values():
        allowed |= dataclasses.asdict(group)
    unknown = [key for key in arguments if key not in allowed]
    missing = [
        key for key in allowed if key not in arguments and allowed[key] is inspect.Parameter.empty
    ]
    if unknown or missing:
        faults = [f"has no argument {key!r}" for key in unknown]
        faults += [f"needs an argument {key!r}" for key in missing]
        raise ConfigError(
            f"config.{kind}: {name} {', '.join(faults)}; its arguments are {sorted(allowed)}."
        )
    try:
        for key, group in groups.items():
            fields = {field.name for field in dataclasses.fields(group)} & arguments.keys()
            changes = {field: arguments.pop(field) for field in fields}
            arguments[key] = dataclasses.replace(group, **changes)
        return make(*args, **arguments, **more)
    except ConfigError:
        raise
    except (ValueError, TypeError, FileNotFoundError, ImportError) as error:
        raise ConfigError(f"config.{kind}: {error}") from error


def convert(name: str, state: Mapping[str, Any], template: Any) -> Params:
    """Returns the parameters of a network that released weights hold.

    Args:
      name: Row of `PARTS["weights"]`: name of the network.
      state: Arrays by key of the release.
      template: Parameter tree of arrays or shapes.

    Raises:
      ValueError: nothing was released for this network, or the weights are not of it.
    """
    known = PARTS["weights"]
    if name not in known:
        raise ValueError(f"no released weights are known for {name!r}, only for {sorted(known)}.")
    return lookup("weights", name)(state, template)
