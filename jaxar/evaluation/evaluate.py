"""Judging what a model draws: by a reader of digits, or by `fidelity` to real images."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxar.config import ConfigError
from jaxar.console import say
from jaxar.data import loader
from jaxar.evaluation.features import open_network
from jaxar.evaluation.fidelity import judge, open_reference
from jaxar.evaluation.recognition import recognition
from jaxar.evaluation.sample_set import IMAGES, PROTOCOL, sample_set, sampling_protocol
from jaxar.files import replace_text
from jaxar.parallel import distributed, sharding
from jaxar.runs.model import Model
from jaxar.runs.setup import default_workdir, open_real
from jaxar.runs.train import RESULT, write_result


def evaluate(
    model: Model, *, workdir: str | Path | None = None, output: str | Path | None = None
) -> dict[str, Any]:
    """Returns the figures of `config.evaluation`, with their protocol, as `result.json` holds them.

    "recognition" judges small labelled sets; "fidelity" draws `samples` images into `output`, goes
    on where it was interrupted, and compares them with the reference.

    Args:
      model: What to judge.
      workdir: Directory of the run, "runs/<name>" by default.
      output: Folder of the samples; by default one in `workdir` named after what they depend on.

    Raises:
      ConfigError: the config names no evaluation, or network or reference are missing.
    """
    config = model.config
    folder = Path(workdir) if workdir else default_workdir(config.name)
    if config.evaluation.name == "none":
        raise ConfigError(
            "config.evaluation is 'none': small labelled data sets can be judged with "
            "--config.evaluation='recognition(per_class=100)', any with 'fidelity(samples=50000)'."
        )
    _require_images(model)
    if config.evaluation.name == "recognition":
        return write_result(model, folder, _recognised(model))
    options = config.evaluation
    mesh = sharding.own_mesh() if distributed.many() else model.mesh
    network = open_network(options.network, mesh)  # what is missing is found before drawing
    reference = open_reference(options.reference, network, config)
    protocol = sampling_protocol(model, count=options.samples, seed=config.seed + 1)
    drawn = Path(output) if output else folder / f"evaluation-{_digest(protocol)[:8]}"
    sample_set(model, drawn, protocol, batch_size=options.batch_size)
    figures = judge(drawn / IMAGES, protocol, network, reference, drawn)
    result = write_result(model, folder, figures)
    if distributed.first():
        replace_text(drawn / RESULT, json.dumps(result, indent=2) + "\n")
    return result


def evaluate_images(
    samples: str | Path,
    *,
    network: str,
    reference: str | Path,
    output: str | Path | None = None,
) -> dict[str, Any]:
    """Returns FID and its kin of any images, with their protocol; writes `result.json`.

    Args:
      samples: Folder of images of one size, or .npz with `arr_0`.
      network: File with Inception weights, or "digits".
      reference: Statistics or images, see `jaxar.evaluation.parts.Fidelity`.
      output: Folder for features and result; "<samples>.evaluation" by default.

    Raises:
      ConfigError: something is missing or of the wrong kind; one sentence says what.
    """
    samples = Path(samples)
    opened = open_network(network, sharding.own_mesh())
    against = open_reference(str(reference), opened, None)
    protocol_file = samples / PROTOCOL
    protocol = json.loads(protocol_file.read_text()) if protocol_file.exists() else None
    folder = Path(output) if output else samples.with_name(samples.name + ".evaluation")
    source = samples / IMAGES if protocol else samples
    figures = judge(source, protocol, opened, against, folder)
    if distributed.first():
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(folder / RESULT, json.dumps(figures, indent=2) + "\n")
    say("written", str(folder / RESULT))
    return figures


def _require_images(model: Model) -> None:
    """Raises ConfigError where a model draws no images, before it draws anything."""
    if model.system.shows != "samples":
        raise ConfigError(f"{model.config.name} reconstructs its data: there are no samples.")
    if model.config.autoencoder.name != "none" and model.autoencoder is None:
        raise ConfigError(
            "This model makes latents: give the autoencoder's weights by --tokenizer=FILE."
        )


def _recognised(model: Model) -> dict[str, Any]:
    """Returns the figures of the recognition protocol for fresh samples of every class."""
    config, classes = model.config, model.system.num_classes
    labels = np.tile(np.arange(classes), config.evaluation.per_class)
    size = config.sample.classes * config.sample.per_class
    images = np.concatenate(
        [
            model.sample(labels[i : i + size], seed=config.seed + 1, first=i)
            for i in range(0, len(labels), size)
        ]
    )
    train, held_out = open_real(config), open_real(config, split="held_out")
    if tuple(train.shape) != images.shape[1:]:
        raise ConfigError(
            f"config.evaluation.reference has images of {tuple(train.shape)}, the model draws "
            f"{images.shape[1:]}: name the images that it was trained on."
        )
    figures = recognition(
        images, labels, train=loader.whole(train), held_out=loader.whole(held_out)
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
    }
    return {**protocol, **figures}


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
