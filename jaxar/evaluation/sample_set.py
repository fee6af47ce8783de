"""Large sets of samples on disk, which are the same however often sampling is interrupted."""

import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from jaxar.config import ConfigError
from jaxar.console import Bar, say
from jaxar.files import Replacing, replace_text
from jaxar.parallel import distributed, sharding
from jaxar.runs import picture
from jaxar.runs.model import Model
from jaxar.tree import changes

PROTOCOL, IMAGES, ARRAY = "protocol.json", "images", "images.npz"
LABELS_RULE = "image i of n has class floor(i classes / n)"
_OF_PICTURES = ("every", "per_class", "classes")
"""Fields of config.sample that no pixel depends on."""


def labels_of(count: int, classes: int) -> np.ndarray:
    """Returns `count` labels, int32, with the same number of each class up to one.

    They are in ascending order, as in the released evaluation code of MAR and xAR.
    """
    return (np.arange(count) * classes // count).astype(np.int32)


def sampling_protocol(model: Model, *, count: int, seed: int) -> dict[str, Any]:
    """Returns everything that the pixels of a set of samples depend on, for JSON.

    Args:
      model: The model to sample.
      count: Number of samples.
      seed: Seed of their noise.
    """
    autoencoder, classes = model.autoencoder, model.system.num_classes
    balance = np.bincount(labels_of(count, classes), minlength=classes)
    return {
        "config": model.config.name,
        "step": model.step,
        "weights": model.origin.facts(model.params),
        "ema_rate": model.config.ema,
        "autoencoder": autoencoder.origin.facts(autoencoder.params) if autoencoder else None,
        "sampling": {k: v for k, v in model.config.sample.items() if k not in _OF_PICTURES},
        "model_dtype": model.config.model.get("dtype", "float32"),
        "seed": seed,
        "count": count,
        "classes": classes,
        "labels": LABELS_RULE,
        "images_per_class": [int(np.min(balance)), int(np.max(balance))],
        "rounding": picture.ROUNDING,
    }


def sample_set(
    model: Model, output: str | Path, protocol: dict[str, Any], *, batch_size: int
) -> None:
    """Draws a set of samples into a folder, except those that it already holds.

    The folder then has images/00000.png ..., `images.npz` (`arr_0`, uint8 (n, h, w, c), the layout
    of ADM's sample batches) and `protocol.json`. Image i depends on its number, its label and the
    seed alone, so the set is the same for any batch size and number of devices, up to the rounding
    of sums. After an interruption, the next call goes on and ends with the same bytes. Each of
    several processes writes the images of its devices; all of them must see the folder.

    Args:
      model: The model to sample.
      output: Folder to write.
      protocol: Result of `sampling_protocol` for the model.
      batch_size: Images drawn at a time.

    Raises:
      ConfigError: the folder holds a set of another protocol.
    """
    folder, count = Path(output), protocol["count"]
    if distributed.first():
        _begin(folder, protocol)
    labels = labels_of(count, model.system.num_classes)
    parts = sharding.batch_parts(model.mesh)
    _draw_missing(model, folder, labels, -(-batch_size // parts) * parts, protocol["seed"])
    distributed.meet("all samples are drawn")
    if distributed.first() and not (folder / ARRAY).exists():
        write_array(folder / ARRAY, [folder / IMAGES / _name(i) for i in range(count)])
    distributed.meet("all samples are written")


def write_array(path: Path, files: list[Path]) -> None:
    """Writes images of one size as `arr_0` of an .npz, which ADM's evaluator reads.

    Equal images give equal bytes. Only one image is in memory.

    Args:
      path: The .npz to write.
      files: Files of the images, in order.
    """
    from PIL import Image

    first = np.asarray(Image.open(files[0]))
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(files), *first.shape)}
    with (
        Replacing(path) as file,
        zipfile.ZipFile(file, "w") as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as member,
    ):
        np.lib.format.write_array_header_1_0(member, header)
        for name in files:
            member.write(np.asarray(Image.open(name)).tobytes())


def _begin(folder: Path, protocol: dict[str, Any]) -> None:
    """Prepares the folder of a set; raises ConfigError where it holds a set of another protocol."""
    path = folder / PROTOCOL
    there = json.loads(path.read_text()) if path.exists() else protocol
    changed = changes(protocol, there)
    if changed:
        raise ConfigError(
            f"{folder} holds samples of another protocol ({'; '.join(changed)}): choose another "
            "--output or remove it."
        )
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(protocol, indent=2) + "\n")


def _draw_missing(
    model: Model, folder: Path, labels: np.ndarray, batch_size: int, seed: int
) -> None:
    """Draws the batches with missing images; the devices are one batch ahead of the disk."""
    names = {file.name for file in (folder / IMAGES).glob("*.png")}
    missing = distributed.told(np.array([_name(i) not in names for i in range(len(labels))]))
    starts = [
        start
        for start in range(0, len(labels), batch_size)
        if missing[start : start + batch_size].any()
    ]
    if not starts:
        return
    done = len(labels) - sum(min(batch_size, len(labels) - start) for start in starts)
    if done:
        say("resume", f"{done:,} of {len(labels):,} samples are drawn already")
    bar = Bar("sample", len(labels), start=done)
    waiting = None
    with ThreadPoolExecutor() as pool, distributed.Watchdog("sampling") as watchdog:
        for start in starts:
            # The last batch is padded, so that every batch runs the same program.
            numbers = np.minimum(np.arange(start, start + batch_size), len(labels) - 1)
            started = start, model.start(labels[numbers], seed=seed, first=start)
            if waiting:
                done += _write(pool, folder, labels, seed, model, *waiting)
                bar.count(done)
                watchdog.beat(f"image {done:,}")
            waiting = started
        if waiting:
            done += _write(pool, folder, labels, seed, model, *waiting)
            bar.count(done)


def _write(
    pool: ThreadPoolExecutor,
    folder: Path,
    labels: np.ndarray,
    seed: int,
    model: Model,
    start: int,
    batch: Any,
) -> int:
    """Returns the number of images of a batch that were written, once the devices finished it.

    A process writes the rows of its own devices; rows that several devices hold are written once.
    """
    rows = [
        (start + (shard.index[0].start or 0) + i, image)
        for shard in batch.addressable_shards
        if shard.replica_id == 0
        for i, image in enumerate(np.asarray(shard.data))
    ]

    def write(row: tuple[int, np.ndarray]) -> None:
        number, image = row
        text = {"number": number, "label": int(labels[number]), "seed": seed}
        text["guidance"] = model.config.sample.guidance
        path = folder / IMAGES / _name(number)
        with Replacing(path) as file:
            picture.save_png(image, file, text)

    list(pool.map(write, [row for row in rows if row[0] < len(labels)]))
    return min(len(batch), len(labels) - start)


def _name(number: int) -> str:
    """Returns the file name of an image."""
    return f"{number:05}.png"
