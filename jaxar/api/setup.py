"""What a program or a notebook calls: `train`, `load`, `evaluate`, and `Model.sample`.

The command line (`jaxar.main`) calls the same functions; no flags are needed to use them.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxar import checkpoint, picture, registry, sharding, tree
from jaxar import config as configs
from jaxar.config import ConfigError
from jaxar.data import loader
from jaxar.keys import LARGEST_SEED, key_for
from jaxar.metrics.recognition import recognition
from jaxar.system import Settings, System
from jaxar.training.loop import fit
from jaxar.training.progress import read_history, replace_text, say
from jaxar.typing import Params

CONFIG, RESULT, SAMPLES, CURVE = "config.json", "result.json", "samples.png", "loss.png"

MAY_CHANGE = ("workers", "mesh", "sample", "evaluation", "checkpoint", "log_every", "steps")
"""Fields that a run may be continued with although they differ from those it began with."""


@dataclasses.dataclass
class Model:
    """A system with parameters, ready to sample.

    Attributes:
      config: Its whole config.
      system: Its parts.
      params: Its parameters, on the devices of `mesh`.
      mesh: Devices.
      step: Training steps behind the parameters.
    """

    config: Any
    system: System
    params: Params
    mesh: Mesh
    step: int = 0

    def sample(
        self,
        labels: Sequence[int] | np.ndarray,
        *,
        seed: int = 0,
        guidance: float | None = None,
        steps: int | None = None,
        solver: str | None = None,
        first: int = 0,
    ) -> np.ndarray:
        """Returns generated data, (b, h, w, c) float32: images in [-1, 1], or latents.

        The same shapes and settings compile once. An image depends on its label, the seed and its
        number alone, not on the batch it is drawn in.

        Args:
          labels: One class in [0, num_classes) for each image.
          seed: Seed of all noise.
          guidance: Weight of classifier-free guidance, at least 1; 1 is none.
          steps: Solver steps for each entity.
          solver: "euler", "heun", "midpoint", "multistep" or "euler_maruyama".
          first: Number of the first image: image i is drawn with the noise of number first + i.

        Raises:
          ValueError: a label is out of range, or a setting makes no sense; names the range.
        """
        labels = self._checked(labels)
        settings = registry.build_settings(
            self.config, guidance=guidance, steps=steps, solver=solver
        )
        weight = self.config.sample.guidance if guidance is None else guidance
        if not (np.isfinite(weight) and weight >= 1):
            raise ValueError(f"guidance must be a number of 1 or more, not {weight}.")
        if first < 0:
            raise ValueError(f"first must be 0 or more, not {first}.")
        if not 0 <= seed <= LARGEST_SEED:
            raise ValueError(f"seed must lie in [0, {LARGEST_SEED}], not {seed}.")
        filled = -len(labels) % sharding.batch_parts(self.mesh)
        padded = np.pad(labels, (0, filled))
        place = sharding.batch_sharding(self.mesh)
        numbers = jax.device_put(np.arange(first, first + len(padded), dtype=np.uint32), place)
        run = _sampler(self.system, settings)
        images = run(self.params, seed, numbers, jax.device_put(padded, place), float(weight))
        return np.asarray(jax.device_get(images))[: len(labels)]

    def _checked(self, labels: Sequence[int] | np.ndarray) -> np.ndarray:
        array, classes = np.asarray(labels), self.system.num_classes
        if array.ndim != 1 or not array.size or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(
                f"labels must be a list of whole numbers in [0, {classes}), not {labels!r}."
            )
        wrong = array[(array < 0) | (array >= classes)]
        if wrong.size:
            raise ValueError(f"labels must lie in [0, {classes}), not {wrong[0]}.")
        return array.astype(np.int32)


@functools.lru_cache(maxsize=64)
def _sampler(system: System, settings: Settings) -> Any:
    """Returns the jitted sampler; one object for each setting, so that JAX finds it compiled."""

    def run(params, seed, numbers, labels, guidance):
        key = key_for("sample", seed)
        keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)
        return system.sample(params, keys, labels, guidance, settings)

    return jax.jit(run)


def load(
    name: str,
    *,
    workdir: str | Path | None = None,
    step: int | None = None,
    ema: bool = True,
    overrides: Sequence[str] = (),
) -> Model:
    """Returns a trained model.

    Args:
      name: Name of a config, e.g. "xar_digits".
      workdir: Directory of its run; "runs/<name>" by default.
      step: Checkpoint to load; the newest by default.
      ema: Whether to take the averaged parameters.
      overrides: Fields of its config to set, e.g. "sample.steps=10"; see `MAY_CHANGE`.

    Raises:
      ConfigError: there is no such run or checkpoint, or it is of another config.
    """
    folder = Path(workdir) if workdir else default_workdir(name)
    path = folder / CONFIG
    if not path.exists():
        raise ConfigError(
            f"There is no trained {name} in {folder}: train it with "
            f"`python -m jaxar.main --config={name} --workdir={folder}`."
        )
    saved = configs.from_json(path.read_text())
    if saved.name != name:
        raise ConfigError(f"{folder} holds a run of {saved.name!r}, not of {name!r}.")
    config = configs.override(saved, overrides)
    _require_same_run(config, saved, folder)
    return _restore(config, folder, step=step, ema=ema)


def train(config: Any, *, workdir: str | Path | None = None) -> Model:
    """Returns the model trained by a config; goes on where an earlier run in `workdir` stopped.

    Writes checkpoints, `config.json`, `metrics.jsonl`, `loss.png` and sample grids; `result.json`
    is left to `evaluate` where the config names an evaluation.

    Raises:
      ConfigError: a setting cannot work, or `workdir` holds another run.
    """
    ready = prepare(config)
    folder = Path(workdir) if workdir else default_workdir(config.name)
    source = open_source(config)
    if config.evaluation.name != "none":
        open_source(config, split="held_out")  # what the end of the run needs is found missing now
    _remember(config, folder)
    passes = config.steps * config.batch_size / len(source)
    say(
        "data",
        f"{config.data.name}, {len(source):,} examples of {'x'.join(map(str, source.shape))} in "
        f"{source.num_classes} classes; {config.steps:,} steps read each {passes:.1f} times",
    )
    say("devices", describe(ready.mesh))

    def preview(params, step):
        model = Model(config, ready.system, params, ready.mesh, step)
        draw(model, folder / f"samples_{step:07}.png")
        picture.curve(read_history(folder), folder / CURVE)

    state = fit(ready.system, source, config, folder, ready.mesh, preview)
    model = Model(config, ready.system, state.ema, ready.mesh, int(state.step))
    draw(model, folder / SAMPLES)
    picture.curve(read_history(folder), folder / CURVE)
    say("curve", str(folder / CURVE))
    if config.evaluation.name == "none":
        _write_result(model, folder, {})
    return model


def draw(model: Model, path: Path, *, labels: Sequence[int] | None = None, seed: int = 0) -> None:
    """Writes a grid of samples with a class a row, or one row of the given labels.

    The noise is the same for every call with one seed, so grids of a run can be compared. Latents,
    which no picture shows, are written as .npy instead.

    Raises:
      ConfigError: a label is out of range.
    """
    began, options = time.monotonic(), model.config.sample
    classes = np.arange(min(options.classes, model.system.num_classes))
    rows = [] if labels else [str(c) for c in classes]
    try:
        images = model.sample(labels or np.repeat(classes, options.per_class), seed=seed)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    if images.shape[-1] in (1, 3):
        columns = options.per_class if rows else len(images)
        picture.grid(images, columns=columns, rows=rows).save(path)
    else:
        path = path.with_suffix(".npy")
        np.save(path, images)
    say("samples", f"{path} in {time.monotonic() - began:.1f} s")


def evaluate(model: Model, *, workdir: str | Path | None = None) -> dict[str, Any]:
    """Returns the figures of `config.evaluation` and writes them to `result.json`.

    Raises:
      ConfigError: the config names no evaluation.
    """
    config = model.config
    folder = Path(workdir) if workdir else default_workdir(config.name)
    if config.evaluation.name == "none":
        raise ConfigError(
            "config.evaluation is 'none': small labelled data sets can be judged with "
            "--config.evaluation='recognition(per_class=100)'."
        )
    began, classes = time.monotonic(), model.system.num_classes
    labels = np.tile(np.arange(classes), config.evaluation.per_class)
    size = config.sample.classes * config.sample.per_class
    images = np.concatenate(
        [
            model.sample(labels[i : i + size], seed=config.seed + 1, first=i)
            for i in range(0, len(labels), size)
        ]
    )
    figures = recognition(
        images,
        labels,
        train=loader.whole(open_source(config)),
        held_out=loader.whole(open_source(config, split="held_out")),
    )
    say(
        "result",
        f"{figures['recognised']:.1%} of {len(labels):,} samples are recognised as their class "
        f"(held-out real digits: {figures['recognised_held_out_real']:.1%}); "
        f"distance to training data {figures['distance_to_train']:.2f} "
        f"(between training data: {figures['distance_train_to_train']:.2f})",
    )
    protocol = {
        "weights": "exponential moving average",
        "sampling": {**config.sample, "seed": config.seed + 1},
        "seconds": round(time.monotonic() - began, 1),
    }
    return _write_result(model, folder, {**protocol, **figures})


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a config means on these devices: found out before any long work."""

    system: System
    mesh: Mesh


def prepare(config: Any) -> Prepared:
    """Returns system and mesh of a config, after all checks that need no data.

    Raises:
      ConfigError: one sentence on the first setting that cannot work.
    """
    configs.check(config)
    if jax.process_count() > 1:
        raise ConfigError("jaxar runs in one process for now: start it on one host only.")
    registry.build("evaluation", config.evaluation)
    system = registry.build_system(config)
    try:
        registry.build_settings(config)
        mesh = sharding.make_mesh(config.mesh)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    parts = sharding.batch_parts(mesh)
    if config.batch_size % parts:
        below = config.batch_size // parts * parts
        raise ConfigError(
            f"config.batch_size={config.batch_size} does not divide among the {parts} devices of "
            f"mesh.data x mesh.fsdp: choose {below or parts} or {below + parts}."
        )
    return Prepared(system, mesh)


def parameter_table(system: System) -> str:
    """Returns the table that --dry_run prints: path, shape and count of every parameter."""
    shapes = tree.paths(jax.eval_shape(system.init, jax.random.key(0)))
    rows = [(path, str(tuple(leaf.shape)), f"{leaf.size:,}") for path, leaf in shapes.items()]
    total = sum(leaf.size for leaf in shapes.values())
    rows += [("total", "", f"{total:,}")]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(
        f"{name:<{widths[0]}}  {shape:<{widths[1]}}  {number:>{widths[2]}}"
        for name, shape, number in rows
    )


def open_source(config: Any, **changes: Any) -> Any:
    """Returns the data source of a config, its shape and classes compared with the config's.

    Raises:
      ConfigError: they differ, or the data cannot be opened.
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
    return source


def default_workdir(name: str) -> Path:
    """Returns runs/<name>."""
    return Path("runs") / name


def describe(mesh: Mesh) -> str:
    """Returns one line on the devices in use."""
    used = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    kind = jax.devices()[0].device_kind
    return f"{mesh.size} of {jax.device_count()} {kind} ({used}), jax {jax.__version__}"


def _restore(config: Any, folder: Path, *, step: int | None, ema: bool) -> Model:
    """Returns the model of a checkpoint."""
    ready = prepare(config)
    if not checkpoint.exist(folder):
        raise ConfigError(f"{folder} has no checkpoint yet: its run stopped before the first.")
    checkpoints = checkpoint.Checkpoints(folder, read_only=True)
    steps = checkpoints.steps()
    if step is not None and step not in steps:
        raise ConfigError(f"{folder} has checkpoints of steps {steps}, not of {step}.")
    step = steps[-1] if step is None else step
    shapes = jax.eval_shape(ready.system.init, jax.random.key(0))
    places = sharding.shardings(shapes, ready.mesh)
    params = checkpoints.restore(
        step, checkpoint.placed(shapes, places), part="ema" if ema else "params"
    )
    checkpoints.close()
    return Model(config, ready.system, params, ready.mesh, step)


def _remember(config: Any, folder: Path) -> None:
    """Writes `config.json`, after comparing with the one that is there if it was trained with.

    Raises:
      ConfigError: the directory holds a run that this config would not continue.
    """
    path = folder / CONFIG
    if path.exists() and checkpoint.exist(folder):
        _require_same_run(config, configs.from_json(path.read_text()), folder)
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(path, configs.to_json(config))


def _write_result(model: Model, folder: Path, figures: dict[str, Any]) -> dict[str, Any]:
    """Returns what `result.json` now holds: the run, and figures of an evaluation."""
    history = read_history(folder)
    result = {
        "config": model.config.name,
        "step": model.step,
        "parameters": tree.count(model.params),
        "training_loss": history[-1]["loss"] if history else None,
        **figures,
    }
    replace_text(folder / RESULT, json.dumps(result, indent=2) + "\n")
    say("written", str(folder / RESULT))
    return result


def _require_same_run(config: Any, saved: Any, folder: Path) -> None:
    """Raises ConfigError where a run would not be continued, or a model not be what was trained."""
    changed = configs.differences(config, saved, ignore=MAY_CHANGE)
    if changed:
        raise ConfigError(
            f"{folder} holds a run with other settings ({'; '.join(changed)}): use another "
            "--workdir, or the settings it began with."
        )
