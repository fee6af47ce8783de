"""The verb `evaluate`: measures a model, or any images."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from jaxar import registry
from jaxar.config import ConfigError
from jaxar.console import say
from jaxar.evaluation.features import open_network
from jaxar.evaluation.fidelity import Fidelity, judge, open_reference
from jaxar.evaluation.sample_set import IMAGES, PROTOCOL
from jaxar.files import replace_text
from jaxar.parallel import distributed, sharding
from jaxar.runs.command import Command
from jaxar.runs.model import Model
from jaxar.runs.result import RESULT, Evaluation, write_result
from jaxar.runs.setup import default_workdir


def run(command: Command) -> None:
    """Evaluates a model, or the images of --samples.

    --network and --reference choose `fidelity`, whatever the config names, and set its fields.

    Raises:
      ConfigError: flags of the two uses are mixed; see `evaluate` and `evaluate_images`.
    """
    flags = command.flags
    network, reference = flags.network or "", flags.reference or ""
    if flags.samples:
        if command.config is not None or command.overrides:
            raise ConfigError("--samples need no config: leave out --config and --tokenizer.")
        evaluate_images(flags.samples, network=network, reference=reference, output=flags.output)
        return
    model = command.model()
    evaluation = registry.build("evaluation", model.config.evaluation)
    if network or reference:
        own = evaluation if isinstance(evaluation, Fidelity) else Fidelity()
        evaluation = dataclasses.replace(
            own, network=network or own.network, reference=reference or own.reference
        )
    evaluate(model, workdir=command.workdir, output=flags.output, evaluation=evaluation)


def evaluate(
    model: Model,
    *,
    workdir: str | Path | None = None,
    output: str | Path | None = None,
    evaluation: Evaluation | None = None,
) -> dict[str, Any]:
    """Returns the figures of a model with their protocol, as `result.json` of its run holds them.

    Args:
      model: The model.
      workdir: Folder of the run; "runs/<name>" by default.
      output: Folder for the samples of `fidelity`; by default one in `workdir`, named by a hash of
        everything that the samples depend on.
      evaluation: How to measure the model; by default as `config.evaluation` says.

    Raises:
      ConfigError: the config names no evaluation, or something that the evaluation needs is
        missing.
    """
    folder = Path(workdir) if workdir else default_workdir(model.config.name)
    chosen: Evaluation = evaluation or registry.build("evaluation", model.config.evaluation)
    if output is not None:
        chosen = _with_output(chosen, str(output))
    return write_result(model, folder, chosen.run(model, folder))


def evaluate_images(
    samples: str | Path,
    *,
    network: str,
    reference: str | Path,
    output: str | Path | None = None,
) -> dict[str, Any]:
    """Returns FID and related figures of images with their protocol, and writes `result.json`.

    Args:
      samples: Folder of images of one size, or .npz with `arr_0`.
      network: File with Inception weights, or "digits".
      reference: Statistics or images, see `jaxar.evaluation.fidelity.Fidelity`.
      output: Folder for features and result; "<samples>.evaluation" by default.

    Raises:
      ConfigError: something is missing or of the wrong kind.
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


def _with_output(evaluation: Evaluation, output: str) -> Evaluation:
    """Returns an evaluation that writes its samples to a folder."""
    if not isinstance(evaluation, Fidelity):
        raise ConfigError("--output is for the samples of config.evaluation='fidelity(...)' only.")
    return dataclasses.replace(evaluation, output=output)
