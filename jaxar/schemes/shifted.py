"""The scheme of VAR and FlowAR: an entity is seen through what the entities before it say of it.

In training the network gets the inputs of all entities at once, from the data (teacher forcing); in
sampling those of one entity, made of what was drawn, and writes them to the cache in the same pass.
With entities of one token this is the usual next-token prediction.
Source: FoundationVision/VAR models/var.py `forward`, `autoregressive_infer_cfg`; wangqiang9/FlowAR
models/flowar.py `forward`, `sample_tokens`.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from jaxar.core.cache import write
from jaxar.flow.guidance import share_of
from jaxar.heads.base import Turn
from jaxar.schemes.base import BackboneWithHead, Request, look
from jaxar.schemes.walk import EntityStep, autoregressive
from jaxar.tokenizers.tokens import Entities
from jaxar.typing import Array, Float


@dataclasses.dataclass(frozen=True, eq=False)
class Shifted:
    """Prediction of an entity from the ones before it.

    Attributes:
      entities: Tokens, and what they say of later ones.
    """

    entities: Entities

    def noise(self, network: BackboneWithHead, key: Array, tokens: Array) -> Any:
        """Returns the head's randomness."""
        return network.head.noise(key, tokens, self.entities.plan)

    def loss(
        self,
        network: BackboneWithHead,
        tokens: Array,
        condition: Any,
        noise: Any,
        key: Array | None = None,
    ) -> Float[Array, ""]:
        """Returns the mean over all tokens of the head's loss."""
        plan = self.entities.plan
        inputs = self.entities.inputs(tokens)
        hidden, _ = network.backbone(inputs, condition, plan.layout(), key=key)
        return jnp.mean(network.head.loss(hidden, tokens, noise, plan))

    def sample(self, network: BackboneWithHead, request: Request) -> Array:
        """Returns the tokens."""
        plan, entities = self.entities.plan, self.entities
        cache = network.backbone.empty_cache(request.rows, plan.tokens)
        condition = request.branches

        def draw(state: tuple[Any, Any], step: EntityStep) -> tuple[tuple[Any, Any], Array]:
            cache, before = state
            if step.visible == 0:
                inputs = jnp.zeros((request.batch, 0, entities.channels))
            else:
                inputs = entities.next_inputs(before, step.entity)
            layout, seen = look(cache, step.start, step.size, step.visible)
            hidden, new = network.backbone(
                request.repeated(inputs), condition, layout, cache=seen, collect=True
            )
            guide = request.guide_of(step, plan.entities)
            turn = Turn(
                layout.place,
                share_of(step.entity, plan.entities),
                guide,
                request.draws.at(step.entity),
                request.settings.draw,
                request.fixed(step.start, step.size),
            )
            tokens = network.head.draw(hidden if guide else hidden[: request.batch], turn)
            state = write(cache, new, step.start), entities.follow(before, tokens, step.entity)
            return state, tokens

        return autoregressive(plan, draw, (cache, entities.begin(request.batch)))
