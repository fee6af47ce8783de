"""The command line.

    jaxar VERB --config=configs/xar_digits.py
    python -m jaxar.main --config=configs/xar_digits.py --mode=VERB

mean the same. Every field of the config is a flag too: --config.batch_size=512 --config.plan=token
"""

import argparse
import contextlib
import dataclasses
import importlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from jaxar import config as configs
from jaxar import console
from jaxar.config import ConfigError
from jaxar.runs import verbs
from jaxar.runs.verbs import VERBS, Flags

PROGRAM = "jaxar"

STOPPED = 1
"""Exit code of a run that was ended by its data, or by losses that are not finite."""

EXAMPLES = """\
examples:
  python -m jaxar.main --config=configs/xar_digits.py
      train on real handwritten digits, draw samples, judge them (minutes on two cores)
  python -m jaxar.main --config=xar_b --config.data.path=/data/latents
      train the paper's base model on all devices
  python -m jaxar.main --config=configs/xar_digits.py --mode=sample --labels=3,1,4
      sample the newest checkpoint; `jaxar sample --config=... --labels=3,1,4` is the same
  python -m jaxar.main --config=configs/xar_digits.py --mode=edit --mask=center
      regenerate the middle of held-out examples
  python -m jaxar.main --config=xar_b --mode=sample --weights=xAR-B.pth --tokenizer=kl16.ckpt
      sample released weights
  python -m jaxar.main --mode=evaluate --samples=images/ --network=inception.pth --reference=adm.npz
      FID, sFID, Inception Score, precision, recall and KID of any images
  python -m jaxar.main --config=xar_b --mode=encode --source=/data/imagenet/train \\
      --tokenizer=kl16.ckpt --output=/data/latents
      cache the latents of a folder of images
  python -m jaxar.main --config=xar_b --dry_run --config.mesh.data=16 --config.mesh.fsdp=16
      print every parameter, its sharding and its bytes on a device, and stop; needs no data
  python -m jaxar.main --config=xar_b --coordinator=host0:1234 --processes=4 --process_id=0
      one of four processes; on TPU pods and under SLURM and Open MPI no flag is needed

Any field of the config is a flag of its own: --config.batch_size=512, --config.plan=token,
--config.plan="cell(height=4, width=4)"; --print_config shows them all.
"""


def parser(verb: str | None = None) -> argparse.ArgumentParser:
    """Returns the parser of all flags but those that override fields of the config.

    Args:
      verb: The verb that --help explains, with the flags that mean something to it; all by default.
    """
    about = "Train, sample and evaluate autoregressive next-X models.\n\nverbs:\n"
    about += "\n".join(f"  {name:<13}{row.help}" for name, row in VERBS.items())
    if verb is not None:
        about = f"{verb}: {VERBS[verb].help}."
    flags = console.parser(PROGRAM, about, None if verb else EXAMPLES)
    flags.usage = f"{PROGRAM} {verb or '[VERB]'} --config=CONFIG [flags]"
    for field in dataclasses.fields(Flags):
        text, kind = field.metadata["help"], field.metadata["kind"]
        owners = verbs.users(field.name)
        if verb and (field.name == "mode" or (owners and verb not in owners)):
            text = argparse.SUPPRESS
        elif owners and not verb:
            text = f"{text} ({', '.join(owners)})"
        options: dict[str, Any] = {"action": "store_true"} if kind is bool else {"type": kind}
        if field.name == "mode":
            options["choices"] = tuple(VERBS)
        flags.add_argument(f"--{field.name}", default=field.default, help=text, **options)
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; exits with code 2 and one sentence where the input cannot work."""
    try:
        verb, flags, overrides = read(sys.argv[1:] if argv is None else argv)
        config = _config(flags, overrides)
        if flags.print_config:
            print(configs.render(config))
        elif flags.dry_run:
            from jaxar.runs.dry_run import dry_run

            print(dry_run(config))
        else:
            trust = flags.trust.split(",") if flags.trust else []
            own = configs.own_parts(config) if config is not None else ()
            with _joined(verb, flags), configs.trusting([*trust, *own]):
                run(verb, flags, config, overrides)
    except (ConfigError, OSError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        raise SystemExit(console.BAD_INPUT) from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def read(words: Sequence[str]) -> tuple[str, Flags, list[str]]:
    """Returns the verb, the flags, and "key=value" for each field of the config that is set.

    Raises:
      ConfigError: there is no such verb, or the flags do not fit it.
    """
    spelled = words[0] if words and not words[0].startswith("-") else None
    if spelled is not None and spelled not in VERBS:
        raise ConfigError(f"There is no verb {spelled!r}: choose one of {', '.join(VERBS)}.")
    known, rest = parser(spelled).parse_known_args(words[1:] if spelled else words)
    flags = Flags(**vars(known))
    if spelled and flags.mode:
        raise ConfigError(f"Give the verb once: {spelled} or --mode={flags.mode}.")
    verb = spelled or flags.mode or "train"
    verbs.require_fitting(verb, flags)
    overrides = assignments(rest)
    if flags.tokenizer:
        overrides.append(f"autoencoder.weights={flags.tokenizer!r}")
    return verb, flags, overrides


def run(verb: str, flags: Flags, config: Any, overrides: Sequence[str]) -> None:
    """Calls the function of a verb; a run ended by its data or its losses exits with code 1."""
    from jaxar.data.loader import DataError
    from jaxar.runs.command import Command
    from jaxar.training.loop import DivergedError

    module, function = VERBS[verb].run.split(":")
    try:
        getattr(importlib.import_module(module), function)(Command(flags, config, overrides))
    except (DataError, DivergedError) as error:
        print(f"the run stopped: {error}", file=sys.stderr)
        raise SystemExit(STOPPED) from error


def assignments(rest: Sequence[str]) -> list[str]:
    """Returns "key=value" for each --config.key=value or --config.key value.

    Raises:
      ConfigError: something else is left on the command line.
    """
    found, words = [], list(rest)
    while words:
        word = words.pop(0)
        if not word.startswith("--config."):
            raise ConfigError(f"unknown flag {word!r}: --help lists all flags.")
        if "=" not in word and words and not words[0].startswith("--"):
            word = f"{word}={words.pop(0)}"
        found.append(word.removeprefix("--config."))
    return found


def _config(flags: Flags, overrides: Sequence[str]) -> Any:
    """Returns the config that --config names, changed and checked; None where none is named."""
    if flags.config is None:
        if flags.print_config or flags.dry_run:
            raise ConfigError("--print_config and --dry_run need --config.")
        return None
    config = configs.override(configs.load(flags.config), overrides)
    configs.check(config)
    return config


@contextlib.contextmanager
def _joined(verb: str, flags: Flags) -> Iterator[None]:
    """Joins the other processes of the job, if there are any, and ends with them."""
    from jaxar.parallel import distributed

    distributed.start(
        coordinator=flags.coordinator,
        processes=flags.processes,
        process=flags.process_id,
        patience=flags.patience,
        stoppable=VERBS[verb].stoppable,
    )
    if distributed.many() and VERBS[verb].alone:
        raise ConfigError(f"--mode={verb} is the work of one process: start one.")
    with distributed.ending_together():
        yield


if __name__ == "__main__":
    main()
