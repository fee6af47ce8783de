"""A system with its parameters on devices, which is sampled, evaluated and exported."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxar import assembly, tree
from jaxar.config import ConfigError
from jaxar.core.known import Known
from jaxar.core.random import LARGEST_SEED, key_for
from jaxar.files import sha256
from jaxar.nn.module import bind
from jaxar.parallel import distributed, sharding
from jaxar.parallel.axes import hold
from jaxar.runs.abilities import require
from jaxar.schemes.base import Settings
from jaxar.system import System
from jaxar.typing import Array, Params


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where parameters come from, for result files and model cards.

    Attributes:
      path: File or folder that they were read from; None for a checkpoint of a run.
      note: What was taken from it, such as "model_ema", or "ema of step 1200".
    """

    path: Path | None
    note: str = ""

    def facts(self, params: Params) -> dict[str, Any]:
        """Returns the note, a hash of the parameters, and name and hash of the file, if any."""
        facts: dict[str, Any] = {"note": self.note}
        facts["parameters_sha256"] = tree.digest(params, distributed.gathered)
        if self.path is not None:
            facts["file"] = self.path.name
        if self.path is not None and self.path.is_file():
            facts["sha256"] = sha256(self.path)
        return facts


@dataclasses.dataclass(frozen=True, eq=False)
class Autoencoder:
    """A trained autoencoder, ready to encode images and to decode latents.

    Attributes:
      network: Template of the module.
      params: Its parameters, on the devices of the mesh.
      origin: Where the parameters come from.
    """

    network: Any
    params: Params
    origin: Origin


@dataclasses.dataclass
class Model:
    """A system with parameters, ready to use.

    Attributes:
      config: The whole config.
      system: The system of the config.
      params: Parameters, on the devices of `mesh`.
      mesh: Devices.
      step: Number of training steps that the parameters have seen.
      autoencoder: Decodes the system's latents to images. None where the system models the data
        directly, and where no weights are given.
      origin: Where the parameters come from, for result files and model cards.
    """

    config: Any
    system: Any
    params: Params
    mesh: Mesh
    step: int = 0
    autoencoder: Autoencoder | None = None
    origin: Origin = Origin(None)

    @property
    def frozen(self) -> dict[str, Params]:
        """Parameters of the networks that the system cannot do without, by name."""
        if "autoencoder" not in self.system.frozen:
            return {}
        assert self.autoencoder is not None  # `load.require_frozen` has seen to it
        return {"autoencoder": self.autoencoder.params}

    def sample(self, labels: Sequence[int] | np.ndarray, **options: Any) -> np.ndarray:
        """Returns generated data, (b, h, w, c) float32: images in [-1, 1], or latents.

        A system of latents whose autoencoder is not loaded returns latents, scaled as the decoder
        takes them. Each combination of shapes and settings compiles once. An image depends on its
        label, the seed and its number alone, not on its batch.

        Args:
          labels: One class in [0, num_classes) for each image.
          **options: See `start`.

        Raises:
          ValueError: a label or a setting is out of range, which the message names, or the system
            cannot sample.
        """
        images = self.start(labels, **options)
        return distributed.gathered(images)[: len(labels)]

    def start(
        self,
        labels: Sequence[int] | np.ndarray,
        *,
        seed: int = 0,
        first: int = 0,
        latents: bool = False,
        edit: tuple[np.ndarray, np.ndarray] | None = None,
        guidance: float | None = None,
        **settings: Any,
    ) -> Array:
        """Returns the data of `sample` without waiting for the devices to finish.

        The batch is padded to a multiple of the devices; the rows after the labels mean nothing.

        Args:
          labels: One class in [0, num_classes) for each image.
          seed: Seed of all noise.
          first: Number of the first image: image i is drawn with the noise of number first + i.
          latents: Whether to return latents although there is an autoencoder.
          edit: Images (b, h, w, c) and a mask (b, h, w), True where they are to be regenerated; see
            `jaxar.runs.edit.edit`.
          guidance: Weight of classifier-free guidance, at least 1; 1 for none.
          **settings: Other fields of config.sample, such as `steps` and `solver` of xAR and FlowAR,
            `top_k` and `top_p` of VAR, `iterations` and `temperature` of MAR.

        Raises:
          ValueError: see `sample`.
        """
        require(self.system, "sample", self.config.name)
        condition = self.system.condition.read(labels)
        chosen = assembly.build_settings(self.config, guidance=guidance, **settings)
        weight = self.config.sample.guidance if guidance is None else guidance
        if first < 0:
            raise ValueError(f"first must be 0 or more, not {first}.")
        if not 0 <= seed <= LARGEST_SEED:
            raise ValueError(f"seed must lie in [0, {LARGEST_SEED}], not {seed}.")
        place, parts = sharding.batch_sharding(self.mesh), sharding.batch_parts(self.mesh)
        count = jax.tree.leaves(condition)[0].shape[0]
        rows = count + -count % parts

        def put(x):
            filled = np.concatenate([x, np.zeros((rows - len(x), *x.shape[1:]), x.dtype)])
            return sharding.put(filled, place)

        numbers = sharding.put(np.arange(first, first + rows, dtype=np.uint32), place)
        decoder = None if latents else self.autoencoder
        run = sampler(self.system, decoder.network if decoder else None, chosen)
        weights = (self.params, self.frozen, decoder.params if decoder else {})
        begin = None if edit is None else tuple(put(np.asarray(x, np.float32)) for x in edit)
        with jax.set_mesh(self.mesh):
            return run(weights, seed, numbers, jax.tree.map(put, condition), float(weight), begin)

    def reconstruct(self, images: np.ndarray) -> np.ndarray:
        """Returns what an autoencoder makes of images, (b, h, w, c) float32 in [-1, 1].

        Args:
          images: (b, h, w, c) float32 in [-1, 1].

        Raises:
          ConfigError: the system cannot reconstruct.
        """
        require(self.system, "reconstruct", self.config.name)
        return distributed.gathered(self.system.reconstruct(self.params, images))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (h, w, c) of what the model samples: images, or latents without an autoencoder."""
        h, w, c = self.system.shape
        if self.autoencoder is None:
            return h, w, c
        network = self.autoencoder.network
        return h * network.factor, w * network.factor, network.image_channels

    def require_images(self) -> None:
        """Checks that the model samples images.

        Raises:
          ConfigError: it cannot sample, or it samples latents because its autoencoder is missing.
        """
        require(self.system, "sample", self.config.name)
        if self.config.autoencoder.name != "none" and self.autoencoder is None:
            raise ConfigError(
                f"{self.config.name} samples latents: give the autoencoder's weights by "
                "--tokenizer=FILE."
            )


@functools.lru_cache(maxsize=64)
def sampler(system: System, network: Any, settings: Settings) -> Any:
    """Returns the jitted sampler: one object for each setting, so that JAX compiles it once.

    Args:
      system: The system.
      network: Template of the autoencoder that decodes its latents; None to return latents.
      settings: Static settings of sampling.
    """

    def run(weights, seed, numbers, condition, guidance, edit):
        params, frozen, decoder = weights
        key = key_for("sample", seed)
        keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)
        autoencoder = None if network is None else bind(network, decoder)
        known = None
        if edit is not None:
            images, mask = edit
            data = images if autoencoder is None else autoencoder.record(images)
            tokens = system.bound(frozen).entities.cut(data, jax.random.fold_in(key, 0))
            known = Known(tokens, ~system.plan.touched(mask))
        data = system.sample(params, frozen, keys, condition, guidance, settings, known)
        if autoencoder is not None:
            data = jnp.clip(autoencoder.decode(data), -1, 1)
        return hold(data, "batch")

    return jax.jit(run)
