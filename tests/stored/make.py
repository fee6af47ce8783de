"""Writes the runs, exports and caches that later versions must go on with (tests/test_stored.py).

Run by hand at a release, whose format of files they keep; what earlier releases wrote stays.

    python -m tests.stored.make tests/stored/v0

Every run is one .zip of its directory after `STEPS` steps. `expected.json` holds what it does next:
the losses of the steps up to `NEXT`, and what its model samples or reconstructs. All paths in the
files are relative to the folder that the archives are unpacked in.
"""

import contextlib
import json
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import tests.conftest  # noqa: F401 - before JAX: the programs are those of the tests
from jaxar.runs.abilities import can
from tests.shrink import shrunk

STEPS, NEXT = 4, 8
LABELS = (3, 1)
SHOWN = 12
"""Values of a picture that are compared."""

IMAGES = ("data=digits(split='train', size=8)", "data_shape=(8,8,1)", "num_classes=10")
SHALLOW = ("model.width=8", "model.depth=(1,1)", "sample.steps=2")
HEAD = ("head.width=8", "head.depth=1")
NETWORK = ("width=2", "multipliers=(1,2)", "blocks=1")
QUANTIZED = (*NETWORK, "attention=()", "levels=(1,4)", "phis=1")
AVERAGED = ("quantizer.learning=average", "quantizer.restart=0.1")
FROM_KL = (
    *(f"autoencoder.{word}" for word in NETWORK),
    "autoencoder.image_channels=1",
    "autoencoder.encoder_attention=()",
    "autoencoder.channels=4",
    "autoencoder.weights=runs/kl_glyphs",
    "data=latent_records(path='runs/kl_latents', flip=True)",
    "data_shape=(4,4,8)",
    "num_classes=10",
    "evaluation=none",
)
FROM_VQ = (
    *(f"autoencoder.{word}" for word in QUANTIZED),
    *AVERAGED,
    "plan.sizes=(1,4)",
    "autoencoder.weights=runs/vq_digits",
    "evaluation.reference=digits(size=8)",
)

RUNS = {
    "kl_glyphs": (
        *IMAGES,
        *(f"model.{word}" for word in NETWORK),
        "model.encoder_attention=()",
        "loss.adversarial_weight=0.5",
        "loss.discriminator_width=4",
        "loss.discriminator_layers=1",
    ),
    "vq_digits": (
        *IMAGES,
        *(f"model.{word}" for word in QUANTIZED),
        *AVERAGED,
        "quantizer.vocabulary=32",
    ),
    "xar_digits": SHALLOW,
    "flowar_digits": (*SHALLOW, *HEAD, "plan.sizes=(1,4)"),
    "mar_digits": (*SHALLOW, *HEAD),
    "var_digits": (*FROM_VQ, "model.width=8", "model.depth=1", "memory.ema=bfloat16"),
    "xar_b": (*FROM_KL, *SHALLOW),
}
"""The runs in the order in which they need each other, and what is small or special in each."""

CACHES = {"kl_latents": ("xar_b", "kl_glyphs"), "digit_features": ("var_digits", "vq_digits")}
"""Latent caches, the config that makes them and the run of their autoencoder."""

SHOWN_ONLY = ("xar_b",)
"""Runs whose next losses are left out: compiling their step would teach nothing more."""

EXPORTS = ("xar_digits", "var_digits")


def config_of(name: str):
    """Returns the config of a stored run."""
    sizes = (f"steps={STEPS}", "log_every=1", "checkpoint.every=100", "checkpoint.keep=1")
    return shrunk(name, "sample.classes=1", *sizes, *RUNS[name])


def images() -> np.ndarray:
    """Returns what autoencoders reconstruct, (2, 8, 8, 1)."""
    return np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 1)).astype(np.float32)


def shown(model) -> list[float]:
    """Returns values of what a model samples for `LABELS`, or reconstructs of `images`."""
    if can(model.system, "sample"):
        made = model.sample(LABELS, seed=0)
    else:
        made = model.system.reconstruct(model.params, images())
    values = np.asarray(made, np.float64).reshape(-1)
    return [float(value) for value in values[:: len(values) // SHOWN][:SHOWN]]


def next_losses(workdir: str | Path) -> list[float]:
    """Returns the losses of the steps that follow when the run in `workdir` goes on to `NEXT`."""
    from jaxar import config as configs
    from jaxar.runs.train import train
    from jaxar.training.progress import read_history

    config = configs.from_json((Path(workdir) / "config.json").read_text())
    train(configs.override(config, [f"steps={NEXT}"]), workdir=workdir)
    return [record["loss"] for record in read_history(Path(workdir)) if record["step"] > STEPS]


def make() -> dict[str, dict[str, list[float]]]:
    """Returns what is expected of the runs that now lie in ./runs, with caches and ./exports."""
    import jaxar

    expected = {}
    for name in RUNS:
        for cache, (user, _) in CACHES.items():
            if user == name:
                source = "glyphs(size=8, num_classes=10, count=24)"
                jaxar.encode(config_of(name), source, f"runs/{cache}", batch_size=24)
        model = jaxar.train(config_of(name))
        values = shown(jaxar.load(name))
        if name in EXPORTS:
            jaxar.export(model, f"exports/{name}")
        expected[name] = {"shown": values}
        if name not in SHOWN_ONLY:
            shutil.copytree(f"runs/{name}", f"continued/{name}")
            expected[name]["losses"] = next_losses(f"continued/{name}")
        for file in Path("runs", name).iterdir():
            if file.suffix in (".png", ".npy"):
                file.unlink()
        prune(Path("runs", name, "checkpoints", str(STEPS), "state"))
    return expected


def prune(state: Path) -> None:
    """Removes from a checkpoint's database the files that reading it does not need.

    It keeps earlier versions of its nodes, more or fewer of them as its threads happen to run.
    """
    whole = content_of(state)
    for file in sorted(state.glob("**/d/*")):
        content = file.read_bytes()
        file.unlink()
        try:
            needed = content_of(state) != whole
        except ValueError:  # it cannot be read
            needed = True
        if needed:
            file.write_bytes(content)


def content_of(state: Path) -> dict[bytes, bytes]:
    """Returns all that the database of a checkpoint holds."""
    import tensorstore

    database = {"driver": "ocdbt", "base": f"file://{state.absolute()}/"}
    store = tensorstore.KvStore.open(database).result()
    return {key: store.read(key).result().value for key in store.list().result()}


def pack(folder: Path, archive: Path) -> None:
    """Writes a folder under its path to an archive whose bytes follow from its files alone.

    Raises:
      ValueError: a file names the directory that it was made in.
    """
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            content = file.read_bytes()
            if file.name == "commit_success.txt":  # which says where to, and nobody reads
                content = content.replace(f"{Path.cwd()}/".encode(), b"")
            if str(Path.cwd()).encode() in content:
                raise ValueError(f"{file} holds the path {Path.cwd()}.")
            packed.writestr(zipfile.ZipInfo(str(file)), content, zipfile.ZIP_DEFLATED, 9)


def unpack(version: str, folder: Path) -> None:
    """Writes what a version has stored to a folder: ./runs and ./exports."""
    for archive in (Path(__file__).parent / version).glob("*.zip"):
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)


def main(arguments: Sequence[str]) -> None:
    """Writes the archives and `expected.json` to the folder that is the only argument."""
    (output,) = (Path(argument).absolute() for argument in arguments)
    output.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        expected = make()
        for path in [*Path("runs").iterdir(), *Path("exports").iterdir()]:
            pack(path, output / f"{path.parent}_{path.name}.zip")
    text = json.dumps(expected, indent=1)
    (output / "expected.json").write_text(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
