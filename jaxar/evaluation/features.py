"""Features of many images on disk: computed once, chunk by chunk, whatever interrupts it."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxar.config import ConfigError
from jaxar.console import Bar, say
from jaxar.evaluation import inception
from jaxar.evaluation.digits import digit_features
from jaxar.evaluation.images import Images
from jaxar.evaluation.inception_weights import read_inception
from jaxar.files import Replacing, replace_text, sha256
from jaxar.parallel import distributed, sharding

CHUNK = 1000
"""Images in a file of features."""

BATCH = 50
"""Images a device takes at a time."""


@dataclasses.dataclass(frozen=True)
class Network:
    """What turns images into features.

    Attributes:
      name: "inception" or "digits".
      facts: What decides about the features, for the result file.
      run: Function from uint8 (n, h, w, 3) to arrays (n, d) by name: "pool", and for Inception
        "spatial" and "logits".
    """

    name: str
    facts: dict[str, Any]
    run: Callable[[np.ndarray], dict[str, np.ndarray]]


def open_network(source: str, mesh: Mesh) -> Network:
    """Returns the network of a weights file, or the digits classifier for "digits".

    Args:
      source: File in torch-fidelity's, pytorch-fid's or TensorFlow's layout, or "digits".
      mesh: Devices that share the images.

    Raises:
      ConfigError: no file is given, or it does not hold the 2015 Inception network.
    """
    if not source:
        raise ConfigError(
            "FID needs the weights of the 2015 Inception network, and no file is given: set "
            "--network to torch-fidelity's or pytorch-fid's .pth or TensorFlow's .pb; without one, "
            "--network=digits gives the Frechet distance on a small digits classifier's features, "
            "which is not FID."
        )
    if source == "digits":
        facts = {"name": "digits", "what": "64 hidden units of a classifier of 16 x 16 digits"}
        return Network("digits", facts, lambda images: {"pool": digit_features(images)})
    try:
        params = jax.device_put(read_inception(source), sharding.replicated(mesh))
    except ValueError as error:
        raise ConfigError(f"--network: {error}") from error
    facts = {"name": "inception-2015", "file": Path(source).name, "sha256": sha256(source)}
    return Network("inception", facts, _runner(params, mesh))


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of a set of images, read from disk when asked for.

    Attributes:
      files: A file a chunk.
      facts: Name, count, size and a hash of the images, for the result file.
    """

    files: list[Path]
    facts: dict[str, Any]

    def stream(self, name: str) -> Iterator[np.ndarray]:
        """Yields the (n, d) features of each chunk."""
        for file in self.files:
            with np.load(file, allow_pickle=False) as arrays:
                yield arrays[name]

    def whole(self, name: str) -> np.ndarray:
        """Returns the features of all images, (n, d)."""
        return np.concatenate(list(self.stream(name)))


def compute(images: Images, network: Network, folder: Path, name: str) -> Features:
    """Returns the features of images, of which the chunks found in `folder` are not made anew.

    Processes share the chunks out among themselves; the folder is one that all of them see.

    Args:
      images: What to look at.
      network: Who looks.
      folder: Where the files are kept.
      name: Beginning of their names.
    """
    if distributed.first():
        folder.mkdir(parents=True, exist_ok=True)
        _forget_others(folder, name, [network.facts, images.stamp, CHUNK])
    total = -(-images.count // CHUNK)
    files = [folder / f"{name}-{i:05}.npz" for i in range(total)]
    missing = np.flatnonzero(distributed.told(np.array([not file.exists() for file in files])))
    mine = np.array_split(missing, jax.process_count())[jax.process_index()].tolist()
    bar = Bar(name, images.count, start=min(mine[0] * CHUNK if mine else 0, images.count))
    numbers = range(mine[0], mine[-1] + 1) if mine else range(0)
    for i, pixels in zip(numbers, images.chunks(CHUNK, numbers.start), strict=False):
        if i not in mine:
            continue
        arrays = network.run(pixels)
        digest = hashlib.sha256(np.ascontiguousarray(pixels).data).digest()
        size = np.asarray(pixels.shape[1:3])
        with Replacing(files[i]) as file:
            extra = {"digest": np.frombuffer(digest, np.uint8), "size": size}
            np.savez(file, **{**arrays, **extra})  # pyright: ignore: one of these is allow_pickle
        bar.count(min((i + 1) * CHUNK, images.count))
    distributed.meet(f"{name} are looked at")
    return Features(files, _facts(images, files))


def _facts(images: Images, files: list[Path]) -> dict[str, Any]:
    """Returns what the result file says of images."""
    total = hashlib.sha256()
    for file in files:
        with np.load(file, allow_pickle=False) as arrays:
            total.update(arrays["digest"].tobytes())
            size = [int(side) for side in arrays["size"]]
    return {
        "name": images.name,
        "count": images.count,
        "size": size,
        "pixels_sha256": total.hexdigest(),
        "pixels_hashed": f"SHA-256 of the SHA-256 of each {CHUNK} images",
    }


def _forget_others(folder: Path, name: str, facts: Any) -> None:
    """Removes features that were made of other images or by another network."""
    path = folder / f"{name}.json"
    text = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    if path.exists() and path.read_text() != text:
        say("features", f"those of other images or another network in {folder} are made anew")
        for file in folder.glob(f"{name}-*.npz"):
            file.unlink()
    replace_text(path, text)


def _runner(params: Any, mesh: Mesh) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Returns the function that spreads images over the devices, the same number at a time."""
    place, parts = sharding.batch_sharding(mesh), sharding.batch_parts(mesh)

    @jax.jit
    def run(params, images):
        found = inception.features(params, images)
        return {
            "pool": found["2048"],
            "spatial": found["spatial"],
            "logits": found["logits_unbiased"],
        }

    def spread(images: np.ndarray) -> dict[str, np.ndarray]:
        batch = parts * min(BATCH, -(-len(images) // parts))
        found = []
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            filled = np.pad(part, [(0, batch - len(part)), (0, 0), (0, 0), (0, 0)])
            found.append(run(params, jax.device_put(filled, place)))
        found = jax.device_get(found)  # waits here, when all are on their way
        names = found[0].keys()
        return {key: np.concatenate([f[key] for f in found])[: len(images)] for key in names}

    return spread
