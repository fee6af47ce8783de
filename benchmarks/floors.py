"""The least operations that one image needs: its training step and its sampling, counted.

What is counted is the program itself, traced for one image without rematerialisation and with plain
attention (`counting`): the gradient of the loss, and the sampler up to the latents, without an
autoencoder's decoder. The optimiser has no products.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import counting
from jaxar import assembly
from jaxar import config as configs
from jaxar.nn.compute import Compute
from jaxar.runs.abilities import can

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
    if what == "sample" and not can(system, "sample"):
        return None
    program = _gradient(system) if what == "train" else _sampler(system, config)
    return counting.operations(*program)


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


def _weights(system: Any) -> tuple[Any, dict[str, Any]]:
    """Returns the shapes of parameters and of frozen networks."""
    frozen = {name: network.shapes for name, network in system.frozen.items()}
    return jax.eval_shape(system.init, jax.random.key(0)), frozen


def _gradient(system: Any) -> tuple[Any, ...]:
    """Returns the gradient of the loss of one image, and its arguments."""

    def gradient(params: Any, frozen: Any, batch: Any, key: Any) -> Any:
        return jax.grad(lambda params: system.loss(params, frozen, batch, key)[0])(params)

    batch = {
        "data": jax.ShapeDtypeStruct((1, *system.shape), jnp.float32),
        "condition": system.condition.shapes(1),
        "step": jax.ShapeDtypeStruct((), jnp.int32),
    }
    return gradient, *_weights(system), batch, jax.eval_shape(jax.random.key, 0)


def _sampler(system: Any, config: Any) -> tuple[Any, ...]:
    """Returns the sampling of one image, and its arguments."""
    settings = assembly.build_settings(config)

    def sample(params: Any, frozen: Any, keys: Any, condition: Any, guidance: Any) -> Any:
        return system.sample(params, frozen, keys, condition, guidance, settings)

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    guidance = jax.ShapeDtypeStruct((), jnp.float32)
    return sample, *_weights(system), keys, system.condition.shapes(1), guidance
