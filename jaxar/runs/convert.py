"""The verb `convert`: released weights become a run."""

from pathlib import Path
from typing import Any

from jaxar import checkpoint, tree
from jaxar import config as configs
from jaxar.config import ConfigError
from jaxar.console import say
from jaxar.files import replace_text
from jaxar.parallel import sharding
from jaxar.runs.command import Command
from jaxar.runs.load import CONFIG, converted
from jaxar.runs.model import Origin
from jaxar.runs.setup import prepare


def run(command: Command) -> None:
    """Converts the weights of --source into a run in --workdir."""
    convert(command.config, str(command.flags.source), workdir=command.workdir)


def convert(config: Any, source: str | Path, *, workdir: str | Path, ema: bool = True) -> Path:
    """Returns the folder of a run whose checkpoint of step 0 holds released weights.

    The run can be sampled and evaluated like any other; training it begins from the weights.

    Args:
      config: Config of the model.
      source: File of released weights.
      workdir: Folder without checkpoints.
      ema: Whether to take averaged weights, where the file has both.

    Raises:
      ConfigError: the weights are of another model, or the folder has checkpoints.
    """
    folder, ready = Path(workdir), prepare(config)
    if checkpoint.exist(folder):
        raise ConfigError(f"{folder} holds a run already: choose another --workdir.")
    params, level = converted(config, ready, source, ema=ema)
    params = sharding.place(params, ready.mesh)
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / CONFIG, configs.to_json(config))
    record = {"weights": Origin(Path(source), level).facts(params)}
    checkpoints = checkpoint.Checkpoints(folder, frugal_for=params)
    checkpoints.save(0, {"ema": params}, record)
    checkpoints.close()
    say("written", f"{tree.count(params):,} parameters of {source} to {folder}")
    return folder
