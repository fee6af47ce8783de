"""The context of VAR and FlowAR: an entity is seen through what the entities before it say of it.

In training the network gets the inputs of all entities at once, from the data (teacher forcing); in
sampling those of one entity, made of what was drawn, and writes them to the cache in the same pass.
With entities of one token this is the usual next-token prediction.
Source: FoundationVision/VAR models/var.py `forward`, `autoregressive_infer_cfg`; wangqiang9/FlowAR
models/flowar.py `forward`, `sample_tokens`.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from jaxar.flow.guidance import Guided, share_of
from jaxar.heads.base import Turn
from jaxar.schemes.base import Network, Request, look, write
from jaxar.schemes.walk import Step, autoregressive
from jaxar.tokenizers.tokens import Entities
from jaxar.typing import Array, Float, Int


@dataclasses.dataclass(frozen=True, eq=False)
class Shifted:
    """Prediction of an entity from the ones before it.

    Attributes:
      entities: Tokens, and what they say of later ones.
      num_classes: The label of "no class".
    """

    entities: Entities
    num_classes: int

    needs = "causal"
    sampling = Guided

    def noise(self, network: Network, key: Array, tokens: Array) -> Any:
        """Returns the head's randomness."""
        return network.head.noise(key, tokens, self.entities.plan)

    def loss(
        self,
        network: Network,
        tokens: Array,
        labels: Int[Array, " b"],
        noise: Any,
        key: Array | None = None,
    ) -> Float[Array, ""]:
        """Returns the mean over all tokens of the head's loss."""
        plan = self.entities.plan
        inputs = self.entities.inputs(tokens)
        hidden, _ = network.backbone(inputs, labels, plan.layout(), key=key)
        return jnp.mean(network.head.loss(hidden, tokens, noise, plan))

    def sample(self, network: Network, request: Request) -> Array:
        """Returns the tokens."""
        plan, batch = self.entities.plan, len(request.labels)
        cache = network.backbone.empty_cache(request.rows, plan.tokens)
        labels, entities = request.both_labels(self.num_classes), self.entities

        def draw(state: tuple[Any, Any], step: Step) -> tuple[tuple[Any, Any], Array]:
            cache, before = state
            if step.visible == 0:
                inputs = jnp.zeros((batch, 0, entities.channels))
            else:
                inputs = entities.next_inputs(before, step.entity)
            layout, seen = look(cache, step.start, step.size, step.visible)
            hidden, new = network.backbone(
                request.both(inputs), labels, layout, cache=seen, collect=True
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
            tokens = network.head.draw(hidden if guide else hidden[:batch], turn)
            state = write(cache, new, step.start), entities.follow(before, tokens, step.entity)
            return state, tokens

        return autoregressive(plan, draw, (cache, entities.begin(batch)))
