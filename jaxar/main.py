"""The command line.

    python -m jaxar.main --config=configs/xar_digits.py

Every field of the config is a flag too: --config.batch_size=512 --config.plan=token
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from jaxar import config as configs

BAD_INPUT = 2
"""Exit code where a flag, a setting or a file cannot work; one sentence says which."""

STOPPED = 1
"""Exit code of a run that its data or its numbers ended."""

EXAMPLES = """\
examples:
  python -m jaxar.main --config=configs/xar_digits.py
      train on real handwritten digits, draw samples, judge them (minutes on two cores)
  python -m jaxar.main --config=xar_b --config.data.path=/data/latents --config.mesh.data=-1
      train the paper's base model on all devices
  python -m jaxar.main --config=configs/xar_digits.py --mode=sample --labels=3,1,4
      draw from the newest checkpoint
  python -m jaxar.main --config=configs/xar_b.py --dry_run
      print the parameters and stop; needs no data

any field of the config is a flag of its own: --config.batch_size=512, --config.plan=token,
--config.plan="cell(height=4, width=4)"; --print_config shows them all.
"""


def parser() -> argparse.ArgumentParser:
    """Returns the parser of all flags but those that override fields of the config."""
    flags = argparse.ArgumentParser(
        prog="python -m jaxar.main",
        description="Train, sample and evaluate autoregressive next-X models.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags.add_argument("--config", required=True, help="a file of configs/, or its bare name")
    flags.add_argument(
        "--workdir", help="where checkpoints and pictures go (default: runs/<name of the config>)"
    )
    flags.add_argument(
        "--mode",
        choices=("train", "sample", "evaluate"),
        default="train",
        help="train: also samples and evaluates at the end; resumes by itself (default)",
    )
    flags.add_argument("--labels", help="classes to draw in --mode=sample: 3,1,4 (default: a grid)")
    flags.add_argument("--seed", type=int, help="seed of --mode=sample (default: 0)")
    flags.add_argument(
        "--dry_run", action="store_true", help="check the config, print its parameters and stop"
    )
    flags.add_argument("--print_config", action="store_true", help="print every value and stop")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; exits with code 2 and one sentence where the input cannot work."""
    flags = parser()
    known, rest = flags.parse_known_args(argv)
    try:
        overrides = _assignments(rest)
        config = configs.override(configs.load(known.config), overrides)
        configs.check(config)
        if known.mode != "sample" and (known.labels is not None or known.seed is not None):
            raise configs.ConfigError(
                "--labels and --seed belong to --mode=sample; training has --config.seed."
            )
        if known.print_config:
            print(configs.render(config))
            return
        run(config, known, overrides)
    except (configs.ConfigError, OSError) as error:
        print(f"{flags.prog}: {error}", file=sys.stderr)
        raise SystemExit(BAD_INPUT) from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def run(config: Any, flags: argparse.Namespace, overrides: Sequence[str] = ()) -> None:
    """Does what the flags ask of a config; `overrides` are the fields set on the command line."""
    from pathlib import Path

    from jaxar import api
    from jaxar.data.loader import DataError
    from jaxar.training.loop import DivergedError

    if flags.dry_run:
        print(api.parameter_table(api.prepare(config).system))
        return
    workdir = Path(flags.workdir) if flags.workdir else api.default_workdir(config.name)
    if flags.mode == "train":
        try:
            model = api.train(config, workdir=workdir)
        except (DataError, DivergedError) as error:
            print(f"the run stopped: {error}", file=sys.stderr)
            raise SystemExit(STOPPED) from error
        if config.evaluation.name != "none":
            api.evaluate(model, workdir=workdir)
        return
    model = api.load(config.name, workdir=workdir, overrides=overrides)
    if flags.mode == "evaluate":
        api.evaluate(model, workdir=workdir)
    else:
        seed = flags.seed or 0
        path = workdir / f"samples_seed{seed}.png"
        api.draw(model, path, labels=_labels(flags.labels), seed=seed)


def _assignments(rest: Sequence[str]) -> list[str]:
    """Returns "key=value" for each --config.key=value or --config.key value.

    Raises:
      ConfigError: something else is left on the command line.
    """
    found, words = [], list(rest)
    while words:
        word = words.pop(0)
        if not word.startswith("--config."):
            raise configs.ConfigError(f"unknown flag {word!r}: --help lists all flags.")
        if "=" not in word and words and not words[0].startswith("--"):
            word = f"{word}={words.pop(0)}"
        found.append(word.removeprefix("--config."))
    return found


def _labels(text: str | None) -> list[int] | None:
    """Returns the classes of "3,1,4"."""
    if text is None:
        return None
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise configs.ConfigError(
            f"--labels must be whole numbers with commas, as 3,1,4, not {text!r}."
        ) from None


if __name__ == "__main__":
    main()
