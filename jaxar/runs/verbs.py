"""The verbs of the command line and its flags.

`VERBS` has a row for each verb and `Flags` a field for each flag. The parser, its help and all
errors about flags follow from the two. A new verb is a row and the function that the row names.
"""

import dataclasses
from typing import Any

from jaxar.config import ConfigError


def _flag(text: str, kind: type = str, default: Any = None) -> Any:
    """Returns a field of `Flags`: its help, the type of its value, and its default."""
    return dataclasses.field(default=default, metadata={"help": text, "kind": kind})


@dataclasses.dataclass(frozen=True)
class Flags:
    """The values of all flags, None for those that are not given.

    Flags that no row of `VERBS` lists belong to every verb.
    """

    config: str | None = _flag("config file, or the bare name of one: xar_b")
    mode: str | None = _flag("the verb, where the first word does not give it (default: train)")
    workdir: str | None = _flag("folder of checkpoints and pictures (default: runs/<config>)")
    weights: str | None = _flag("released weights instead of a run: .pth, .ckpt, .safetensors")
    tokenizer: str | None = _flag("weights of the autoencoder: a file, an exported folder or a run")
    source: str | None = _flag(
        "convert: a weights file; encode: a folder of class folders, or a part of config.data; "
        "edit: image files, separated by commas"
    )
    mask: str | None = _flag(
        "what to regenerate: center, border, left, ..., or a picture that is bright there"
    )
    output: str | None = _flag("folder to write")
    labels: str | None = _flag("classes to draw: 3,1,4 (default: a grid of several classes)")
    seed: int | None = _flag("seed of the samples (default: 0); training has --config.seed", int)
    step: int | None = _flag("checkpoint of the run (default: the newest)", int)
    trust: str | None = _flag(
        "package, or several with commas, whose parts the config of a run or an export may name"
    )
    samples: str | None = _flag("folder or .npz of images to judge; needs no config")
    network: str | None = _flag("weights of the Inception network (.pth, .pb), or 'digits'")
    reference: str | None = _flag("statistics or images to compare with (.npz, folder), or 'data'")
    coordinator: str | None = _flag("host:port of process 0 of several (docs/scale.md)")
    processes: int | None = _flag("number of processes", int)
    process_id: int | None = _flag("number of this process, from 0", int)
    patience: float = _flag(
        "seconds without a step after which one of several processes ends (default: 300)",
        float,
        300.0,
    )
    dry_run: bool = _flag("check the config, print its parameters and stop", bool, False)
    print_config: bool = _flag("print every value of the config and stop", bool, False)


@dataclasses.dataclass(frozen=True)
class Verb:
    """One verb.

    Attributes:
      help: What it does, in one line.
      run: "module:function", imported when the verb is used. The function takes a
        `jaxar.runs.command.Command`.
      flags: Flags that mean something to it, beside those of every verb.
      needs: Flags that it cannot do without; "a or b" asks for one of the two.
      alone: Whether it is the work of a single process.
      stoppable: Whether SIGTERM asks it to save its state and stop, instead of ending it.
    """

    help: str
    run: str
    flags: tuple[str, ...]
    needs: tuple[str, ...] = ("config",)
    alone: bool = False
    stoppable: bool = False


_MODEL = ("workdir", "weights", "step")
"""Flags that choose a model: a run, one of its checkpoints, or released weights."""

VERBS: dict[str, Verb] = {
    "train": Verb(
        "train, sample and evaluate; a run that was stopped goes on (default)",
        "jaxar.runs.train:run",
        flags=("workdir",),
        stoppable=True,
    ),
    "sample": Verb(
        "draw samples: a grid, or the classes of --labels",
        "jaxar.runs.sample:run",
        flags=(*_MODEL, "labels", "seed"),
    ),
    "reconstruct": Verb(
        "show examples of the data above what an autoencoder makes of them",
        "jaxar.runs.reconstruct:run",
        flags=("workdir", "step", "seed"),
    ),
    "edit": Verb(
        "regenerate the part of images that --mask covers, of examples or of --source",
        "jaxar.runs.edit:run",
        flags=(*_MODEL, "source", "mask", "labels", "seed"),
        needs=("config", "mask"),
    ),
    "evaluate": Verb(
        "measure a model by its samples, or the images of --samples",
        "jaxar.evaluation.evaluate:run",
        flags=(*_MODEL, "output", "samples", "network", "reference"),
        needs=("config or samples",),
    ),
    "convert": Verb(
        "turn released weights (--source) into a run in --workdir",
        "jaxar.runs.convert:run",
        flags=("workdir", "source"),
        needs=("config", "source"),
        alone=True,
    ),
    "export": Verb(
        "write a model to a folder (--output) that jaxar.load reads",
        "jaxar.runs.export:run",
        flags=(*_MODEL, "output"),
        needs=("config", "output"),
        alone=True,
    ),
    "encode": Verb(
        "cache the latents of images (--source) in a folder (--output)",
        "jaxar.runs.encode:run",
        flags=("source", "output"),
        needs=("config", "source", "output"),
    ),
}


def users(flag: str) -> list[str]:
    """Returns the verbs that list a flag; none of them does where it belongs to every verb."""
    return [name for name, verb in VERBS.items() if flag in verb.flags]


def require_fitting(name: str, flags: Flags) -> None:
    """Checks the flags of a verb.

    Raises:
      ConfigError: a flag is missing, or one is given that means nothing to the verb.
    """
    given = {key for key, value in vars(flags).items() if value is not None}
    for field in dataclasses.fields(flags):
        owners = users(field.name)
        if field.name in given and owners and name not in owners:
            raise ConfigError(
                f"--{field.name} belongs to --mode={' or --mode='.join(owners)}, "
                f"not to --mode={name}."
            )
    needs = [need.split(" or ") for need in VERBS[name].needs]
    missing = [" or --".join(need) for need in needs if not given.intersection(need)]
    if missing:
        raise ConfigError(f"--mode={name} needs --{' and --'.join(missing)}.")
