"""The head of VAR: a distribution over the codes of a token.

    loss = -log p(code),    p = softmax(logits)

Sampling keeps the k most likely codes, of these the fewest that make up probability p, and draws
one; *smooth* sampling takes a mean of code vectors instead, with weights that sharpen from level
to level. Source: FoundationVision/VAR models/helpers.py, models/var.py.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxar.checks import at_least, require, share, truth, whole
from jaxar.core.plan import Plan
from jaxar.heads.base import Turn
from jaxar.nn import layers
from jaxar.nn.module import Module
from jaxar.typing import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Choosing:
    """How codes are drawn. Static under `jax.jit`.

    Attributes:
      top_k: Most likely codes that may be drawn; 0 for all.
      top_p: Probability that the codes which may be drawn make up; 0 for all.
      smooth: Whether to mix code vectors instead of drawing one, for pretty pictures.
    """

    top_k: int = 0
    top_p: float = 0.0
    smooth: bool = False

    def __post_init__(self):
        require(vars(self), top_k=whole(0), top_p=share, smooth=truth)


class Categorical(Module):
    """Logits of every code, a linear map of the hidden vector."""

    serves, predicts = ("causal",), "codes"
    sampling = Choosing

    def __init__(
        self, plan: Plan, hidden: int, vocabulary: int, *, init_scale: float = 0.02, key: Array
    ):
        """Draws the map of hidden vectors from N(0, init_scale^2 / (3 hidden)), VAR's law."""
        require(locals(), init_scale=at_least(0))
        law = layers.normal(init_scale * (3 * hidden) ** -0.5)
        self.vocabulary = vocabulary
        self.logits = layers.Linear(hidden, vocabulary, key=key, init=law)

    def noise(self, key: Array, tokens: Array, plan: Plan) -> tuple[()]:
        """Returns nothing: the loss has no randomness of its own."""
        return ()

    def loss(
        self, hidden: Float[Array, "b n d"], tokens: Int[Array, "b n"], noise: tuple[()], plan: Plan
    ) -> Float[Array, "b n"]:
        """Returns the cross-entropy of every code, in nats."""
        likelihood = jax.nn.log_softmax(self.logits(hidden), -1)
        return -jnp.take_along_axis(likelihood, tokens[..., None], -1)[..., 0]

    def draw(self, hidden: Float[Array, "b m d"], turn: Turn) -> Array:
        """Returns codes (b, m) int32, or weights of all codes (b, m, v) in smooth sampling."""
        logits = self.logits(hidden)
        if turn.guide is not None:
            logits = turn.guide.mix(logits)
        logits = top_p(top_k(logits, turn.settings.top_k), turn.settings.top_p)
        noise = turn.draws.gumbel(0, logits.shape[1:])
        if not turn.settings.smooth:
            codes = jnp.argmax(logits + noise, -1).astype(jnp.int32)
            return codes if turn.known is None else turn.known.keep(codes)
        temperature = jnp.maximum(0.27 * (1 - 0.95 * turn.share), 0.005)
        weights = jax.nn.softmax((logits * (1 + turn.share) + noise) / temperature, -1)
        if turn.known is None:
            return weights
        whole = jax.nn.one_hot(turn.known.tokens, self.vocabulary)
        return turn.known._replace(tokens=whole).keep(weights)


def top_k(logits: Float[Array, "... v"], count: int) -> Float[Array, "... v"]:
    """Returns the logits with all but the `count` largest at minus infinity; 0 keeps all.

    Those that tie with the smallest kept one stay.
    """
    if count == 0 or count >= logits.shape[-1]:
        return logits
    smallest = jax.lax.top_k(logits, count)[0][..., -1:]
    return jnp.where(logits < smallest, -jnp.inf, logits)


def top_p(logits: Float[Array, "... v"], mass: float) -> Float[Array, "... v"]:
    """Returns the logits with the least likely ones, which make up 1 - mass at most, taken out.

    The most likely one always stays, and those that tie with the smallest kept one; 0 keeps all.
    """
    if mass == 0:
        return logits
    ascending = jnp.sort(logits, -1)
    kept = jnp.cumsum(jax.nn.softmax(ascending, -1), -1) > 1 - mass
    kept = kept.at[..., -1].set(True)
    smallest = jnp.min(jnp.where(kept, ascending, jnp.inf), -1, keepdims=True)
    return jnp.where(logits < smallest, -jnp.inf, logits)
