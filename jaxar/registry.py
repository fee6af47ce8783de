"""Names of parts in configs, and the constructors they stand for.

`build(kind, spec)` makes one part, `convert(name, ...)` reads released weights of a network. Adding
a part means adding one row; `assembly` joins the parts of a config.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxar import plan
from jaxar.backbones.flowar import FlowAR
from jaxar.backbones.mar import MAR
from jaxar.backbones.var import VAR
from jaxar.backbones.xar import XAR
from jaxar.config import ConfigDict, ConfigError
from jaxar.contexts.masked import Masked
from jaxar.contexts.noisy import Clean, Noisy
from jaxar.contexts.shifted import Shifted
from jaxar.convert import flowar as flowar_weights
from jaxar.convert import inception as inception_weights
from jaxar.convert import kl_vae, vq_vae
from jaxar.convert import mar as mar_weights
from jaxar.convert import var as var_weights
from jaxar.convert import xar as xar_weights
from jaxar.convert.files import read_state
from jaxar.convert.graph_def import read_constants
from jaxar.data import folder, glyphs, latents, source, tfds
from jaxar.flow import path, time
from jaxar.heads.categorical import Categorical, Choosing
from jaxar.heads.diffusion import Denoising, DiffusionHead
from jaxar.heads.flow import Solving
from jaxar.heads.flow_network import FlowNetwork
from jaxar.metrics import inception
from jaxar.metrics.evaluation import Fidelity, NoEvaluation, Recognition
from jaxar.models.perceptual import Features
from jaxar.models.quantized import QuantizedAutoencoding
from jaxar.models.variational import VariationalAutoencoding
from jaxar.tokenizers.features import FeatureMap
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


def _no_head() -> None:
    """Returns no head: the backbone itself predicts velocities."""


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
    "tokenizer": {"patch": Patch, "moments": Moments, "features": FeatureMap},
    "plan": {
        "token": plan.token,
        "cell": plan.cell,
        "subsample": plan.subsample,
        "scale": plan.scale,
        "image": plan.image,
    },
    "model": {"xar": XAR, "var": VAR, "flowar": FlowAR, "mar": MAR},
    "head": {
        "velocity": _no_head,
        "categorical": Categorical,
        "flow_network": FlowNetwork,
        "diffusion": DiffusionHead,
    },
    "context": {"noisy": Noisy, "clean": Clean, "shifted": Shifted, "masked": Masked},
    "draw": {
        "velocity": Solving,
        "flow_network": Solving,
        "categorical": Choosing,
        "diffusion": Denoising,
    },
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
    table = PARTS[kind]
    if name not in table:
        raise ConfigError(f"config.{kind} has no choice {name!r}: choose one of {sorted(table)}.")
    make = table[name]
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


CONVERTERS: dict[str, Callable[[Mapping[str, Any], Any], Params]] = {
    "xar": xar_weights.from_state_dict,
    "flowar": flowar_weights.from_state_dict,
    "mar": mar_weights.from_state_dict,
    "var": var_weights.from_state_dict,
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
