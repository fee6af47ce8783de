"""Names of parts in configs, and the constructors they stand for.

The only file that sees every part. `build(kind, spec)` makes one part; `build_system(config)` makes
the whole; `convert(name, ...)` reads released weights of a network. Adding a part means adding one
row.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxar import plan
from jaxar.backbones.xar import XAR
from jaxar.config import ConfigDict, ConfigError
from jaxar.convert import inception as inception_weights
from jaxar.convert import kl_vae, vq_vae
from jaxar.convert import xar as xar_weights
from jaxar.convert.files import read_state
from jaxar.convert.graph_def import read_constants
from jaxar.data import folder, glyphs, latents, source, tfds
from jaxar.flow import path, time
from jaxar.flow.guidance import Guidance
from jaxar.heads.flow import FlowHead
from jaxar.metrics import inception
from jaxar.metrics.evaluation import Fidelity, NoEvaluation, Recognition
from jaxar.models.autoencoder import Autoencoding
from jaxar.models.perceptual import Features
from jaxar.models.quantized import QuantizedAutoencoding
from jaxar.models.variational import VariationalAutoencoding
from jaxar.system import Settings, System
from jaxar.tokenizers.implicit import FiniteScalar, LookupFree
from jaxar.tokenizers.moments import Moments
from jaxar.tokenizers.patch import Patch
from jaxar.tokenizers.quantize import VectorQuantizer
from jaxar.tokenizers.vae import KLAutoencoder
from jaxar.tokenizers.vq import VQAutoencoder
from jaxar.typing import Params


def read_inception(path: str | Path) -> Params:
    """Returns the parameters of the 2015 Inception network, as NumPy arrays.

    Args:
      path: File in torch-fidelity's, pytorch-fid's or TensorFlow's (.pb) layout.

    Raises:
      ValueError: it does not hold the network; one sentence says why.
    """
    if Path(path).suffix == ".pb":
        return inception_weights.from_graph_def(read_constants(path), inception.shapes)
    with read_state(path) as state:
        return inception_weights.from_state_dict(state, inception.shapes)


def _no_features() -> None:
    """Returns no feature network."""


def _inception_maps(weights: str) -> Features:
    """Returns the feature network of a file with Inception's weights."""
    params = jax.device_put(read_inception(weights))
    return functools.partial(inception.maps, params)


PARTS: dict[str, dict[str, Callable[..., Any]]] = {
    "data": {
        "digits": source.Digits,
        "folder": folder.ImageFolder,
        "glyphs": glyphs.Glyphs,
        "latent_folder": latents.LatentFolder,
        "latent_records": latents.LatentRecords,
        "tfds": tfds.Tfds,
    },
    "tokenizer": {"patch": Patch, "moments": Moments},
    "plan": {
        "token": plan.token,
        "cell": plan.cell,
        "subsample": plan.subsample,
        "scale": plan.scale,
        "image": plan.image,
    },
    "model": {"xar": XAR},
    "autoencoder": {"kl": KLAutoencoder, "vq": VQAutoencoder},
    "quantizer": {
        "vector": VectorQuantizer,
        "finite_scalar": FiniteScalar,
        "lookup_free": LookupFree,
    },
    "loss": {"autoencoder": VariationalAutoencoding, "quantized": QuantizedAutoencoding},
    "perceptual": {"none": _no_features, "inception": _inception_maps},
    "path": {"linear": path.Linear, "cosine": path.Cosine},
    "evaluation": {"none": NoEvaluation, "recognition": Recognition, "fidelity": Fidelity},
    "time": {"uniform": time.Uniform, "logit_normal": time.LogitNormal, "shifted": time.Shifted},
}


def build(kind: str, spec: Mapping[str, Any] | ConfigDict, *args: Any, **more: Any) -> Any:
    """Returns the part that a spec names, e.g. {"name": "cell", "height": 8, "width": 8}.

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
    table = PARTS[kind]
    if name not in table:
        raise ConfigError(f"config.{kind} has no choice {name!r}: choose one of {sorted(table)}.")
    make = table[name]
    function, given = (make.__init__, (None, *args)) if inspect.isclass(make) else (make, args)
    parameters = list(inspect.signature(function).parameters.values())[len(given) :]
    allowed = {p.name: p.default for p in parameters if p.name not in more}
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
        return make(*args, **arguments, **more)
    except ConfigError:
        raise
    except (ValueError, TypeError, FileNotFoundError, ImportError) as error:
        raise ConfigError(f"config.{kind}: {error}") from error


CONVERTERS: dict[str, Callable[[Mapping[str, Any], Any], Params]] = {
    "xar": xar_weights.from_state_dict,
    "kl_autoencoder": kl_vae.from_state_dict,
    "vq_autoencoder": vq_vae.from_state_dict,
}
"""Reader of released weights for each network: (state, template) -> parameters."""


def convert(name: str, state: Mapping[str, Any], template: Any) -> Params:
    """Returns the parameters of a network that released weights hold.

    Args:
      name: Row of `CONVERTERS`.
      state: Arrays by key of the release.
      template: Parameter tree of arrays or shapes.

    Raises:
      ValueError: nothing was released for this network, or the weights are not of it.
    """
    if name not in CONVERTERS:
        raise ValueError(f"no released weights are known for {name!r}, but for {list(CONVERTERS)}")
    return CONVERTERS[name](state, template)


def build_system(config: Any) -> Any:
    """Returns the system of a config, without parameters, data or devices."""
    if config.system not in SYSTEMS:
        raise ConfigError(
            f"config.system has no choice {config.system!r}: choose one of {sorted(SYSTEMS)}."
        )
    return SYSTEMS[config.system](config)


def build_autoencoder(config: Any) -> Any:
    """Returns the template of the autoencoder whose latents a system models.

    None where it has none, and where no weights are given: then nothing is decoded.
    """
    arguments = {k: v for k, v in config.autoencoder.items() if k != "weights"}
    if not config.autoencoder.get("weights"):
        return None
    make = functools.partial(_make_autoencoder, arguments)
    return jax.eval_shape(make, jax.random.key(0))


def _next_x(config: Any) -> System:
    shape = tuple(config.data_shape)
    tokenizer = build("tokenizer", config.tokenizer)
    try:
        grid, channels = tokenizer.latents(shape)
    except ValueError as error:
        raise ConfigError(f"config.tokenizer: {error}") from error
    entities = build("plan", config.plan, grid)
    try:
        build_settings(config)  # what cannot be sampled is found before it is trained
    except ValueError as error:
        raise ConfigError(str(error)) from error
    make = functools.partial(_make, config.model, entities, channels, config.num_classes)
    return System(
        tokenizer=tokenizer,
        plan=entities,
        backbone=jax.eval_shape(make, jax.random.key(0)),
        make=make,
        head=FlowHead(
            path=build("path", config.flow.path),
            time=build("time", config.flow.time),
            context=config.context,
        ),
        num_classes=config.num_classes,
        label_dropout=config.label_dropout,
        shape=shape,
    )


def _autoencoder(config: Any) -> Autoencoding:
    arguments = {**config.model, "name": "kl"}
    return _autoencoding(config, functools.partial(_make_autoencoder, arguments))


def _vq_autoencoder(config: Any) -> Autoencoding:
    arguments = {**config.model, "name": "vq"}
    return _autoencoding(config, functools.partial(_make_vq, arguments, config.quantizer))


def _autoencoding(config: Any, make: Callable[[jax.Array], Any]) -> Autoencoding:
    features = build("perceptual", config.perceptual)
    shape, classes = tuple(config.data_shape), config.num_classes
    return build("loss", config.loss, make, shape, classes, perceptual=features)


SYSTEMS = {"next_x": _next_x, "autoencoder": _autoencoder, "vq_autoencoder": _vq_autoencoder}


def build_settings(config: Any, **changes: Any) -> Settings:
    """Returns the sampling settings of a config; `changes` replace fields of `config.sample`."""
    given = {**config.sample, **{k: v for k, v in changes.items() if v is not None}}
    return Settings(
        solver=given["solver"],
        steps=given["steps"],
        shift=given["shift"],
        guidance=Guidance(given["schedule"], given["low"], given["high"]),
        guided=given["guidance"] != 1,
        dtype=given["dtype"],
    )


def _make(model: Any, entities: plan.Plan, channels: int, classes: int, key: jax.Array) -> Any:
    return build("model", model, entities, channels, classes, key=key)


def _make_autoencoder(arguments: Mapping[str, Any], key: jax.Array) -> Any:
    return build("autoencoder", arguments, key=key)


def _make_vq(arguments: Mapping[str, Any], quantizer: Any, key: jax.Array) -> Any:
    own, other = jax.random.split(key)
    return build("autoencoder", arguments, build("quantizer", quantizer, key=own), key=other)
