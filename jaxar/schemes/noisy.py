"""The scheme of xAR: an entity is seen together with those before it, all noised.

In training every entity has its own noise, and the network sees itself and the earlier ones so; in
sampling, the earlier ones are finished and seen clean, at time 0, through the cache. The network is
the velocity itself: it is asked once for each step of the solver.
Source: arXiv 2502.20388, section 3.3; OliverRensu/xAR models/xar.py `sample_tokens`.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from jaxar.core.cache import rows, write
from jaxar.core.visibility import Layout
from jaxar.flow.guidance import guided
from jaxar.heads.flow import Flow, FlowNoise, solve
from jaxar.schemes.base import Request, look
from jaxar.schemes.walk import EntityStep, autoregressive
from jaxar.tokenizers.tokens import Entities
from jaxar.typing import Array, Float


@dataclasses.dataclass(frozen=True, eq=False)
class Noisy:
    """Noisy context learning: an entity sees itself and the earlier *noised* entities.

    So the network meets its own kind of errors in training.

    Attributes:
      entities: Tokens of the latents.
      flow: What is noised and predicted.
    """

    entities: Entities
    flow: Flow

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
        condition: Any,
        noise: FlowNoise,
        key: Array | None = None,
    ) -> Float[Array, ""]:
        """Returns the mean squared error of the velocities of all noised tokens, in float32."""
        noised, target = self.flow.prepare(tokens, noise, self.entities.plan)
        seen, times, layout = self.inputs(tokens, noised, noise.times)
        velocity, _ = network(seen, times, condition, layout, key=key)
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

    scheme: Noisy
    network: Any
    request: Request

    def draw(self, state: tuple[Any, Any], step: EntityStep) -> tuple[tuple[Any, Array], Array]:
        """Returns the state and the tokens of one entity.

        State are the cache and the entity before, which is not in the cache yet.
        """
        cache, previous = state
        if previous is not None:
            cache = self._write(cache, previous, step)
        tokens = self._solve(cache, step)
        return (cache, tokens), tokens

    def _solve(self, cache: Any, step: EntityStep) -> Array:
        scheme, request = self.scheme, self.request
        guide = request.guide_of(step, scheme.entities.plan.entities)
        layout, seen = look(cache, step.start, step.size, step.visible)

        def predict(x, t, condition, seen):
            velocity, _ = self._ask(x, t, condition, layout, seen)
            return velocity.astype(x.dtype)

        def velocity(x, t):
            def both():
                return predict(request.repeated(x), t, request.branches, seen)

            def alone():
                one = None if seen is None else rows(seen, slice(0, request.batch))
                return predict(x, t, request.condition, one)

            return guided(guide, t, both, alone)

        return solve(
            velocity,
            (step.size, scheme.entities.channels),
            request.settings.draw,
            scheme.flow.path,
            request.draws.at(step.entity),
            request.fixed(step.start, step.size),
        )

    def _write(self, cache: Any, tokens: Array, step: EntityStep) -> Any:
        """Returns the cache with the keys and values of a finished entity, seen at time 0."""
        size = tokens.shape[1]
        start = step.start - size
        layout, seen = look(cache, start, size, step.visible - size)
        tokens, condition = self.request.repeated(tokens), self.request.branches
        _, new = self._ask(tokens, jnp.zeros(()), condition, layout, seen, True)
        return write(cache, new, start)

    def _ask(self, tokens, t, condition, layout, seen, collect=False):
        times = jnp.broadcast_to(t.astype(jnp.float32), (len(tokens), 1))
        return self.network(
            tokens.astype(jnp.float32), times, condition, layout, cache=seen, collect=collect
        )
