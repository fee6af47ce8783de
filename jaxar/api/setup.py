"""What a config means here: system, devices and data, all checked before any long work."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxar import assembly, axes, migrations, registry, sharding
from jaxar import config as configs
from jaxar.config import ConfigError

PARTS = ("autoencoder", "quantizer")
"""Groups of a config that decide about the latents of an autoencoder."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a config means on these devices: found out before any long work.

    Attributes:
      system: What is trained and sampled.
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
      training: Whether its batch must divide among the devices: that of samples is filled up.
      devices: What to make the mesh of; all there are by default.

    Raises:
      ConfigError: one sentence on the first setting that cannot work.
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
      ConfigError: one sentence on the first setting that cannot work.
    """
    configs.check(config)
    registry.build("evaluation", config.evaluation)
    return assembly.build_system(config), assembly.build_autoencoder(config)


def require_divisible(
    config: Any, system: Any, sizes: Mapping[str, int], *, training: bool
) -> None:
    """Raises ConfigError where a mesh cannot share out the heads of a system, or its batch.

    Args:
      config: The whole config.
      system: Of the config.
      sizes: Of the mesh, by axis.
      training: Whether the batch counts: that of samples is filled up.
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
    """Returns the data source of a config, compared with the rest of the config.

    Raises:
      ConfigError: shape or classes differ, cached latents are of another autoencoder or image
        size, or the data cannot be opened.
    """
    source = registry.build("data", {**config.data, **changes})
    if tuple(source.shape) != tuple(config.data_shape):
        raise ConfigError(
            f"config.data gives examples of shape {tuple(source.shape)}, config.data_shape says "
            f"{tuple(config.data_shape)}: set --config.data_shape to what the data are."
        )
    if source.num_classes > config.num_classes:
        raise ConfigError(
            f"config.data has {source.num_classes} classes, config.num_classes is "
            f"{config.num_classes}: set --config.num_classes={source.num_classes}."
        )
    _require_same_latents(config, getattr(source, "manifest", {}))
    return source


def open_real(config: Any, **changes: Any) -> Any:
    """Returns the source of the real images that `recognition` reads.

    Raises:
      ConfigError: it cannot be opened, or has not the classes of the config.
    """
    words = config.evaluation.get("reference", "data")
    if words == "data":
        return open_source(config, **changes)
    part = configs.read_spec("config.evaluation.reference", words, config.data)
    source = registry.build("data", {**part, **changes})
    if source.num_classes != config.num_classes:
        raise ConfigError(
            f"config.evaluation.reference has {source.num_classes} classes, the config "
            f"{config.num_classes}: name the images that the latents were made of."
        )
    return source


def _require_same_latents(config: Any, manifest: dict[str, Any]) -> None:
    """Raises ConfigError where cached latents are of another autoencoder or of other images."""
    if "autoencoder" not in manifest:
        return
    stored = migrations.migrated({part: {**manifest[part]} for part in PARTS if part in manifest})
    stored = json.loads(json.dumps(stored))  # whose tuples are lists, as in the manifest
    changed = [
        f"{part}.{key} is {there.get(key)!r} there, {here.get(key)!r} in the config"
        for part, here in autoencoder_settings(config).items()
        for there in [stored.get(part, {})]
        for key in sorted({*here, *there})
        if here.get(key) != there.get(key)
    ]
    if changed:
        raise ConfigError(
            f"The latents of {config.data.path} do not fit this config: {'; '.join(changed)}: "
            "encode the images with this config, or set its autoencoder to theirs."
        )


def autoencoder_settings(config: Any) -> dict[str, dict[str, Any]]:
    """Returns what decides about an autoencoder's latents beside its weights, as JSON keeps it.

    These are the settings of the autoencoder and, where the config has one, of its quantizer.
    """
    return {
        part: {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in sorted(config[part].items())
            if key != "weights"
        }
        for part in PARTS
        if part in config
    }


def ends_with_evaluation(config: Any) -> bool:
    """Returns whether training ends with the config's evaluation: all it needs is named."""
    options = config.evaluation
    return options.name != "none" and bool(options.get("network", "given"))


def default_workdir(name: str) -> Path:
    """Returns runs/<name>."""
    return Path("runs") / name


def describe(mesh: Mesh) -> str:
    """Returns one line on the devices in use."""
    used = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    kind, processes = jax.devices()[0].device_kind, jax.process_count()
    shared = f" in {processes} processes" if processes > 1 else ""
    return f"{mesh.size} of {jax.device_count()} {kind}{shared} ({used}), jax {jax.__version__}"
