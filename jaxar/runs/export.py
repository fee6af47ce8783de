"""The verb `export`: a model becomes a folder to share."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxar import config as configs
from jaxar import migrations, tree
from jaxar.config import ConfigError
from jaxar.console import say
from jaxar.files import replace_text, sha256
from jaxar.runs.abilities import can
from jaxar.runs.command import Command
from jaxar.runs.load import CONFIG, EXPORT, MODEL, TOKENIZER
from jaxar.runs.model import Model
from jaxar.runs.result import RESULT
from jaxar.typing import Params

CARD = "README.md"


def run(command: Command) -> None:
    """Exports a model to --output, with the figures of its run on the model card."""
    result = command.workdir / RESULT
    export(command.model(), str(command.flags.output), result=result)


def export(model: Model, output: str | Path, *, result: str | Path | None = None) -> Path:
    """Returns a folder that holds a whole model: `jaxar.load(folder)` reads it back.

    The folder has the parameters as safetensors, those of the autoencoder where there is one, the
    config as JSON, a model card, and the hashes of the weights.

    Args:
      model: What to export.
      output: Folder to write, empty or new.
      result: `result.json` whose figures the card is to show, with their protocol.

    Raises:
      ConfigError: the folder holds an exported model already.
    """
    folder = Path(output)
    if (folder / EXPORT).exists():
        raise ConfigError(f"{folder} holds an exported model already: choose another --output.")
    folder.mkdir(parents=True, exist_ok=True)
    weights = {MODEL: model.params}
    if model.autoencoder is not None:
        weights[TOKENIZER] = model.autoencoder.params
    for name, params in weights.items():
        _write_safetensors(folder / name, params)
    config = model.config
    if config.autoencoder.get("weights"):
        config = configs.override(config, ["autoencoder.weights=''"])
    replace_text(folder / CONFIG, configs.to_json(config))
    for name in weights:  # safetensors makes its files readable for their owner alone
        (folder / name).chmod((folder / CONFIG).stat().st_mode)
    hashes = {name: sha256(folder / name) for name in weights}
    figures = json.loads(Path(result).read_text()) if result and Path(result).exists() else {}
    replace_text(folder / CARD, _card(model, hashes, figures))
    facts = {"format": migrations.FORMAT, "step": model.step}
    facts |= {"origin": model.origin.facts(model.params), "files": hashes}
    replace_text(folder / EXPORT, json.dumps(facts, indent=2) + "\n")
    say("written", f"{', '.join([*weights, CONFIG, CARD])} to {folder}")
    return folder


def _write_safetensors(path: Path, params: Params) -> None:
    """Writes a parameter tree with its paths as names, "encoder/blocks/mlp/up/kernel"."""
    from safetensors.numpy import save_file

    arrays = {key: np.asarray(jax.device_get(leaf)) for key, leaf in tree.paths(params).items()}
    save_file(arrays, path, metadata={"format": "jaxar"})


def _card(model: Model, hashes: dict[str, str], figures: dict[str, Any]) -> str:
    """Returns the model card in Markdown."""
    origin = model.origin.facts(model.params)
    name = model.config.name
    steps = f", {model.step:,} training steps" if model.step else ""
    version = importlib.metadata.version("jaxar")
    lines = [
        "---",
        "library_name: jaxar",
        "---",
        f"# {name}",
        "",
        f"{tree.count(model.params):,} parameters{steps}. Made with jaxar {version}.",
        "",
        "```python",
        "import jaxar",
        "",
        'model = jaxar.load("FOLDER")  # this folder',
    ]
    if can(model.system, "sample"):
        lines += ['jaxar.grid(model.sample([0, 1, 2]), columns=3).save("samples.png")']
    lines += ["```", "", "## Where the weights come from", ""]
    lines += [f"- {key}: {value}" for key, value in origin.items() if value]
    lines += ["", "## Files", "", *(f"- {file}: SHA-256 {h}" for file, h in hashes.items())]
    lines += ["", "## Figures", "", "```json", json.dumps(figures, indent=2), "```"]
    if not figures:
        lines[-3:] = ["None were measured."]
    lines += ["", "## Config", "", "```", configs.render(model.config), "```", ""]
    return "\n".join(lines)
