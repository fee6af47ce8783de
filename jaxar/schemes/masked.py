"""The scheme of MAR: tokens are predicted from any set of others, in random order.

In training a random share of the tokens is masked, and the loss is that of the masked ones. In
sampling every example has its own random order; each iteration reveals the next tokens of it, more
and more, until none are left. How many tokens are kept is a number, so that one compiled step
serves many iterations: the encoder has room for as many tokens as the last of them keeps, and each
draws as many as the largest needs and keeps what is due.
Source: arXiv 2406.11838, section 3.4; LTH14/mar models/mar.py.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.checks import above, between, require, whole
from jaxar.core.known import Known
from jaxar.core.padding import needed
from jaxar.core.plan import Plan, unmasking
from jaxar.core.random import Draws
from jaxar.flow.guidance import Guided
from jaxar.heads.base import Turn
from jaxar.schemes.base import BackboneWithHead, Request
from jaxar.tokenizers.tokens import Entities
from jaxar.typing import Array, Float

PARTS = 4
"""Compiled steps of the walk, each for its share of the iterations: early ones keep and draw few
tokens. Measured on a CPU at MAR-B's proportions and 64 iterations, 4 take 0.73 of the time of 1,
and 2 take 0.82; compiling takes 3.4 times as long."""


class Masking(NamedTuple):
    """Randomness of the loss.

    Attributes:
      order: (b, n) numbers of the tokens; the first of them are kept.
      masked: How many are masked, one number for the batch, as in the release.
      head: The head's own randomness.
    """

    order: Array
    masked: Array
    head: Any


@dataclasses.dataclass(frozen=True)
class Unmasking(Guided):
    """The walk: guidance, and the iterations in which all tokens are drawn.

    Attributes:
      iterations: From 1 to the number of tokens.
    """

    iterations: int = 64

    def __post_init__(self):
        super().__post_init__()
        require(vars(self), iterations=whole(1))


@dataclasses.dataclass(frozen=True, eq=False)
class Masked:
    """Masked autoregression.

    Attributes:
      entities: Tokens of the latents; each is an entity of its own.
      lowest: Smallest share of masked tokens in training.
      deviation: The share is drawn from N(1, deviation^2) between `lowest` and 1.
    """

    entities: Entities
    lowest: float = 0.7
    deviation: float = 0.25

    needs = "set"
    sampling = Unmasking

    def __post_init__(self):
        if max(self.plan.sizes) > 1:
            raise ValueError("The masked scheme draws tokens one by one: choose plan=token.")
        require(vars(self), lowest=between, deviation=above(0))

    @property
    def plan(self) -> Plan:
        """The tokens."""
        return self.entities.plan

    @property
    def most_kept(self) -> int:
        """Tokens that training keeps at most."""
        return self.plan.tokens - math.ceil(self.plan.tokens * self.lowest)

    @property
    def usually_kept(self) -> float:
        """Tokens that training keeps on average, by the mean of the share that is masked."""
        z = (self.lowest - 1) / self.deviation
        density = (math.exp(-z * z / 2) - 1) / math.sqrt(2 * math.pi)
        masked = 1 + self.deviation * density / (0.5 - (1 + math.erf(z / math.sqrt(2))) / 2)
        return self.plan.tokens * (1 - masked)

    def noise(self, network: BackboneWithHead, key: Array, tokens: Array) -> Masking:
        """Returns an order for each example, how many tokens are masked, and the head's draws."""
        order_key, share_key, head_key = jax.random.split(key, 3)
        n = self.plan.tokens
        share = jax.random.truncated_normal(share_key, (self.lowest - 1) / self.deviation, 0.0)
        masked = jnp.ceil(n * (1 + self.deviation * share)).astype(jnp.int32)
        order = Draws(jax.random.split(order_key, len(tokens))).permutation(n)
        masked = jnp.clip(masked, n - self.most_kept, n)
        return Masking(order, masked, network.head.noise(head_key, tokens, self.plan))

    def loss(
        self,
        network: BackboneWithHead,
        tokens: Array,
        condition: Any,
        noise: Masking,
        key: Array | None = None,
    ) -> Float[Array, ""]:
        """Returns the mean of the head's loss over the masked tokens."""
        n, usual = self.plan.tokens, self.usually_kept
        kept = n - noise.masked
        hidden = network.backbone(
            tokens, condition, noise.order, kept, self.most_kept, usual=usual, key=key
        )
        with needed(n - usual, n):
            loss = network.head.loss(hidden, tokens, noise.head, self.plan)
        ranks = jnp.argsort(noise.order, -1)
        weights = (ranks >= kept).astype(jnp.float32)
        return jnp.sum(loss * weights) / jnp.sum(weights)

    def sample(self, network: BackboneWithHead, request: Request) -> Array:
        """Returns the tokens."""
        plan, batch = self.plan, request.batch
        sizes = np.array(unmasking(plan.tokens, request.settings.iterations or plan.tokens))
        starts = np.cumsum(sizes) - sizes
        # The release counts the tokens that will still be masked, at least one.
        shares = 1 - np.maximum(plan.tokens - starts - sizes, 1) / plan.tokens
        order, condition = self._order(request), request.branches
        rows = jnp.arange(batch)[:, None]
        padded = jnp.pad(order, ((0, 0), (0, int(sizes.max()))), constant_values=plan.tokens)

        def reveal(
            tokens: Array, step: Any, room: int, usual: float, most: int, due: float
        ) -> tuple[Array, None]:
            i, start, size, share = step
            hidden = network.backbone(
                request.repeated(tokens),
                condition,
                request.repeated(order),
                start,
                room,
                usual=usual,
            )
            place = jax.lax.dynamic_slice_in_dim(padded, start, most, 1)
            place = jnp.where(jnp.arange(most) < size, place, plan.tokens)  # written nowhere
            inside = jnp.minimum(place, plan.tokens - 1)
            chosen = jnp.take_along_axis(hidden, request.repeated(inside)[..., None], 1)
            known = None
            if request.known is not None:
                known = Known(*(x[rows, inside] for x in request.known))
            guide, draws = request.guide(share), request.draws.at(i)
            turn = Turn(inside, share, guide, draws, request.settings.draw, known)
            with needed(due, most):
                drawn = network.head.draw(chosen, turn)
            return tokens.at[rows, place].set(drawn, mode="drop"), None

        tokens = jnp.zeros((batch, plan.tokens, self.entities.channels))
        for part in np.array_split(np.arange(len(sizes)), min(PARTS, len(sizes))):
            steps = part, starts[part], sizes[part], shares[part].astype(np.float32)
            body = functools.partial(
                reveal,
                room=int(starts[part[-1]]),
                usual=float(starts[part].mean()),
                most=int(sizes[part].max()),
                due=float(sizes[part].mean()),
            )
            tokens, _ = jax.lax.scan(body, tokens, jax.tree.map(jnp.asarray, steps))
        return tokens

    def _order(self, request: Request) -> Array:
        """Returns the order of revealing, (b, n): known tokens first."""
        order = request.draws.permutation(self.plan.tokens)
        if request.known is None:
            return order
        unknown = jnp.take_along_axis(~request.known.mask, order, 1)
        return jnp.take_along_axis(order, jnp.argsort(unknown, -1, stable=True), 1)
