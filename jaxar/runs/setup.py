"""Turns a config into system, devices and data, and checks them before any long work."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxar import assembly, migrations, registry
from jaxar import config as configs
from jaxar.config import ConfigError
from jaxar.parallel import axes, sharding
from jaxar.signatures import EMPTY

PARTS = ("autoencoder", "quantizer")
"""Groups of a config that decide about the latents of an autoencoder."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """System, autoencoder and mesh of a config.

    Attributes:
      system: The system to train or use.
      network: Template of the autoencoder that decodes the system's latents, or None.
      mesh: Devices.
    """

    system: Any
    network: Any
    mesh: Mesh


def prepare(
    config: Any, *, training: bool = False, devices: Sequence[Any] | None = None
) -> Prepared:
    """Returns system, autoencoder and mesh of a config, after all checks that need no data.

    Args:
      config: The whole config.
      training: Whether `config.batch_size` must divide among the devices; batches of samples are
        padded.
      devices: Devices of the mesh; all devices by default.

    Raises:
      ConfigError: a setting cannot work.
    """
    system, network = build(config)
    try:
        mesh = sharding.make_mesh(config.mesh, devices)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    require_divisible(config, system, mesh.shape, training=training)
    return Prepared(system, network, mesh)


def build(config: Any) -> tuple[Any, Any]:
    """Returns system and autoencoder of a config, after all checks that need neither data nor mesh.

    Raises:
      ConfigError: a setting cannot work.
    """
    configs.check(config)
    registry.build("evaluation", config.evaluation)
    return assembly.build_system(config), assembly.build_autoencoder(config)


def require_divisible(
    config: Any, system: Any, sizes: Mapping[str, int], *, training: bool
) -> None:
    """Checks that attention heads, and in training the batch, divide among the devices of a mesh.

    Args:
      config: The whole config.
      system: The system of the config.
      sizes: Sizes of the mesh by axis.
      training: Whether `config.batch_size` must divide; batches of samples are padded.

    Raises:
      ConfigError: they do not; the message names the nearest sizes that do.
    """
    shapes = jax.eval_shape(system.init, jax.random.key(0))
    tensor, heads = sizes["tensor"], axes.lengths(shapes, "heads")
    if wrong := sorted(size for size in heads if size % tensor):
        choices = sharding.divisors(math.gcd(*heads))
        raise ConfigError(
            f"config.mesh.tensor={tensor} does not divide {wrong[0]} attention heads: choose "
            f"{' or '.join(map(str, sharding.nearest(tensor, choices)))}."
        )
    parts = sharding.batch_parts(sizes) * config.memory.accumulate
    if training and config.batch_size % parts:
        below = config.batch_size // parts * parts
        times = " x memory.accumulate" if config.memory.accumulate > 1 else ""
        raise ConfigError(
            f"config.batch_size={config.batch_size} does not divide into the {parts} parts of "
            f"mesh.slices x mesh.data x mesh.fsdp{times}: choose "
            f"{f'{below} or ' if below else ''}{below + parts}."
        )


def open_source(config: Any, **changes: Any) -> Any:
    """Returns the data source of a config, after comparing it with the rest of the config.

    Args:
      config: The whole config.
      **changes: Fields of config.data to replace.

    Raises:
      ConfigError: the data cannot be opened, their shape or classes differ from the config's, or
        cached latents are of another autoencoder or image size.
    """
    source = registry.build("data", {**config.data, **changes})
    if tuple(source.shape) != tuple(config.data_shape):
        raise ConfigError(
            f"config.data gives examples of shape {tuple(source.shape)}, config.data_shape says "
            f"{tuple(config.data_shape)}: set --config.data_shape to the shape of the data."
        )
    if source.num_classes > config.num_classes:
        raise ConfigError(
            f"config.data has {source.num_classes} classes, config.num_classes is "
            f"{config.num_classes}: set --config.num_classes={source.num_classes}."
        )
    _require_same_latents(config, getattr(source, "manifest", {}))
    return source


def _require_same_latents(config: Any, manifest: dict[str, Any]) -> None:
    """Raises ConfigError where cached latents are of another autoencoder or image size."""
    if "autoencoder" not in manifest:
        return
    stored = migrations.migrated({part: {**manifest[part]} for part in PARTS if part in manifest})
    stored = json.loads(json.dumps(stored))  # whose tuples are lists, as in the manifest
    changed = [
        f"{part}.{key} is {there.get(key)!r} there, {here.get(key)!r} in the config"
        for part, here in autoencoder_settings(config).items()
        for there in [_with_defaults(part, stored.get(part, {}), here)]
        for key in sorted({*here, *there})
        if here.get(key) != there.get(key)
    ]
    if changed:
        raise ConfigError(
            f"The latents of {config.data.path} do not fit this config: {'; '.join(changed)}: "
            "encode the images with this config, or set its autoencoder to theirs."
        )


def _with_defaults(part: str, there: dict[str, Any], here: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of a cache with the defaults of those that it was written without."""
    if there.get("name") != here["name"]:  # which nobody has vouched for
        return there
    defaults = registry.part(part, {"name": here["name"]}, part)  # looks up nothing of `there`
    return {**{k: v for k, v in _listed(defaults).items() if v is not EMPTY}, **there}


def _listed(part: Any) -> dict[str, Any]:
    """Returns the settings of an autoencoder or quantizer but its weights, as JSON keeps them."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in sorted(part.items())
        if key != "weights"
    }


def autoencoder_settings(config: Any) -> dict[str, dict[str, Any]]:
    """Returns the settings that an autoencoder's latents depend on, beside its weights, for JSON.

    They are the fields of `config.autoencoder` and, where there is one, of `config.quantizer`.
    """
    return {part: _listed(config[part]) for part in PARTS if part in config}


def default_workdir(name: str) -> Path:
    """Returns the folder of a config's run: runs/<name>."""
    return Path("runs") / name


def describe(mesh: Mesh) -> str:
    """Returns one line about the devices in use."""
    used = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    kind, processes = jax.devices()[0].device_kind, jax.process_count()
    shared = f" in {processes} processes" if processes > 1 else ""
    return f"{mesh.size} of {jax.device_count()} {kind}{shared} ({used}), jax {jax.__version__}"
