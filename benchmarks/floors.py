"""The least operations that one image needs: its training step and its sampling, counted.

What is counted is the program itself, traced for one image without rematerialisation and with plain
attention (`counting`): the gradient of the loss, without dropout's or the optimiser's share, which
have no products; and the sampler up to the latents, without an autoencoder's decoder.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import counting
from jaxar import assembly
from jaxar import config as configs
from jaxar.nn.module import params_of
from jaxar.nn.transformer import Compute
from jaxar.runs.load import attached
from jaxar.runs.model import Autoencoder, Origin

PLAIN = dataclasses.asdict(Compute(attention="dense"))
"""How networks compute when they are counted: whole vectors are not filled up."""


def least(config: Any, what: str) -> float | None:
    """Returns the least operations of one image: of a training step, or of its sampling.

    Args:
      config: The whole config.
      what: "train" or "sample".

    Returns:
      None for the sampling of a system that does not sample, as an autoencoder.
    """
    config = _plain(config)
    system = assembly.build_system(config)
    network = assembly.build_autoencoder(config) if "autoencoder" in config else None
    frozen = {} if network is None else params_of(network)

    def whole(frozen: Any) -> Any:
        found = None if network is None else Autoencoder(network, frozen, Origin(None))
        return attached(system, found)

    arguments = jax.eval_shape(system.init, jax.random.key(0)), frozen
    if what == "train":
        return counting.operations(_training(whole), *arguments, *_batch(config))
    if system.shows != "samples":
        return None
    return counting.operations(_sampling(whole, config), *arguments, *_request())


def _plain(config: Any) -> Any:
    """Returns the config with all networks computing as in `PLAIN`."""
    parts = {part: fields for part, fields in config.items() if hasattr(fields, "items")}
    words = [
        f"{part}.{field}={value}"
        for part, fields in parts.items()
        for field, value in PLAIN.items()
        if isinstance(fields.get(field), type(value))
    ]
    return configs.override(config, words)


def _training(whole: Any) -> Any:
    def gradient(params: Any, frozen: Any, batch: Any, key: Any) -> Any:
        return jax.grad(lambda params: whole(frozen).loss(params, batch, key)[0])(params)

    return gradient


def _batch(config: Any) -> tuple[Any, Any]:
    """Returns the shapes of a batch of one image, and of a key."""
    batch = {
        "data": jax.ShapeDtypeStruct((1, *config.data_shape), jnp.float32),
        "label": jax.ShapeDtypeStruct((1,), jnp.int32),
        "step": jax.ShapeDtypeStruct((), jnp.int32),
    }
    return batch, jax.eval_shape(jax.random.key, 0)


def _sampling(whole: Any, config: Any) -> Any:
    settings = assembly.build_settings(config)

    def sample(params: Any, frozen: Any, keys: Any, labels: Any, guidance: Any) -> Any:
        return whole(frozen).sample(params, keys, labels, guidance, settings)

    return sample


def _request() -> tuple[Any, Any, Any]:
    """Returns the shapes of one image's key, its label, and the amount of guidance."""
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    return keys, jax.ShapeDtypeStruct((1,), jnp.int32), jax.ShapeDtypeStruct((), jnp.float32)
