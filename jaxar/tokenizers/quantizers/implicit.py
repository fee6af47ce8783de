"""Quantizers without a codebook: the vector of a code follows from its digits.

They implement `vector.Quantizer`; equation numbers are those of `vector`. Their vectors cannot have
an arbitrary length. A multi-scale residual quantizer therefore needs one phi per level, which
learns the length (`residual.MultiScaleQuantizer`).
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.checks import above, at_least, require, sizes, whole
from jaxar.errors import FieldError
from jaxar.nn.module import Module
from jaxar.tokenizers.quantizers.vector import straight_through
from jaxar.typing import Array, Float, Int


class FiniteScalar(Module):
    """FSQ: rounds each channel to one of a few levels; it has no codebook and no loss.

    A bounded squashing first makes all levels reachable. The value z then becomes one of L equally
    spaced levels from -1 to 1 (for even L from -1 to 1 - 2/L).
    Source: arXiv 2309.15505, section 3.1 and appendix A.1.
    """

    margin = 1e-3

    settles = False

    def __init__(self, *, levels: Sequence[int] = (8, 8, 8, 6, 5), key: Array):
        """Makes the quantizer.

        Args:
          levels: Levels of each channel; the vocabulary is their product.
          key: Not used.

        Raises:
          ValueError: there are no channels, one has fewer than 2 levels, or codes exceed int32.
        """
        del key
        require(locals(), levels=sizes(low=2))
        if math.prod(levels) > 2**31 - 1:
            raise FieldError(f"levels must have a product below 2^31, not {tuple(levels)}.")
        self.levels = tuple(int(level) for level in levels)
        self.vocabulary, self.channels = math.prod(self.levels), len(self.levels)

    def bound(self, features: Float[Array, "... c"]) -> Float[Array, "... c"]:
        """Returns the values squashed so that rounding gives the levels -(L // 2), ..."""
        levels = np.asarray(self.levels)
        half = (levels - 1) * (1 - self.margin) / 2
        offset = np.where(levels % 2, 0.0, 0.5)
        shift = np.tan(offset / half)
        return jnp.tanh(features + jnp.float32(shift)) * jnp.float32(half) - jnp.float32(offset)

    def nearest(self, features: Float[Array, "... c"]) -> Int[Array, "..."]:
        """Returns the code of the rounded values; the first channel varies fastest."""
        rounded = jnp.round(jax.lax.stop_gradient(self.bound(features))).astype(jnp.int32)
        return jnp.sum((rounded + self._halves) * self._places, -1)

    def embed(self, codes: Int[Array, "..."]) -> Float[Array, "... c"]:
        """Returns the levels of each code, in [-1, 1]."""
        digits = codes[..., None] // self._places % jnp.asarray(self.levels)
        return (digits - self._halves).astype(jnp.float32) / self._halves

    def penalty(self, features: Float[Array, "n c"]) -> Float[Array, ""]:
        """Returns 0: squashed values reach every level."""
        return jnp.zeros(())

    def settle(self, seen: Sequence[Array], key: Array) -> None:
        """Sets nothing: there is no codebook."""

    def quantize(
        self, features: Float[Array, "... c"]
    ) -> tuple[Int[Array, "..."], Float[Array, "... c"], Float[Array, ""]]:
        """Returns codes, levels with the gradient of the squashed values, and a loss of 0."""
        codes = self.nearest(features)
        squashed = self.bound(features) / self._halves
        return codes, straight_through(self.embed(codes), squashed), jnp.zeros(())

    @property
    def _halves(self) -> Array:
        return jnp.asarray(self.levels) // 2

    @property
    def _places(self) -> Array:
        """The product of the levels before each channel."""
        places = [math.prod(self.levels[:i]) for i in range(self.channels)]
        return jnp.asarray(places, jnp.int32)


class LookupFree(Module):
    """LFQ: reduces each channel to its sign, so a code is a binary number; it has no codebook.

    The penalty is the mean entropy of p(code | vector) minus the entropy of the mean p. It favours
    confident assignments and use of all codes. p is proportional to
    exp(-|z - code|^2 / temperature).
    Source: arXiv 2310.05737, equations 4 to 6.
    """

    settles = False

    def __init__(
        self,
        *,
        bits: int = 10,
        beta: float = 0.25,
        entropy: float = 0.1,
        temperature: float = 1.0,
        key: Array,
    ):
        """Makes the quantizer.

        Args:
          bits: Channels; there are 2^bits codes, and the penalty's memory grows with them.
          beta: Weight of the commitment loss.
          entropy: Weight of the penalty.
          temperature: Temperature of p, in squared units of the features.
          key: Not used.

        Raises:
          ValueError: an argument is invalid.
        """
        del key
        require(
            locals(),
            bits=whole(1, 30),
            beta=at_least(0),
            entropy=at_least(0),
            temperature=above(0),
        )
        self.vocabulary, self.channels = 2**bits, bits
        self.beta, self.entropy, self.temperature = beta, entropy, temperature

    def nearest(self, features: Float[Array, "... c"]) -> Int[Array, "..."]:
        """Returns the code whose bit i says whether channel i is above 0."""
        return jnp.sum((features > 0).astype(jnp.int32) << jnp.arange(self.channels), -1)

    def embed(self, codes: Int[Array, "..."]) -> Float[Array, "... c"]:
        """Returns the signs of each code, -1 or 1."""
        bits = codes[..., None] >> jnp.arange(self.channels) & 1
        return (2 * bits - 1).astype(jnp.float32)

    def penalty(self, features: Float[Array, "n c"]) -> Float[Array, ""]:
        """Returns `entropy` x the difference of the two entropies, in nats."""
        if not self.entropy:
            return jnp.zeros(())
        # |z - 1|^2 and |z + 1|^2 differ by 4 z, and bits are independent given a vector.
        logits = 4 * features / self.temperature
        on = 0.5 * (self.embed(jnp.arange(self.vocabulary)) + 1)
        log_p = jax.nn.log_sigmoid(logits) @ on.T + jax.nn.log_sigmoid(-logits) @ (1 - on).T
        p = jnp.exp(log_p)
        unsure = -jnp.mean(jnp.sum(p * log_p, -1))
        mean = jnp.mean(p, 0)
        return self.entropy * (unsure + jnp.sum(mean * jnp.log(mean + 1e-20)))

    def settle(self, seen: Sequence[Array], key: Array) -> None:
        """Sets nothing: there is no codebook."""

    def quantize(
        self, features: Float[Array, "... c"]
    ) -> tuple[Int[Array, "..."], Float[Array, "... c"], Float[Array, ""]]:
        """Returns codes, vectors by (3), and the commitment loss of (2) plus the penalty."""
        codes = self.nearest(features)
        vectors = self.embed(codes)
        commitment = self.beta * jnp.mean(jnp.square(vectors - features))
        loss = commitment + self.penalty(features.reshape(-1, self.channels))
        return codes, straight_through(vectors, features), loss
