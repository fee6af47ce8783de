"""A system: tokenizer, plan, backbone and head, joined into three pure functions.

    init(key) -> params                            what is trained
    loss(params, batch, key) -> (loss, metrics)    what is minimised
    sample(params, keys, labels, ...) -> data      what comes out

Nothing here knows a mesh or a file.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.backbones.xar import XAR
from jaxar.flow.guidance import Guidance
from jaxar.flow.solver import SOLVERS
from jaxar.heads.flow import FlowHead
from jaxar.nn.module import bind, params_of
from jaxar.plan import Layout, Plan
from jaxar.samplers.autoregressive import autoregressive
from jaxar.tokenizers.base import Tokenizer
from jaxar.typing import Array, Float, Int, Params

NoiseSource = Callable[[Any, Any, tuple[int, int]], Array]
"""noise(entity, draw, (tokens, channels)) -> (b, tokens, channels); the numbers may be traced."""


@runtime_checkable
class Trainable(Protocol):
    """What training needs of a system, of whatever kind.

    Attributes:
      shows: What its pictures show: "samples", or "reconstructions" of the data.
    """

    shows: str

    def init(self, key: Array) -> Params:
        """Returns initial parameters."""
        ...

    def loss(
        self, params: Params, batch: dict[str, Array], key: Array
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Returns the loss of a batch, {"data", "label", "step"}, and metrics."""
        ...


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to sample. Static under `jax.jit`; the amount of guidance is an argument instead.

    Attributes:
      solver: Name in `SOLVERS`.
      steps: Solver steps for each entity.
      shift: Shift of the solver's times towards noise; 1 for none.
      guidance: Rule of the guidance weight.
      guided: False leaves the unconditional half of the work out: guidance 1.
      dtype: Of the solver's state: "float32", or "float64" as the released code (needs x64).
    """

    solver: str = "euler_maruyama"
    steps: int = 50
    shift: float = 1.0
    guidance: Guidance = dataclasses.field(default_factory=Guidance)
    guided: bool = True
    dtype: str = "float32"

    def __post_init__(self):
        if self.solver not in SOLVERS:
            raise ValueError(f"Unknown solver {self.solver!r}: choose one of {sorted(SOLVERS)}.")
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"The number of solver steps must be 1 or more, not {self.steps!r}.")
        if self.shift <= 0:
            raise ValueError(f"The time shift must be above 0, not {self.shift}.")
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"The solver's dtype is 'float32' or 'float64', not {self.dtype!r}.")
        if self.dtype == "float64" and not jax.config.jax_enable_x64:  # pyright: ignore
            raise ValueError("A float64 solver needs 64-bit JAX: set JAX_ENABLE_X64=true.")
        self.grid  # noqa: B018 -- too few steps are found here

    @property
    def grid(self) -> np.ndarray:
        """(steps + 1,) times from noise to data."""
        return SOLVERS[self.solver].grid(self.steps, self.shift)


@dataclasses.dataclass(frozen=True, eq=False)
class System:
    """Parts of a generative model and the functions they make together.

    Attributes:
      tokenizer: From data to latents and back.
      plan: Entities of the latent grid.
      backbone: Template of the network: a module that holds shapes.
      make: make(key) -> the network with initial values.
      head: What is predicted of an entity.
      num_classes: Labels lie in [0, num_classes).
      label_dropout: Share of labels replaced by "no class" in training.
      shape: (h, w, c) of one example of the data.
      shows: What pictures of the system show: it can `sample`.
    """

    tokenizer: Tokenizer
    plan: Plan
    backbone: XAR
    make: Callable[[Array], XAR]
    head: FlowHead
    num_classes: int
    label_dropout: float
    shape: tuple[int, int, int]

    shows = "samples"

    @property
    def channels(self) -> int:
        """Numbers in a token."""
        return self.tokenizer.latents(self.shape)[1]

    def init(self, key: Array) -> Params:
        """Returns initial parameters, float32."""
        return params_of(self.make(key))

    def loss(
        self, params: Params, batch: dict[str, Array], key: Array
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Returns the training loss and metrics of a batch.

        Args:
          params: Parameters as `init` returns them.
          batch: {"data": (b, h, w, c) float32, "label": (b,) int32}.
          key: Randomness of latents, label dropout, times, noise and dropout.
        """
        encode, label, draw, drop = jax.random.split(key, 4)
        tokens = self.plan.cut(self.tokenizer.encode(batch["data"], encode))
        dropped = jax.random.bernoulli(label, self.label_dropout, batch["label"].shape)
        labels = jnp.where(dropped, self.num_classes, batch["label"])
        times, noise = self.head.draw(draw, self.plan, tokens)
        loss = self.loss_of(params, tokens, labels, times, noise, drop)
        return loss, {"loss": loss}

    def loss_of(
        self,
        params: Params,
        tokens: Float[Array, "b n c"],
        labels: Int[Array, " b"],
        times: Float[Array, "b x"],
        noise: Float[Array, "b n c"],
        key: Array | None = None,
    ) -> Float[Array, ""]:
        """Returns the loss for given times and noise; dropout only where a key is given."""
        inputs, target = self.head.prepare(self.plan, tokens, times, noise)
        backbone = bind(self.backbone, params)
        prediction, _ = backbone(inputs.tokens, inputs.times, labels, inputs.layout, key=key)
        return self.head.loss(prediction, target)

    def sample(
        self,
        params: Params,
        keys: Array,
        labels: Int[Array, " b"],
        guidance: Array | float,
        settings: Settings,
        noise: NoiseSource | None = None,
    ) -> Float[Array, "b h w c"]:
        """Returns generated data, one example a label; see `sample_tokens` for the arguments."""
        tokens = self.sample_tokens(params, keys, labels, guidance, settings, noise)
        return self.tokenizer.decode(self.plan.paste(tokens.astype(jnp.float32)))

    def sample_tokens(
        self,
        params: Params,
        keys: Array,
        labels: Int[Array, " b"],
        guidance: Array | float,
        settings: Settings,
        noise: NoiseSource | None = None,
    ) -> Float[Array, "b n c"]:
        """Returns the generated tokens of all entities, in the plan's order.

        Args:
          params: Parameters.
          keys: (b,) one key an example: a result does not depend on the batch it is drawn in.
          labels: Classes in [0, num_classes]; num_classes stands for "no class".
          guidance: Weight of classifier-free guidance, 1 or more; 1 for none.
          settings: Everything static.
          noise: Source of normal draws instead of `keys`, for comparisons.
        """
        if noise is None:
            noise = functools.partial(noise_of, keys)
        walk = _Walk(self, bind(self.backbone, params), labels, guidance, settings, noise)
        room = self.plan.offsets[-2]
        cache = self.backbone.empty_cache(len(labels) * (2 if settings.guided else 1), room)
        return autoregressive(self.plan, walk.write, walk.draw, cache)


@dataclasses.dataclass(frozen=True)
class _Walk:
    """The two steps of the sampler for one call: draw an entity, and write it to the cache.

    With guidance the batch is [conditional; unconditional] wherever the cache is used.
    """

    system: System
    backbone: XAR
    labels: Array
    guidance: Any
    settings: Settings
    noise: NoiseSource

    def draw(self, cache: Any, entity: Any, start: Any, size: int, visible: int) -> Array:
        """Returns the tokens of one entity, in the dtype of the solver's state."""
        system, settings = self.system, self.settings
        first = visible == 0
        rule, entities = settings.guidance, system.plan.entities
        guided = settings.guided and rule.acts_on(0 if first else 1, entities)
        layout, seen = self._look(cache, start, size, visible)

        def velocity(x, t):
            tokens = x.astype(jnp.float32)
            if not guided:
                return self._predict(tokens, t, self.labels, layout, seen)[0].astype(x.dtype)
            both = self._predict(self._twice(tokens), t, self._both_labels(), layout, seen)[0]
            conditional, unconditional = jnp.split(both.astype(x.dtype), 2)
            weight = rule.weight(self.guidance, entity, entities, t).astype(x.dtype)
            return unconditional + weight * (conditional - unconditional)

        return system.head.sample(
            velocity,
            lambda i: self.noise(entity, i, (size, system.channels)),
            SOLVERS[settings.solver],
            settings.grid,
            jnp.dtype(settings.dtype),
        )

    def write(self, cache: Any, tokens: Array, start: Any, visible: int) -> Any:
        """Returns the cache with the keys and values of a finished entity, seen at time 0."""
        tokens = tokens.astype(jnp.float32)
        layout, seen = self._look(cache, start, tokens.shape[1], visible)
        labels = self.labels
        if self.settings.guided:
            tokens, labels = self._twice(tokens), self._both_labels()
        _, new = self._predict(tokens, jnp.zeros(()), labels, layout, seen, collect=True)
        return jax.tree.map(
            lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, start, 2), cache, new
        )

    def _look(self, cache: Any, start: Any, size: int, visible: int) -> tuple[Layout, Any]:
        """Returns the layout of an entity at `start`, and the part of the cache it may look at."""
        place = start + jnp.arange(size)
        if visible == 0:
            return Layout(place, (size,), None), None
        seen = jax.tree.map(lambda a: a[:, :, :visible], cache)
        if isinstance(start, int) and start == visible:
            return Layout(place, (size,), None), seen
        mask = jnp.concatenate([jnp.arange(visible) < start, jnp.ones(size, bool)])
        return Layout(place, (size,), jnp.broadcast_to(mask, (size, visible + size))), seen

    def _predict(self, tokens, t, labels, layout, seen, collect=False):
        times = jnp.broadcast_to(t.astype(jnp.float32), (len(tokens), 1))
        return self.backbone(tokens, times, labels, layout, cache=seen, collect=collect)

    def _both_labels(self) -> Array:
        return jnp.concatenate([self.labels, jnp.full_like(self.labels, self.system.num_classes)])

    @staticmethod
    def _twice(x: Array) -> Array:
        return jnp.concatenate([x, x])


def noise_of(keys: Array, entity: Any, draw: Any, shape: tuple[int, int]) -> Array:
    """Returns (b, *shape) normal numbers that depend on each example's key, entity and draw."""

    def one(key):
        key = jax.random.fold_in(jax.random.fold_in(key, entity), draw)
        return jax.random.normal(key, shape)

    return jax.vmap(one)(keys)
