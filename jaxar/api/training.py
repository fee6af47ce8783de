"""Training as a person meets it: a directory with checkpoints, pictures, a history and a result."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxar import checkpoint, distributed, picture, tree
from jaxar import config as configs
from jaxar.api.loading import CONFIG, as_stored, attached, load_autoencoder, require_same_run
from jaxar.api.model import Autoencoder, Model
from jaxar.api.setup import (
    default_workdir,
    describe,
    ends_with_evaluation,
    open_real,
    open_source,
    prepare,
)
from jaxar.config import ConfigError
from jaxar.console import say
from jaxar.files import replace_text, sha256
from jaxar.training.loop import fit
from jaxar.training.memory import averaged
from jaxar.training.progress import read_history

RESULT, SAMPLES, CURVE = "result.json", "samples.png", "loss.png"


def train(config: Any, *, workdir: str | Path | None = None) -> Model:
    """Returns the model trained by a config; goes on where an earlier run in `workdir` stopped.

    Writes checkpoints, `config.json`, `metrics.jsonl`, `loss.png` and sample grids; `result.json`
    is left to `evaluate` where the config names an evaluation and all it needs.

    Raises:
      ConfigError: a setting cannot work, or `workdir` holds another run.
    """
    ready = prepare(config, training=True)
    folder = Path(workdir) if workdir else default_workdir(config.name)
    source = open_source(config)
    if config.evaluation.name == "recognition":
        open_real(config, split="held_out")  # what the end of the run needs is found missing now
    autoencoder = load_autoencoder(config, ready)
    if autoencoder is not None:
        _require_same_weights(config, autoencoder, getattr(source, "manifest", {}))
    system = attached(ready.system, autoencoder)
    _remember(config, folder)
    passes = config.steps * config.batch_size / len(source)
    say(
        "data",
        f"{config.data.name}, {len(source):,} examples of {'x'.join(map(str, source.shape))} in "
        f"{source.num_classes} classes; {config.steps:,} steps read each {passes:.1f} times",
    )
    say("devices", describe(ready.mesh))

    def model(params, step):
        return Model(config, system, params, ready.mesh, step, autoencoder)

    def preview(params, ema, step):
        models = {"raw": model(params, step), "average": model(ema, step)}
        draw(models, folder / f"samples_{step:07}.png")
        _draw_curve(folder)

    state = fit(system, source, config, folder, ready.mesh, preview)
    trained = model(averaged(state.ema, ready.mesh), int(state.step))
    draw({"average": trained}, folder / SAMPLES)
    _draw_curve(folder)
    say("curve", str(folder / CURVE))
    if not ends_with_evaluation(config):
        write_result(trained, folder, {})
    return trained


def draw(
    models: dict[str, Model],
    path: Path,
    *,
    labels: Sequence[int] | None = None,
    seed: int = 0,
) -> None:
    """Writes a picture of what models make: a grid for each, side by side under their names.

    Systems that sample show a class a row, or one row of the given labels; systems that
    reconstruct show examples of their data above what they make of them. Noise and examples are
    the same for every call with one seed, so pictures of a run can be compared. Latents, which no
    picture shows, are written as .npy instead.

    Args:
      models: Models of one config, by the name to write above their grid; one alone has none.
      path: File to write.
      labels: Classes to draw.
      seed: Of the noise.

    Raises:
      ConfigError: a label is out of range.
    """
    began = time.monotonic()
    first = next(iter(models.values()))
    show = {"samples": _samples, "reconstructions": _reconstructions}[first.system.shows]
    rows, columns, grids = show(models, labels, seed)
    if not distributed.first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if grids[0].shape[-1] in (1, 3):
        sheets = [picture.grid(images, columns=columns, rows=rows) for images in grids]
        picture.side_by_side(sheets, list(models) if len(models) > 1 else []).save(path)
    else:
        path = path.with_suffix(".npy")
        np.save(path, np.stack(grids) if len(grids) > 1 else grids[0])
    say("picture", f"{path} in {time.monotonic() - began:.1f} s")


def write_result(model: Model, folder: Path, figures: dict[str, Any]) -> dict[str, Any]:
    """Returns what `result.json` of a run now holds: the run, and figures of an evaluation.

    Nothing in it depends on when or how fast it was made, so a repeated run gives the same file.
    """
    history = read_history(folder)
    result = {
        "config": model.config.name,
        "step": model.step,
        "parameters": tree.count(model.params),
        "training_loss": history[-1]["loss"] if history else None,
        **figures,
    }
    if distributed.first():
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(folder / RESULT, json.dumps(result, indent=2) + "\n")
        say("written", str(folder / RESULT))
    return result


def _draw_curve(folder: Path) -> None:
    if distributed.first():
        picture.curve(read_history(folder), folder / CURVE)


def _require_same_weights(config: Any, autoencoder: Autoencoder, manifest: dict[str, Any]) -> None:
    """Raises ConfigError where cached latents were made by other weights than will decode them."""
    facts = manifest.get("autoencoder_weights", {})
    there = facts.get("parameters_sha256")
    here = tree.digest(autoencoder.params, distributed.gathered)
    if there not in (None, here) and not _made_before(autoencoder, facts):
        raise ConfigError(
            f"The latents of {config.data.path} were made by an autoencoder whose parameters have "
            f"the SHA-256 {there}; those of {config.autoencoder.weights} have {here}: encode the "
            "images with these weights, or give the weights they were made by."
        )


def _made_before(autoencoder: Autoencoder, facts: dict[str, Any]) -> bool:
    """Returns whether a cache was made by an autoencoder whose parameters had other paths then."""
    path = autoencoder.origin.path
    if path is None:
        return False
    if path.is_file():
        return facts.get("sha256") == sha256(path)
    stored = as_stored(path, autoencoder.params)
    return facts["parameters_sha256"] == tree.digest(stored, distributed.gathered)


def _samples(models: dict[str, Model], labels: Sequence[int] | None, seed: int) -> Any:
    """Returns names of rows, columns, and (b, h, w, c) samples of each model."""
    model = next(iter(models.values()))
    options = model.config.sample
    classes = np.arange(min(options.classes, model.system.num_classes))
    rows = [] if labels else [str(c) for c in classes]
    drawn = labels or np.repeat(classes, options.per_class)
    try:
        grids = [model.sample(drawn, seed=seed) for model in models.values()]
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return rows, options.per_class if rows else len(drawn), grids


def _reconstructions(models: dict[str, Model], labels: Sequence[int] | None, seed: int) -> Any:
    """Returns names of rows, columns, and rows of examples above their reconstructions."""
    if labels:
        raise ConfigError("--labels belong to models that sample; this one reconstructs its data.")
    model = next(iter(models.values()))
    options, source = model.config.sample, open_source(model.config)
    count = min(options.classes * options.per_class, len(source))
    numbers = np.random.default_rng(seed).permutation(len(source))[:count].tolist()
    images = np.stack([source.read(i, np.random.default_rng(seed))["data"] for i in numbers])
    columns = min(options.per_class, count)
    grids = []
    for model in models.values():
        made = distributed.gathered(model.system.reconstruct(model.params, images))
        lines = [slice(i, i + columns) for i in range(0, count - count % columns, columns)]
        pairs = [part for line in lines for part in (images[line], made[line])]
        grids.append(np.concatenate(pairs))
    return ["data", "made"] * (count // columns), columns, grids


def _remember(config: Any, folder: Path) -> None:
    """Writes `config.json`, after comparing with the one that is there if it was trained with.

    Raises:
      ConfigError: the directory holds a run that this config would not continue.
    """
    path = folder / CONFIG
    if path.exists() and checkpoint.exist(folder) and not checkpoint.converted(folder):
        require_same_run(config, configs.from_json(path.read_text(), path), folder)
    if distributed.first():
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(path, configs.to_json(config))
    distributed.meet("the config is written")
