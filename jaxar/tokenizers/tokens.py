"""From data to the tokens of a plan and back, and what an entity sees of those before it.

    tokens = cut(data)                     what is predicted, in the order of the plan
    inputs_i = what entities 0 ... i - 1 say about entity i, one vector a token       (1)
    data = paste(tokens)

Contexts that predict an entity from (1) read it here, in training for all entities at once, in
sampling entity by entity, with a state that is carried along.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp

from jaxar.core.plan import Plan
from jaxar.core.resize import resize_area, resize_bicubic
from jaxar.tokenizers.base import Tokenizer
from jaxar.tokenizers.quantizers.residual import MultiScaleQuantizer
from jaxar.typing import Array, Float


@runtime_checkable
class Entities(Protocol):
    """What every kind of token offers."""

    @property
    def plan(self) -> Plan:
        """The entities and their order."""
        ...

    @property
    def channels(self) -> int:
        """Numbers in an input vector."""
        ...

    @property
    def outcomes(self) -> int:
        """What a head predicts of a token: so many numbers, or one of so many codes."""
        ...

    def attach(self, autoencoder: Any) -> "Entities":
        """Returns these with the parameters of an autoencoder, a bound module."""
        ...

    def cut(self, data: Float[Array, "b h w c"], key: Array) -> Array:
        """Returns the tokens of data, (b, n, ...); `key` is for tokenizers that sample."""
        ...

    def paste(self, tokens: Array) -> Float[Array, "b h w c"]:
        """Returns the data that tokens stand for."""
        ...

    def inputs(self, tokens: Array) -> Float[Array, "b m c"]:
        """Returns (1) for all entities but the first, whose tokens m leaves out."""
        ...

    def begin(self, batch: int) -> Any:
        """Returns the state before the first entity."""
        ...

    def follow(self, state: Any, tokens: Array, entity: Any) -> Any:
        """Returns the state after an entity with these tokens."""
        ...

    def next_inputs(self, state: Any, entity: Any) -> Float[Array, "b m c"]:
        """Returns (1) for an entity after the first."""
        ...


@dataclasses.dataclass(frozen=True)
class Latents:
    """Tokens are vectors of a latent grid.

    (1) is the level before, enlarged to the grid of the data and averaged down to the level's own,
    where entities are scales (FlowAR); else the tokens of the entity before, which must be of the
    same size. Source: wangqiang9/FlowAR models/flowar.py `forward`.

    Attributes:
      tokenizer: From data to latents and back.
      plan: Entities of the latents.
      channels: Numbers in a token.
    """

    tokenizer: Tokenizer
    plan: Plan
    channels: int

    @property
    def outcomes(self) -> int:
        """Numbers in a token."""
        return self.channels

    def attach(self, autoencoder: Any) -> "Latents":
        """Returns these: they need no parameters."""
        return self

    def cut(self, data: Float[Array, "b h w c"], key: Array) -> Float[Array, "b n c2"]:
        """Returns the latents as tokens."""
        return self.plan.cut(self.tokenizer.encode(data, key))

    def paste(self, tokens: Float[Array, "b n c"]) -> Float[Array, "b h w c2"]:
        """Returns the data of the tokens."""
        return self.tokenizer.decode(self.plan.paste(tokens.astype(jnp.float32)))

    def inputs(self, tokens: Float[Array, "b n c"]) -> Float[Array, "b m c"]:
        """Returns (1) for all entities but the first."""
        plan = self.plan
        if len(plan.levels) == 1:
            return tokens[:, : plan.offsets[-2]]
        parts = [
            self.next_inputs(tokens[:, start:stop], i + 1)
            for i, (start, stop) in enumerate(plan.spans()[:-1])
        ]
        return jnp.concatenate([jnp.zeros((len(tokens), 0, self.channels)), *parts], 1)

    def begin(self, batch: int) -> Array:
        """Returns no tokens."""
        return jnp.zeros((batch, 0, self.channels))

    def follow(self, state: Array, tokens: Float[Array, "b m c"], entity: Any) -> Array:
        """Returns the tokens, all that the next entity sees."""
        return tokens.astype(jnp.float32)

    def next_inputs(self, state: Float[Array, "b k c"], entity: Any) -> Float[Array, "b m c"]:
        """Returns (1), given the tokens of the entity before."""
        plan = self.plan
        if len(plan.levels) == 1:
            return state
        before = state.reshape(len(state), *plan.levels[entity - 1], self.channels)
        level = resize_area(resize_bicubic(before, plan.grid), plan.levels[entity])
        return level.reshape(len(state), -1, self.channels)


@dataclasses.dataclass(frozen=True, eq=False)
class Codes:
    """Tokens are codes of a multi-scale quantizer, whose levels are the entities (VAR).

    The tokenizer gives the features that the quantizer was made for. (1) is what all levels before
    stand for together, on the level's own grid.

    Attributes:
      tokenizer: From data to features and back.
      quantizer: With its parameters; where it holds shapes only, sizes can be asked but no more.
      plan: Its levels.
    """

    tokenizer: Tokenizer
    quantizer: MultiScaleQuantizer
    plan: Plan

    def attach(self, autoencoder: Any) -> "Codes":
        """Returns these with the autoencoder's quantizer."""
        return dataclasses.replace(self, quantizer=autoencoder.quantizer)

    @property
    def channels(self) -> int:
        """Numbers in a code's vector."""
        return self.quantizer.channels

    @property
    def outcomes(self) -> int:
        """Number of codes."""
        return self.quantizer.vocabulary

    def cut(self, data: Float[Array, "b h w c"], key: Array) -> Array:
        """Returns the codes, (b, n) int32."""
        return self.quantizer.join(self.quantizer.encode(self.tokenizer.encode(data, key)))

    def paste(self, tokens: Array) -> Float[Array, "b h w c"]:
        """Returns the data that codes, or weights of codes (b, n, v), stand for."""
        return self.tokenizer.decode(self.quantizer.decode(self.quantizer.split(tokens)))

    def inputs(self, tokens: Array) -> Float[Array, "b m c"]:
        """Returns (1) for all levels but the first."""
        return self.quantizer.teacher_forcing(self.quantizer.split(tokens))

    def begin(self, batch: int) -> Float[Array, "b h w c"]:
        """Returns a map of zeros, what no levels stand for."""
        return jnp.zeros((batch, *self.plan.grid, self.channels))

    def follow(self, state: Array, tokens: Array, entity: int) -> Float[Array, "b h w c"]:
        """Returns the map with what a level adds."""
        grid = self.plan.levels[entity]
        codes = tokens.reshape(len(state), *grid, *tokens.shape[2:])
        return state + self.quantizer.contribution(codes, entity)

    def next_inputs(self, state: Float[Array, "b h w c"], entity: int) -> Float[Array, "b m c"]:
        """Returns (1), the map on the grid of the level."""
        return self.quantizer.input_of(entity, state).reshape(len(state), -1, self.channels)
