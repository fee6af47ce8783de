"""Loads models: from a run, an exported folder, a hub, or a file of released weights."""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxar import checkpoint, migrations, registry, tree
from jaxar import config as configs
from jaxar.config import ConfigError
from jaxar.files import sha256
from jaxar.nn.module import params_of
from jaxar.parallel import sharding
from jaxar.runs.model import Autoencoder, Model, Origin
from jaxar.runs.setup import Prepared, default_workdir, prepare
from jaxar.typing import Params
from jaxar.weights.files import StateFile, read_state

CONFIG = "config.json"
EXPORT = "export.json"
MODEL, TOKENIZER = "model.safetensors", "tokenizer.safetensors"

MAY_CHANGE = (
    "workers",
    "mesh",
    "memory.accumulate",
    "memory.offload_ema",
    "sample",
    "evaluation",
    "checkpoint",
    "log_every",
    "steps",
    "autoencoder.weights",
)
"""Fields that may differ between a run and the config that continues it."""


def load(
    name: str | Path,
    *,
    weights: str | Path | None = None,
    tokenizer: str | Path | None = None,
    workdir: str | Path | None = None,
    step: int | None = None,
    ema: bool = True,
    overrides: Sequence[str] = (),
    trust: Sequence[str] = (),
) -> Model:
    """Returns a model, ready to use.

        load("xar_digits")                                            # trained here, in runs/
        load("xar_b", weights="xAR-B.pth", tokenizer="kl16.ckpt")     # released
        load("exports/xar_b"), load("owner/name")                     # exported; from a hub

    Args:
      name: Name or file of a config, a folder written by `export`, or "owner/name" on the Hugging
        Face hub.
      weights: Released weights of the config's model: .pth, .ckpt, .safetensors or .npz.
      tokenizer: Weights of the autoencoder that decodes the model's latents: a file as above, a
        folder written by `export`, or the folder of a run. Without it, latents are sampled.
      workdir: Folder of a run; "runs/<name>" by default.
      step: Checkpoint of the run; the newest by default.
      ema: Whether to take averaged parameters, where both are stored.
      overrides: Fields of the config to set, e.g. "sample.steps=10"; see `MAY_CHANGE`.
      trust: Packages whose parts the config of a run or an export may name, "my_package"; those
        that a config file given as `name` names itself are trusted.

    Raises:
      ConfigError: there is no such model, or it is of another config.
    """
    if tokenizer is not None:
        overrides = (*overrides, f"autoencoder.weights={str(tokenizer)!r}")
    with configs.trusting(trust):
        if weights is not None:
            if workdir is not None or step is not None:
                raise ConfigError("weights come from a file: leave workdir and step out.")
            config = configs.override(configs.load(str(name)), overrides)
            return from_weights(config, weights, ema=ema)
        if workdir is None and (Path(name) / EXPORT).exists():
            return _from_export(Path(name), overrides)
        if workdir is None and _is_hub_name(str(name)):
            return _from_export(_download(str(name)), overrides)
        given = configs.load(str(name)) if str(name).endswith(".py") else None
        own = str(given.name if given else name)
        folder = Path(workdir) if workdir else default_workdir(own)
        with configs.trusting(configs.own_parts(given) if given else ()):
            return _from_workdir(own, folder, step=step, ema=ema, overrides=overrides)


def from_weights(config: Any, path: str | Path, *, ema: bool = True) -> Model:
    """Returns the model of a config with the weights of a released file.

    Raises:
      ConfigError: the file cannot be read, or its weights are of another model; the message lists
        every unused, missing and misshapen key.
    """
    ready = prepare(config)
    params, level = converted(config, ready, path, ema=ema)
    origin = Origin(Path(path), level)
    return _model(config, ready, sharding.place(params, ready.mesh), origin=origin)


def converted(config: Any, ready: Prepared, path: str | Path, *, ema: bool) -> tuple[Params, str]:
    """Returns the parameters of a released file as NumPy arrays, and their level in the file.

    A training checkpoint has several levels, such as "model" and "model_ema".

    Raises:
      ConfigError: see `from_weights`.
    """
    template = jax.eval_shape(ready.system.init, jax.random.key(0))
    with _state(path, level=None if ema else "model") as state:
        return registry.convert(config.model.name, state, template), state.level


def load_autoencoder(config: Any, ready: Prepared) -> Autoencoder | None:
    """Returns the autoencoder of a config with its weights; None where no weights are given.

    Raises:
      ConfigError: the weights are missing, or of another autoencoder.
    """
    if ready.network is None or not config.autoencoder.weights:
        return None
    path, template = Path(config.autoencoder.weights), params_of(ready.network)
    if not path.exists():
        raise ConfigError(
            f"There is no {path}, where the autoencoder's weights should be: train or download "
            "them, or give another file, folder or run by --tokenizer."
        )
    if path.is_dir():
        with configs.trusting(configs.own_parts(config)):
            params, path = _autoencoder_of(path, template)
    else:
        params = _released(path, config.autoencoder.name, template)
    return Autoencoder(ready.network, sharding.place(params, ready.mesh), Origin(path))


def load_frozen(
    config: Any, system: Any, ready: Prepared, autoencoder: Autoencoder | None
) -> dict[str, Params]:
    """Returns the parameters of the frozen networks of a system, by name, on the devices.

    Args:
      config: The whole config; config.<name>.weights says where the weights of a network are.
      system: Of the config.
      ready: Of the config.
      autoencoder: That of the config, where its weights were given.

    Raises:
      ConfigError: the weights of a network are missing, or not of it.
    """
    require_frozen(system, autoencoder)
    found = {}
    for name, wanted in system.frozen.items():
        if name == "autoencoder" and autoencoder is not None:
            found[name] = autoencoder.params
        else:
            params = _released(config[name].weights, wanted.reader, wanted.shapes)
            found[name] = sharding.place(params, ready.mesh)
    return found


def require_frozen(system: Any, autoencoder: Autoencoder | None) -> None:
    """Raises ConfigError where a system needs an autoencoder and there is none."""
    if "autoencoder" in system.frozen and autoencoder is None:
        raise ConfigError(
            "This system predicts codes of an autoencoder and needs its weights: give "
            "--tokenizer=FILE, a folder or a run."
        )


def _released(path: str | Path, reader: str, shapes: Params) -> Params:
    """Returns what a file of released weights holds of a network, as NumPy arrays."""
    with _state(path) as state:
        return registry.convert(reader, state, shapes)


def require_same_run(config: Any, saved: Any, folder: Path) -> None:
    """Checks that a config continues a run, or describes the model that the run trained.

    Raises:
      ConfigError: a field differs that is not in `MAY_CHANGE`.
    """
    changed = configs.differences(config, saved, ignore=MAY_CHANGE)
    if changed:
        raise ConfigError(
            f"{folder} holds a run with other settings ({'; '.join(changed)}): use another "
            "--workdir, or the settings it began with."
        )


@contextlib.contextmanager
def _state(path: str | Path, level: str | None = None) -> Iterator[StateFile]:
    """Opens the tensors of a file; raises ConfigError, which names the file, for a bad one."""
    try:
        with read_state(path, level) as state:
            yield state
    except ValueError as error:
        text = str(error)
        raise ConfigError(text if str(path) in text else f"{path}: {text}") from error


def _model(config: Any, ready: Prepared, params: Params, *, origin: Origin, step: int = 0) -> Model:
    """Returns the model of a config with its autoencoder, if its weights are given."""
    autoencoder = load_autoencoder(config, ready)
    require_frozen(ready.system, autoencoder)
    return Model(config, ready.system, params, ready.mesh, step, autoencoder, origin)


def _from_workdir(
    name: str, folder: Path, *, step: int | None, ema: bool, overrides: Sequence[str]
) -> Model:
    """Returns the model of a run's checkpoint."""
    path = folder / CONFIG
    if not path.exists():
        raise ConfigError(
            f"There is no trained {name} in {folder}: train it with "
            f"`python -m jaxar.main --config={name} --workdir={folder}`, or give --weights."
        )
    saved = configs.from_json(path.read_text(), path)
    if saved.name != name:
        raise ConfigError(f"{folder} holds a run of {saved.name!r}, not of {name!r}.")
    config = configs.override(saved, overrides)
    require_same_run(config, saved, folder)
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
    part = "ema" if ema else "params"
    params = checkpoints.restore(step, checkpoint.placed(shapes, places), part=part)
    checkpoints.close()
    return _model(config, ready, params, origin=Origin(None, f"{part} of step {step}"), step=step)


def _from_export(folder: Path, overrides: Sequence[str]) -> Model:
    """Returns the model of a folder that `export` wrote, after checking the hashes of its files."""
    facts = json.loads((folder / EXPORT).read_text())
    since = migrations.format_of(facts, folder / EXPORT)
    for name, digest in facts["files"].items():
        if not (folder / name).exists() or sha256(folder / name) != digest:
            raise ConfigError(
                f"{folder / name} is missing or not what was exported (SHA-256 {digest}): copy "
                "the folder again."
            )
    config = configs.from_json((folder / CONFIG).read_text(), folder / CONFIG)
    if (folder / TOKENIZER).exists():
        overrides = (f"autoencoder.weights={str(folder)!r}", *overrides)
    config = configs.override(config, overrides)
    ready = prepare(config)
    shapes = jax.eval_shape(ready.system.init, jax.random.key(0))
    params = sharding.place(_read_exported(folder / MODEL, shapes, since), ready.mesh)
    return _model(config, ready, params, origin=Origin(folder / MODEL), step=facts["step"])


def _read_exported(path: Path, template: Any, since: int) -> Params:
    """Returns the parameter tree of a safetensors file that `export` wrote.

    Args:
      path: File.
      template: Tree of shapes.
      since: Format of the export.

    Raises:
      ConfigError: tree, shapes or dtypes differ from the template's.
    """
    with _state(path) as state:
        params = tree.nest({migrations.parameter(key, since): state[key] for key in state})
    problems = tree.differences(params, template)
    if problems:
        raise ConfigError(f"{path} is of another model:\n  " + "\n  ".join(problems))
    return params


def _autoencoder_of(folder: Path, template: Any) -> tuple[Params, Path]:
    """Returns the autoencoder's parameters in an exported folder or a run, and where they are."""
    if (folder / TOKENIZER).exists():
        tokenizer = folder / TOKENIZER
        return _read_exported(tokenizer, template, _format_of(folder)), tokenizer
    if (folder / EXPORT).exists():
        model = _from_export(folder, ())
    else:
        name = str(configs.from_json((folder / CONFIG).read_text(), folder / CONFIG).name)
        model = _from_workdir(name, folder, step=None, ema=True, overrides=())
    params = model.params.get("autoencoder", {})
    problems = tree.differences(params, template)
    if problems:
        raise ConfigError(
            f"{folder} holds another autoencoder than this config:\n  " + "\n  ".join(problems)
        )
    return params, folder


def as_stored(folder: Path, params: Params) -> Params:
    """Returns the parameters of an autoencoder under the paths at which its run or export has them.

    A hash of parameters is one of their paths too: with these it can be compared with one that an
    older version wrote down.
    """
    if (folder / EXPORT).exists():
        prefix, since = "autoencoder/", _format_of(folder)
        with _state(folder / MODEL) as state:
            names = {key: migrations.parameter(key, since) for key in state}
    else:
        prefix, checkpoints = "ema/autoencoder/", checkpoint.Checkpoints(folder, read_only=True)
        names = checkpoints.names(checkpoints.steps()[-1])
        checkpoints.close()
    stored = {now: path.removeprefix(prefix) for path, now in names.items()}
    leaves = tree.paths(params).items()
    return tree.nest({stored[f"{prefix}{path}"]: leaf for path, leaf in leaves})


def _format_of(folder: Path) -> int:
    """Returns the format of an export; weights that nothing stands beside have today's names."""
    if not (folder / EXPORT).exists():
        return migrations.FORMAT
    return migrations.format_of(json.loads((folder / EXPORT).read_text()), folder / EXPORT)


def _is_hub_name(name: str) -> bool:
    """Returns whether a name has the form "owner/name" and is neither a file nor a folder."""
    pair = re.fullmatch(r"[\w.-]+/[\w.-]+", name)
    return bool(pair) and not name.endswith(".py") and not Path(name).exists()


def _download(name: str) -> Path:
    """Returns the folder of a hub repository, downloaded or found in the hub's cache."""
    try:
        from huggingface_hub import snapshot_download  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            f"There is no folder {name}; as a name on the Hugging Face hub it needs "
            "huggingface_hub: pip install 'jaxar[hub]'."
        ) from error
    files = [CONFIG, EXPORT, MODEL, TOKENIZER]
    try:
        folder = Path(snapshot_download(name, allow_patterns=files))
    except Exception as error:  # no network, no such repository, no permission: many types
        raise ConfigError(
            f"There is no folder {name}, and the hub gave no repository of that name: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not (folder / EXPORT).exists():
        raise ConfigError(
            f"{name} on the hub has no {EXPORT}: it was not written by --mode=export. Download its "
            "weights file and give it as --weights."
        )
    return folder
