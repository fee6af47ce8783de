"""Models on their way to other people: released weights to a run, a run to a folder to share."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxar import checkpoint, migrations, sharding, tree
from jaxar import config as configs
from jaxar.api.loading import CONFIG, EXPORT, MODEL, TOKENIZER, converted
from jaxar.api.model import Model, Origin
from jaxar.api.setup import prepare
from jaxar.config import ConfigError
from jaxar.console import say
from jaxar.files import replace_text, sha256
from jaxar.typing import Params

CARD = "README.md"


def convert(config: Any, source: str | Path, *, workdir: str | Path, ema: bool = True) -> Path:
    """Returns the directory of a run whose checkpoint of step 0 holds released weights.

    It can be sampled and evaluated as a run of our own; training it goes on from the weights.

    Args:
      config: Config of the model.
      source: File of released weights.
      workdir: Directory without checkpoints.
      ema: Whether to take averaged weights, where the file has others too.

    Raises:
      ConfigError: the weights are not of this model, or the directory has checkpoints.
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


def export(model: Model, output: str | Path, *, result: str | Path | None = None) -> Path:
    """Returns a folder that holds a model whole: `jaxar.load(folder)` reads it back.

    It holds the parameters as safetensors, the autoencoder's too where there is one, the config as
    JSON, a model card, and the hashes of the weights.

    Args:
      model: What to export.
      output: Folder to write, empty or new.
      result: `result.json` whose figures the card shows, with their protocol.

    Raises:
      ConfigError: the folder holds an export already.
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
    for name in weights:  # which safetensors makes readable for their owner alone
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
    """Writes a tree under its paths, "encoder/blocks/mlp/up/kernel"."""
    from safetensors.numpy import save_file

    arrays = {key: np.asarray(jax.device_get(leaf)) for key, leaf in tree.paths(params).items()}
    save_file(arrays, path, metadata={"format": "jaxar"})


def _card(model: Model, hashes: dict[str, str], figures: dict[str, Any]) -> str:
    """Returns the model card, Markdown."""
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
    if model.system.shows == "samples":
        lines += ['jaxar.grid(model.sample([0, 1, 2]), columns=3).save("samples.png")']
    lines += ["```", "", "## Where the weights come from", ""]
    lines += [f"- {key}: {value}" for key, value in origin.items() if value]
    lines += ["", "## Files", "", *(f"- {file}: SHA-256 {h}" for file, h in hashes.items())]
    lines += ["", "## Figures", "", "```json", json.dumps(figures, indent=2), "```"]
    if not figures:
        lines[-3:] = ["None were measured."]
    lines += ["", "## Config", "", "```", configs.render(model.config), "```", ""]
    return "\n".join(lines)
