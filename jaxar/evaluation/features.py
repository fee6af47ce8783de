"""Features of many images, computed chunk by chunk and kept on disk through interruptions."""

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
"""Images in each file of features."""

BATCH = 50
"""Images in a batch of one device."""


@dataclasses.dataclass(frozen=True)
class FeatureNetwork:
    """A network that embeds images.

    Attributes:
      name: "inception" or "digits".
      facts: Everything that the features depend on, for the result file.
      run: Function from uint8 (n, h, w, 3) to arrays (n, d) by name: "pool", and for Inception
        "spatial" and "logits".
    """

    name: str
    facts: dict[str, Any]
    run: Callable[[np.ndarray], dict[str, np.ndarray]]


def open_network(source: str, mesh: Mesh) -> FeatureNetwork:
    """Returns the Inception network of a weights file, or the digits classifier for "digits".

    Args:
      source: File in torch-fidelity's, pytorch-fid's or TensorFlow's layout, or "digits".
      mesh: Devices that divide the images.

    Raises:
      ConfigError: no file is given, or it holds another network than the 2015 Inception.
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
        return FeatureNetwork("digits", facts, lambda images: {"pool": digit_features(images)})
    try:
        params = jax.device_put(read_inception(source), sharding.replicated(mesh))
    except ValueError as error:
        raise ConfigError(f"--network: {error}") from error
    facts = {"name": "inception-2015", "file": Path(source).name, "sha256": sha256(source)}
    return FeatureNetwork("inception", facts, _runner(params, mesh))


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of a set of images, which are read from disk when they are used.

    Attributes:
      files: One file for each chunk.
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


def compute(images: Images, network: FeatureNetwork, folder: Path, name: str) -> Features:
    """Returns the features of images; chunks that `folder` already holds are not recomputed.

    Several processes divide the chunks; all of them must see the folder.

    Args:
      images: Images to embed.
      network: Feature network.
      folder: Folder for the files.
      name: Prefix of their names.
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
    distributed.meet(f"{name} are embedded")
    return Features(files, _facts(images, files))


def _facts(images: Images, files: list[Path]) -> dict[str, Any]:
    """Returns the facts about images for the result file."""
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
    """Removes features of other images or of another network."""
    path = folder / f"{name}.json"
    text = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    if path.exists() and path.read_text() != text:
        say("features", f"those in {folder} are of other images or another network: recomputed")
        for file in folder.glob(f"{name}-*.npz"):
            file.unlink()
    replace_text(path, text)


def _runner(params: Any, mesh: Mesh) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Returns the function that embeds images on all devices, in batches of one shape."""
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
        found = jax.device_get(found)  # waits here, after all batches are dispatched
        names = found[0].keys()
        return {key: np.concatenate([f[key] for f in found])[: len(images)] for key in names}

    return spread
