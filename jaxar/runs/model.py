"""A system with parameters on devices: what is sampled, evaluated and exported."""

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
from jaxar.parallel import distributed, sharding
from jaxar.parallel.axes import hold
from jaxar.schemes.base import Settings
from jaxar.files import sha256
from jaxar.core.known import Known
from jaxar.core.random import LARGEST_SEED, key_for
from jaxar.nn.module import bind
from jaxar.system import System
from jaxar.typing import Array, Params


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where parameters come from, for result files and model cards.

    Attributes:
      path: File or folder they were read from; None for a run's checkpoint.
      note: What was taken of it, such as "model_ema", or "ema of step 1200".
    """

    path: Path | None
    note: str = ""

    def facts(self, params: Params) -> dict[str, Any]:
        """Returns names and hashes: of the file, where it is one, and of the parameters."""
        facts: dict[str, Any] = {"note": self.note}
        facts["parameters_sha256"] = tree.digest(params, distributed.gathered)
        if self.path is not None:
            facts["file"] = self.path.name
        if self.path is not None and self.path.is_file():
            facts["sha256"] = sha256(self.path)
        return facts


@dataclasses.dataclass(frozen=True, eq=False)
class Autoencoder:
    """A trained autoencoder, ready to decode latents and to encode images.

    Attributes:
      network: Template of the module.
      params: Its parameters, on the devices of the mesh.
      origin: Where they come from.
    """

    network: Any
    params: Params
    origin: Origin


@dataclasses.dataclass
class Model:
    """A system with parameters, ready to sample.

    Attributes:
      config: Its whole config.
      system: Its parts.
      params: Its parameters, on the devices of `mesh`.
      mesh: Devices.
      step: Training steps behind the parameters.
      autoencoder: Turns the system's latents into images; None where it models the data directly,
        and where no weights were given.
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

        Latents come where the system models an autoencoder's latents and none was loaded, scaled
        as its decoder takes them. The same shapes and settings compile once. An image depends on
        its label, the seed and its number alone, not on the batch it is drawn in.

        Args:
          labels: One class in [0, num_classes) for each image.
          **options: See `start`.

        Raises:
          ValueError: a label is out of range, or a setting makes no sense; names the range.
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
        """Returns the data of `sample` before they are there: the devices go on working.

        The batch is filled up to a multiple of the devices; the rows after the labels are void.

        Args:
          labels: One class in [0, num_classes) for each image.
          seed: Seed of all noise.
          first: Number of the first image: image i is drawn with the noise of number first + i.
          latents: Whether to return latents although there is an autoencoder.
          edit: Images (b, h, w, c) to begin with and a mask (b, h, w), True where they are to be
            made anew; see `editing.edit`.
          guidance: Weight of classifier-free guidance, at least 1; 1 is none.
          **settings: Other fields of config.sample, such as `steps` and `solver` of xAR and FlowAR,
            `top_k` and `top_p` of VAR, `iterations` and `temperature` of MAR.

        Raises:
          ValueError: see `sample`.
        """
        condition = self.system.condition.read(labels)
        chosen = assembly.build_settings(self.config, guidance=guidance, **settings)
        weight = self.config.sample.guidance if guidance is None else guidance
        if not (np.isfinite(weight) and weight >= 1):
            raise ValueError(f"guidance must be a number of 1 or more, not {weight}.")
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


@functools.lru_cache(maxsize=64)
def sampler(system: System, network: Any, settings: Settings) -> Any:
    """Returns the jitted sampler; one object for each setting, so that JAX finds it compiled."""

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
