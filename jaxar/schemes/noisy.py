"""The context of xAR: an entity is seen together with those before it, all noised.

In training every entity has its own noise, and the network sees itself and the earlier ones so; in
sampling, the earlier ones are finished and seen clean, at time 0, through the cache. The network is
the velocity itself: it is asked once for each step of the solver.
Source: arXiv 2502.20388, section 3.3; OliverRensu/xAR models/xar.py `sample_tokens`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxar.core.plan import Layout
from jaxar.flow.guidance import Guided, guided
from jaxar.heads.flow import Flow, FlowNoise, solve
from jaxar.schemes.base import Request, look, write
from jaxar.schemes.walk import Step, autoregressive
from jaxar.tokenizers.tokens import Entities
from jaxar.typing import Array, Float, Int


@dataclasses.dataclass(frozen=True, eq=False)
class Noisy:
    """Noisy context learning: an entity sees itself and the earlier *noised* entities.

    So the network meets its own kind of errors in training.

    Attributes:
      entities: Tokens of the latents.
      num_classes: The label of "no class".
      flow: What is noised and predicted.
    """

    entities: Entities
    num_classes: int
    flow: Flow

    needs = "denoiser"
    sampling = Guided

    def noise(self, network: Any, key: Array, tokens: Float[Array, "b n c"]) -> FlowNoise:
        """Returns a time for each entity and noise for each token."""
        return self.flow.noise(key, tokens, self.entities.plan)

    def inputs(
        self, tokens: Float[Array, "b n c"], noised: Float[Array, "b n c"], times: Array
    ) -> tuple[Array, Array, Layout]:
        """Returns what the network sees in training: tokens, a time for each segment, layout."""
        return noised, times, self.entities.plan.layout()

    def loss(
        self,
        network: Any,
        tokens: Float[Array, "b n c"],
        labels: Int[Array, " b"],
        noise: FlowNoise,
        key: Array | None = None,
    ) -> Float[Array, ""]:
        """Returns the mean squared error of the velocities of all noised tokens, in float32."""
        noised, target = self.flow.prepare(tokens, noise, self.entities.plan)
        seen, times, layout = self.inputs(tokens, noised, noise.times)
        velocity, _ = network(seen, times, labels, layout, key=key)
        velocity = velocity[:, -tokens.shape[1] :].astype(jnp.float32)
        return jnp.mean(jnp.square(velocity - target))

    def sample(self, network: Any, request: Request) -> Float[Array, "b n c"]:
        """Returns the tokens, in the dtype of the solver's state."""
        plan = self.entities.plan
        cache = network.empty_cache(request.rows, plan.offsets[-2])
        return autoregressive(plan, _Walk(self, network, request).draw, (cache, None))


class Clean(Noisy):
    """Teacher forcing: an entity sees itself, noised, and the earlier *clean* entities.

    Clean and noised entities are two streams of one pass, twice as long.
    """

    def inputs(
        self, tokens: Float[Array, "b n c"], noised: Float[Array, "b n c"], times: Array
    ) -> tuple[Array, Array, Layout]:
        """Returns both streams, the clean one at time 0."""
        streams = jnp.concatenate([tokens, noised], 1)
        both = jnp.concatenate([jnp.zeros_like(times), times], 1)
        return streams, both, self.entities.plan.two_streams()


@dataclasses.dataclass(frozen=True)
class _Walk:
    """The step of the sampler for one request.

    With guidance the batch is [conditional; unconditional] wherever the cache is used.
    """

    context: Noisy
    network: Any
    request: Request

    def draw(self, state: tuple[Any, Any], step: Step) -> tuple[tuple[Any, Array], Array]:
        """Returns the state and the tokens of one entity.

        State are the cache and the entity before, which is not in the cache yet.
        """
        cache, previous = state
        if previous is not None:
            cache = self._write(cache, previous, step)
        tokens = self._solve(cache, step)
        return (cache, tokens), tokens

    def _solve(self, cache: Any, step: Step) -> Array:
        context, request = self.context, self.request
        guide = request.guide_of(step, context.entities.plan.entities)
        layout, seen = look(cache, step.start, step.size, step.visible)
        batch = len(request.labels)

        def predict(x, t, labels, seen):
            velocity, _ = self._ask(x, t, labels, layout, seen)
            return velocity.astype(x.dtype)

        def velocity(x, t):
            def both():
                labels = request.both_labels(context.num_classes)
                return predict(request.both(x), t, labels, seen)

            def alone():
                return predict(x, t, request.labels, _first(seen, batch))

            return guided(guide, t, both, alone)

        return solve(
            velocity,
            (step.size, context.entities.channels),
            request.settings.draw,
            context.flow.path,
            request.draws.at(step.entity),
            request.fixed(step.start, step.size),
        )

    def _write(self, cache: Any, tokens: Array, step: Step) -> Any:
        """Returns the cache with the keys and values of a finished entity, seen at time 0."""
        size = tokens.shape[1]
        start = step.start - size
        layout, seen = look(cache, start, size, step.visible - size)
        labels = self.request.both_labels(self.context.num_classes)
        _, new = self._ask(self.request.both(tokens), jnp.zeros(()), labels, layout, seen, True)
        return write(cache, new, start)

    def _ask(self, tokens, t, labels, layout, seen, collect=False):
        times = jnp.broadcast_to(t.astype(jnp.float32), (len(tokens), 1))
        return self.network(
            tokens.astype(jnp.float32), times, labels, layout, cache=seen, collect=collect
        )


def _first(cache: Any, batch: int) -> Any:
    """Returns the conditional half of a cache; it is whole already where there is no other."""
    return jax.tree.map(lambda a: a[:, :batch], cache)
