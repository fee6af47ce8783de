"""The command line.

    python -m jaxar.main --config=configs/xar_digits.py

Every field of the config is a flag too: --config.batch_size=512 --config.plan=token
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from jaxar import config as configs
from jaxar import console

"""Exit code where a flag, a setting or a file cannot work; one sentence says which."""

STOPPED = 1
"""Exit code of a run that its data or its numbers ended."""

EXAMPLES = """\
examples:
  python -m jaxar.main --config=configs/xar_digits.py
      train on real handwritten digits, draw samples, judge them (minutes on two cores)
  python -m jaxar.main --config=xar_b --config.data.path=/data/latents
      train the paper's base model on all devices
  python -m jaxar.main --config=configs/xar_digits.py --mode=sample --labels=3,1,4
      draw from the newest checkpoint
  python -m jaxar.main --config=configs/xar_digits.py --mode=edit --mask=center
      make the middle of held-out examples anew
  python -m jaxar.main --config=xar_b --mode=sample --weights=xAR-B.pth --tokenizer=kl16.ckpt
      draw from released weights
  python -m jaxar.main --mode=evaluate --samples=images/ --network=inception.pth --reference=adm.npz
      FID, sFID, Inception Score, precision, recall and KID of any images
  python -m jaxar.main --config=xar_b --mode=encode --source=/data/imagenet/train \\
      --tokenizer=kl16.ckpt --output=/data/latents
      cache the latents of a folder of images
  python -m jaxar.main --config=xar_b --dry_run --config.mesh.data=16 --config.mesh.fsdp=16
      print every parameter, its sharding and its bytes on a device, and stop; needs no data
  python -m jaxar.main --config=xar_b --coordinator=host0:1234 --processes=4 --process_id=0
      one of four processes; on TPU pods and under SLURM and Open MPI no flag is needed

any field of the config is a flag of its own: --config.batch_size=512, --config.plan=token,
--config.plan="cell(height=4, width=4)"; --print_config shows them all.
"""

MODES = {
    "train": "also samples and evaluates at the end; resumes by itself (default)",
    "sample": "draw a grid, or the classes of --labels",
    "edit": "make parts of images anew (--mask), of examples or of --source",
    "evaluate": "draw samples and judge them, or judge the images of --samples",
    "convert": "released weights (--source) to a checkpoint in --workdir",
    "export": "a model to a folder (--output) that jaxar.load reads",
    "encode": "images (--source) to a cache of latents (--output)",
}

BELONGS = {
    "workdir": ("train", "sample", "edit", "evaluate", "convert", "export"),
    "weights": ("sample", "edit", "evaluate", "export"),
    "tokenizer": tuple(MODES),
    "source": ("convert", "edit", "encode"),
    "mask": ("edit",),
    "output": ("evaluate", "export", "encode"),
    "labels": ("sample", "edit"),
    "seed": ("sample", "edit"),
    "step": ("sample", "edit", "evaluate", "export"),
    "samples": ("evaluate",),
    "network": ("evaluate",),
    "reference": ("evaluate",),
}
"""The modes that each flag means something to; elsewhere it is refused."""


def parser() -> argparse.ArgumentParser:
    """Returns the parser of all flags but those that override fields of the config."""
    flags = console.parser(
        "python -m jaxar.main",
        "Train, sample and evaluate autoregressive next-X models.",
        EXAMPLES,
    )
    add = flags.add_argument
    add("--config", help="a file of configs/, or its bare name; needed but with --samples")
    modes = "; ".join(f"{mode}: {what}" for mode, what in MODES.items())
    add("--mode", choices=tuple(MODES), default="train", help=modes)
    add("--workdir", help="where checkpoints and pictures go (default: runs/<name of the config>)")
    add("--weights", help="released weights to use instead of a run: .pth, .ckpt, .safetensors")
    add("--tokenizer", help="weights of the autoencoder: a file, an exported folder or a run")
    add(
        "--source",
        help="convert: a weights file; encode: a folder of class folders, or a data part; edit: "
        "image files, with commas",
    )
    add("--mask", help="edit: what to make anew: center, border, left, ..., or a bright picture")
    add("--output", help="folder to write")
    add("--labels", help="classes to draw: 3,1,4 (default: a grid)")
    add("--seed", type=int, help="seed of the samples (default: 0); training has --config.seed")
    add("--step", type=int, help="checkpoint of the run (default: the newest)")
    add(
        "--trust",
        metavar="PACKAGE",
        help="package, or several with commas, whose parts the config of a run or an export names",
    )
    add("--samples", help="folder or .npz of images to judge; needs no config")
    add("--network", help="weights of the Inception network (.pth, .pb), or 'digits'")
    add("--reference", help="statistics or images to compare with (.npz, a folder), or 'data'")
    add("--coordinator", help="host:port of process 0, where there are several (docs/scale.md)")
    add("--processes", type=int, help="how many processes there are")
    add("--process_id", type=int, help="number of this process, from 0 on")
    add(
        "--patience",
        type=float,
        default=300.0,
        help="seconds without a step after which one of several processes ends (default: 300)",
    )
    add("--dry_run", action="store_true", help="check the config, print its parameters and stop")
    add("--print_config", action="store_true", help="print every value and stop")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; exits with code 2 and one sentence where the input cannot work."""
    flags = parser()
    known, rest = flags.parse_known_args(argv)
    try:
        _require_fitting(known)
        overrides = assignments(rest)
        if known.samples:
            with _joined(known):
                _judge_images(known, overrides)
            return
        if known.tokenizer:
            overrides.append(f"autoencoder.weights={known.tokenizer!r}")
        config = configs.override(configs.load(known.config), overrides)
        configs.check(config)
        if known.print_config:
            print(configs.render(config))
            return
        if known.dry_run:
            from jaxar.runs.dry_run import dry_run

            print(dry_run(config))
            return
        trust = known.trust.split(",") if known.trust else []
        with _joined(known), configs.trusting([*trust, *configs.own_parts(config)]):
            run(config, known, overrides)
    except (configs.ConfigError, OSError) as error:
        print(f"{flags.prog}: {error}", file=sys.stderr)
        raise SystemExit(console.BAD_INPUT) from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None


@contextlib.contextmanager
def _joined(flags: argparse.Namespace) -> Iterator[None]:
    """Joins the other processes of the job, if there are any, and ends with them."""
    from jaxar.parallel import distributed

    distributed.start(
        coordinator=flags.coordinator,
        processes=flags.processes,
        process=flags.process_id,
        patience=flags.patience,
        stoppable=flags.mode == "train",
    )
    if distributed.many() and flags.mode in ("convert", "export"):
        raise configs.ConfigError(f"--mode={flags.mode} is the work of one process: start one.")
    with distributed.ending_together():
        yield


def run(config: Any, flags: argparse.Namespace, overrides: Sequence[str] = ()) -> None:
    """Does what the flags ask of a config; `overrides` are the fields set on the command line."""
    from pathlib import Path

    from jaxar.data.loader import DataError
    from jaxar.runs import setup
    from jaxar.training.loop import DivergedError

    workdir = Path(flags.workdir) if flags.workdir else setup.default_workdir(config.name)
    act = {"train": _train, "convert": _convert, "encode": _encode}.get(flags.mode, _use)
    try:
        act(config, flags, overrides, workdir)
    except (DataError, DivergedError) as error:
        print(f"the run stopped: {error}", file=sys.stderr)
        raise SystemExit(STOPPED) from error


def _train(config: Any, flags: argparse.Namespace, overrides: Sequence[str], workdir: Any) -> None:
    from jaxar.evaluation import evaluate as evaluation
    from jaxar.runs import setup
    from jaxar.runs import train as training

    model = training.train(config, workdir=workdir)
    if setup.ends_with_evaluation(config):
        evaluation.evaluate(model, workdir=workdir)


def _convert(config: Any, flags: argparse.Namespace, overrides: Any, workdir: Any) -> None:
    from jaxar.runs import export as exporting

    exporting.convert(config, flags.source, workdir=workdir)


def _encode(config: Any, flags: argparse.Namespace, overrides: Any, workdir: Any) -> None:
    from jaxar.runs import encode as encoding

    encoding.encode(config, flags.source, flags.output)


def _use(config: Any, flags: argparse.Namespace, overrides: Sequence[str], workdir: Any) -> None:
    """Samples, edits, evaluates or exports a trained or released model."""
    from jaxar.evaluation import evaluate as evaluation
    from jaxar.runs import edit as editing
    from jaxar.runs import export as exporting
    from jaxar.runs import load as loading
    from jaxar.runs import train as training

    overrides = [*overrides, *_evaluation_overrides(config, flags)]
    if flags.weights:
        model = loading.load(
            flags.config, weights=flags.weights, step=flags.step, overrides=overrides
        )
    else:
        model = loading.load(config.name, workdir=workdir, step=flags.step, overrides=overrides)
    if flags.mode == "evaluate":
        evaluation.evaluate(model, workdir=workdir, output=flags.output)
    elif flags.mode == "export":
        exporting.export(model, flags.output, result=workdir / training.RESULT)
    elif flags.mode == "edit":
        seed = flags.seed or 0
        path = workdir / f"edited_seed{seed}.png"
        labels = _labels(flags.labels)
        editing.draw_edits(model, flags.source, flags.mask, path, labels=labels, seed=seed)
    else:
        seed = flags.seed or 0
        path = workdir / f"samples_seed{seed}.png"
        training.draw({"": model}, path, labels=_labels(flags.labels), seed=seed)


def _judge_images(flags: argparse.Namespace, overrides: Sequence[str]) -> None:
    from jaxar.evaluation import evaluate as evaluation

    if overrides or flags.config:
        raise configs.ConfigError("--samples are judged as they are: leave --config out.")
    evaluation.evaluate_images(
        flags.samples,
        network=flags.network or "",
        reference=flags.reference or "",
        output=flags.output,
    )


def _evaluation_overrides(config: Any, flags: argparse.Namespace) -> list[str]:
    """Returns the fields of config.evaluation that --network and --reference set."""
    given = {k: getattr(flags, k) for k in ("network", "reference") if getattr(flags, k)}
    if not given:
        return []
    if config.evaluation.name != "fidelity":
        arguments = ", ".join(f"{key}={value!r}" for key, value in given.items())
        return [f"evaluation=fidelity({arguments})"]
    return [f"evaluation.{key}={value!r}" for key, value in given.items()]


def _require_fitting(flags: argparse.Namespace) -> None:
    """Raises ConfigError where a flag is missing, or given to a mode it means nothing to."""
    mode = flags.mode
    for name, modes in BELONGS.items():
        if getattr(flags, name) is not None and mode not in modes:
            raise configs.ConfigError(
                f"--{name} belongs to --mode={' or --mode='.join(modes)}, not to --mode={mode}."
            )
    needed = {
        "convert": ["source"],
        "encode": ["source", "output"],
        "export": ["output"],
        "edit": ["mask"],
    }
    missing = [name for name in needed.get(mode, []) if getattr(flags, name) is None]
    if flags.config is None and flags.samples is None:
        missing.append("config")
    if missing:
        raise configs.ConfigError(f"--mode={mode} needs --{' and --'.join(missing)}.")


def assignments(rest: Sequence[str]) -> list[str]:
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
