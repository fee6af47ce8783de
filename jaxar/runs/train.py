"""Runs training in a work directory: checkpoints, pictures, the history and the result."""

from pathlib import Path
from typing import Any

from jaxar import checkpoint, registry, tree
from jaxar import config as configs
from jaxar.config import ConfigError
from jaxar.console import say
from jaxar.files import replace_text, sha256
from jaxar.parallel import distributed
from jaxar.runs import picture, reconstruct, sample
from jaxar.runs.abilities import can
from jaxar.runs.command import Command
from jaxar.runs.load import CONFIG, as_stored, load_autoencoder, load_frozen, require_same_run
from jaxar.runs.model import Autoencoder, Model
from jaxar.runs.result import Evaluation, write_result
from jaxar.runs.setup import default_workdir, describe, open_source, prepare
from jaxar.training.loop import fit
from jaxar.training.memory import averaged
from jaxar.training.progress import read_history

SAMPLES, CURVE = "samples.png", "loss.png"


def run(command: Command) -> None:
    """Trains a model, and evaluates it where its config names an evaluation and all it needs."""
    config, folder = command.config, command.workdir
    model = train(config, workdir=folder)
    evaluation: Evaluation = registry.build("evaluation", config.evaluation)
    if evaluation.complete:
        write_result(model, folder, evaluation.run(model, folder))


def train(config: Any, *, workdir: str | Path | None = None) -> Model:
    """Returns the model trained by a config; a run that stopped in `workdir` goes on from there.

    Writes checkpoints, `config.json`, `metrics.jsonl`, `loss.png` and pictures. Where the config
    names an evaluation and all it needs, `result.json` is left to `evaluate`, and whether it will
    find all of that is checked before training begins.

    Args:
      config: The whole config.
      workdir: Folder of the run; "runs/<name>" by default.

    Raises:
      ConfigError: a setting cannot work, or `workdir` holds another run.
    """
    ready = prepare(config, training=True)
    folder = Path(workdir) if workdir else default_workdir(config.name)
    source = open_source(config)
    autoencoder = load_autoencoder(config, ready)
    if autoencoder is not None:
        _require_same_weights(config, autoencoder, getattr(source, "manifest", {}))
    system = ready.system
    frozen = load_frozen(config, system, ready, autoencoder)

    def model(params, step):
        return Model(config, system, params, ready.mesh, step, autoencoder)

    evaluation: Evaluation = registry.build("evaluation", config.evaluation)
    if evaluation.complete:
        evaluation.check(model({}, 0))
    _remember(config, folder)
    passes = config.steps * config.batch_size / len(source)
    say(
        "data",
        f"{config.data.name}, {len(source):,} examples of {'x'.join(map(str, source.shape))} in "
        f"{source.num_classes} classes; {config.steps:,} steps read each {passes:.1f} times",
    )
    say("devices", describe(ready.mesh))

    def preview(params, ema, step):
        models = {"raw": model(params, step), "average": model(ema, step)}
        _draw(models, source, folder / f"samples_{step:07}.png")
        _draw_curve(folder)

    state = fit(system, frozen, source, config, folder, ready.mesh, preview)
    trained = model(averaged(state.ema, ready.mesh), int(state.step))
    _draw({"average": trained}, source, folder / SAMPLES)
    _draw_curve(folder)
    say("curve", str(folder / CURVE))
    if not evaluation.complete:
        write_result(trained, folder, {})
    return trained


def _draw(models: dict[str, Model], source: Any, path: Path) -> None:
    """Writes a picture of what models can do: samples, or reconstructions, or none."""
    system = next(iter(models.values())).system
    if can(system, "sample"):
        sample.draw(models, path)
    elif can(system, "reconstruct"):
        reconstruct.draw(models, source, path)


def _draw_curve(folder: Path) -> None:
    """Writes the loss over the steps of a run."""
    if distributed.first():
        picture.curve(read_history(folder), folder / CURVE)


def _require_same_weights(config: Any, autoencoder: Autoencoder, manifest: dict[str, Any]) -> None:
    """Raises ConfigError where other weights made the cached latents than will decode them."""
    facts = manifest.get("autoencoder_weights", {})
    there = facts.get("parameters_sha256")
    here = tree.digest(autoencoder.params, distributed.gathered)
    if there not in (None, here) and not _made_before(autoencoder, facts):
        raise ConfigError(
            f"The latents of {config.data.path} were made by an autoencoder whose parameters have "
            f"the SHA-256 {there}; those of {config.autoencoder.weights} have {here}: encode the "
            "images with these weights, or give the weights that made the latents."
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


def _remember(config: Any, folder: Path) -> None:
    """Writes `config.json`, after comparing it with that of an earlier run in the folder.

    Raises:
      ConfigError: the folder holds a run that this config would not continue.
    """
    path = folder / CONFIG
    if path.exists() and checkpoint.exist(folder) and not checkpoint.converted(folder):
        with configs.trusting(configs.own_parts(config)):
            require_same_run(config, configs.from_json(path.read_text(), path), folder)
    if distributed.first():
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(path, configs.to_json(config))
    distributed.meet("the config is written")
