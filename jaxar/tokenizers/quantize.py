"""Quantizers: from vectors to codes of a finite vocabulary, and from codes back to vectors.

    codes = nearest(z),    q = embed(codes)                                            (1)
    loss = |q - sg z|^2 + beta |sg q - z|^2                                            (2)
    straight-through: z + sg(q - z)                                                    (3)

sg is a constant to the gradient and |.|^2 a mean over all numbers. In (2) the first term moves the
codebook and the second, the commitment, the encoder; in (3) the decoder's gradient passes to the
encoder as if nothing had been quantized.
Source: arXiv 1711.00937, equations 1 to 3; FoundationVision/VAR models/quant.py for the side of
beta.
"""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.nn.module import Module, Param
from jaxar.typing import Array, Float, Int

DISTANCES = ("euclidean", "cosine")


@runtime_checkable
class Quantizer(Protocol):
    """What every quantizer offers.

    Attributes:
      vocabulary: Number of codes; a code is a whole number below it.
      channels: Numbers of a vector.
    """

    vocabulary: int
    channels: int

    def nearest(self, features: Float[Array, "... c"]) -> Int[Array, "..."]:
        """Returns the code of each vector, int32; no gradient passes."""
        ...

    def embed(self, codes: Int[Array, "..."]) -> Float[Array, "... c"]:
        """Returns the vector of each code."""
        ...

    def penalty(self, features: Float[Array, "n c"]) -> Float[Array, ""]:
        """Returns what keeps the codes in use, given all that was quantized; 0 for nothing."""
        ...

    def quantize(
        self, features: Float[Array, "... c"]
    ) -> tuple[Int[Array, "..."], Float[Array, "... c"], Float[Array, ""]]:
        """Returns codes, their vectors with a gradient straight through, and the loss."""
        ...


class VectorQuantizer(Module):
    """A codebook that is learned by gradient.

    By cosine, a code is chosen by its direction alone and still has its own length: residuals of a
    residual quantizer need lengths.
    Source: arXiv 1711.00937; FoundationVision/VAR models/quant.py (`using_znorm` is the cosine);
    arXiv 2005.00341, section 3.2, and 2307.15139 for bringing codes back to vectors of the batch.
    """

    def __init__(
        self,
        *,
        vocabulary: int = 4096,
        channels: int = 32,
        distance: str = "euclidean",
        beta: float = 0.25,
        revival: float = 0.0,
        key: Array,
    ):
        """Draws the codebook uniformly within 1 / vocabulary.

        Args:
          vocabulary: Number of codes.
          channels: Numbers of a vector.
          distance: "euclidean" or "cosine".
          beta: Weight of the commitment in `quantize`.
          revival: Weight of the `penalty` that brings back codes that nothing chooses.
          key: Randomness of the initial values.

        Raises:
          ValueError: an argument makes no sense.
        """
        if min(vocabulary, channels) < 1 or min(beta, revival) < 0:
            raise ValueError(
                f"vocabulary={vocabulary} and channels={channels} must be at least 1, beta={beta} "
                f"and revival={revival} at least 0."
            )
        if distance not in DISTANCES:
            raise ValueError(f"The distance is one of {list(DISTANCES)}, not {distance!r}.")
        self.vocabulary, self.channels, self.distance = vocabulary, channels, distance
        self.beta, self.revival = beta, revival
        bound = 1 / vocabulary
        self.codebook = Param(
            jax.random.uniform(key, (vocabulary, channels), minval=-bound, maxval=bound)
        )

    def distances(self, features: Float[Array, "... c"]) -> Float[Array, "... v"]:
        """Returns half the squared distance to each code, less a number of the vector's own.

        By cosine, that of unit vectors. No gradient passes.
        """
        features, codebook = jax.lax.stop_gradient((features, self.codebook[...]))
        if self.distance == "cosine":
            features, codebook = _unit(features), _unit(codebook)
        lengths = 0.5 * jnp.sum(jnp.square(codebook), -1)
        products = jnp.matmul(features, codebook.T, precision="highest")
        return lengths - products

    def nearest(self, features: Float[Array, "... c"]) -> Int[Array, "..."]:
        """Returns the nearest code of each vector; the first of several."""
        return jnp.argmin(self.distances(features), -1).astype(jnp.int32)

    def embed(self, codes: Int[Array, "..."]) -> Float[Array, "... c"]:
        """Returns the vector of each code, which the caller has checked to be in range."""
        return self.codebook[...][codes]

    def penalty(self, features: Float[Array, "n c"]) -> Float[Array, ""]:
        """Returns `revival` x the mean over codes of |code - vector|^2 where unchosen.

        A code that nothing in the batch has chosen is drawn to a vector of the batch, another one
        for each code, until it is chosen; codes in use do not feel it. This takes the place of
        restarting dead codes, which needs counts from step to step.
        """
        if not self.revival:
            return jnp.zeros(())
        chosen = jnp.zeros(self.vocabulary, bool).at[self.nearest(features)].set(True)
        spread = np.arange(self.vocabulary) * len(features) // self.vocabulary
        vectors = jax.lax.stop_gradient(features)[spread]
        apart = jnp.mean(jnp.square(self.codebook[...] - vectors), -1)
        return self.revival * jnp.mean(jnp.where(chosen, 0.0, apart))

    def quantize(
        self, features: Float[Array, "... c"]
    ) -> tuple[Int[Array, "..."], Float[Array, "... c"], Float[Array, ""]]:
        """Returns codes, vectors by (3), and (2) plus the penalty."""
        codes = self.nearest(features)
        vectors = self.embed(codes)
        loss = fit(vectors, features, self.beta)
        loss = loss + self.penalty(features.reshape(-1, self.channels))
        return codes, straight_through(vectors, features), loss


def fit(
    quantized: Float[Array, "..."], features: Float[Array, "..."], beta: float
) -> Float[Array, ""]:
    """Returns (2): beta is the weight of the term that moves the features."""
    constant = jax.lax.stop_gradient
    codebook = jnp.mean(jnp.square(quantized - constant(features)))
    return codebook + beta * jnp.mean(jnp.square(constant(quantized) - features))


def straight_through(
    quantized: Float[Array, "..."], features: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Returns (3): the value of `quantized` with the gradient of `features`."""
    return features + jax.lax.stop_gradient(quantized - features)


def usage(codes: Int[Array, "..."], vocabulary: int) -> Float[Array, ""]:
    """Returns the share of the vocabulary that occurs among the codes, in [0, 1]."""
    return jnp.mean((_counts(codes, vocabulary) > 0).astype(jnp.float32))


def perplexity(codes: Int[Array, "..."], vocabulary: int) -> Float[Array, ""]:
    """Returns exp(entropy of the codes): from 1 to `vocabulary`, for codes equally in use."""
    shares = _counts(codes, vocabulary) / codes.size
    return jnp.exp(-jnp.sum(shares * jnp.log(jnp.where(shares > 0, shares, 1))))


def _counts(codes: Array, vocabulary: int) -> Array:
    return jnp.bincount(codes.reshape(-1), length=vocabulary).astype(jnp.float32)


def _unit(x: Array) -> Array:
    """Returns vectors of length one; nothing stays nothing."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
