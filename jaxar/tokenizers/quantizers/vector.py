"""Quantizers: from vectors to codes of a finite vocabulary, and from codes back to vectors.

    codes = nearest(z),    q = embed(codes)                                            (1)
    loss = |q - sg z|^2 + beta |sg q - z|^2                                            (2)
    straight-through: z + sg(q - z)                                                    (3)
    code = sums / counts,    both moving averages over the vectors that chose it       (4)

sg stops the gradient and |.|^2 is a mean over all elements. In (2) the first term trains the
codebook; the second, the commitment loss, trains the encoder. In (3) the decoder's gradient passes
to the encoder as if nothing had been quantized. A codebook learns by the first term of (2), or is
the average (4).
Source: arXiv 1711.00937, equations 1 to 3 and appendix A.1 for (4);
FoundationVision/VAR models/quant.py for the term that has beta.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxar.checks import at_least, below_one, one_of, require, whole
from jaxar.nn.module import Module, Param
from jaxar.typing import Array, Float, Int

DISTANCES = ("euclidean", "cosine")
LEARNING = ("gradient", "average")


@runtime_checkable
class Quantizer(Protocol):
    """Protocol of quantizers.

    Attributes:
      vocabulary: Number of codes; a code lies in [0, vocabulary).
      channels: Channels of a vector.
      settles: Whether it has parameters without gradient, which `settle` updates.
    """

    vocabulary: int
    channels: int
    settles: bool

    def nearest(self, features: Float[Array, "... c"]) -> Int[Array, "..."]:
        """Returns the code of each vector, int32; no gradient passes."""
        ...

    def embed(self, codes: Int[Array, "..."]) -> Float[Array, "... c"]:
        """Returns the vector of each code."""
        ...

    def penalty(self, features: Float[Array, "n c"]) -> Float[Array, ""]:
        """Returns a loss that keeps the codes in use, given all quantized vectors; 0 for none."""
        ...

    def settle(self, seen: Sequence[Array], key: Array) -> None:
        """Updates parameters without gradient, after a training step.

        Args:
          seen: The vectors that were quantized, (n, c) for each level.
          key: Randomness.
        """
        ...

    def quantize(
        self, features: Float[Array, "... c"]
    ) -> tuple[Int[Array, "..."], Float[Array, "... c"], Float[Array, ""]]:
        """Returns codes, their vectors with a straight-through gradient, and the loss."""
        ...


class VectorQuantizer(Module):
    """A codebook, learned by gradient or as an average of the vectors that choose its codes.

    The cosine distance compares directions only, but codes keep their lengths: a residual
    quantizer needs them.
    Source: arXiv 1711.00937; FoundationVision/VAR models/quant.py (`using_znorm` is the cosine);
    arXiv 2005.00341, section 3.2, for the restart of dead codes.
    """

    def __init__(
        self,
        *,
        vocabulary: int = 4096,
        channels: int = 32,
        distance: str = "euclidean",
        beta: float = 0.25,
        learning: str = "gradient",
        decay: float = 0.99,
        restart: float = 0.0,
        key: Array,
    ):
        """Draws the codebook uniformly from [-1 / vocabulary, 1 / vocabulary].

        Args:
          vocabulary: Number of codes.
          channels: Channels of a vector.
          distance: "euclidean" or "cosine".
          beta: Weight of the commitment loss in `quantize`.
          learning: "gradient", or "average" for (4).
          decay: Decay of the moving averages, including the counts for `restart`.
          restart: A code that fewer vectors per batch choose, on average, is replaced by a vector
            of the batch; 0 for never.
          key: Randomness of the initial values.

        Raises:
          ValueError: an argument is invalid.
        """
        require(
            locals(),
            vocabulary=whole(1),
            channels=whole(1),
            distance=one_of(*DISTANCES),
            beta=at_least(0),
            learning=one_of(*LEARNING),
            decay=below_one,
            restart=at_least(0),
        )
        self.vocabulary, self.channels, self.distance = vocabulary, channels, distance
        self.beta, self.decay, self.restart = beta, decay, restart
        self.averaged = learning == "average"
        self.settles = self.averaged or restart > 0
        bound = 1 / vocabulary
        self.codebook = Param(
            jax.random.uniform(key, (vocabulary, channels), minval=-bound, maxval=bound)
        )
        if self.settles:
            self.counts = Param(jnp.full(vocabulary, max(restart, 1.0)))
        if self.averaged:
            self.sums = Param(self.codebook[...] * self.counts[...][:, None])

    def distances(self, features: Float[Array, "... c"]) -> Float[Array, "... v"]:
        """Returns half the squared distance to each code, minus half the vector's squared norm.

        The cosine distance uses unit vectors. No gradient passes.
        """
        features, codebook = jax.lax.stop_gradient((features, self.codebook[...]))
        if self.distance == "cosine":
            features, codebook = _unit(features), _unit(codebook)
        lengths = 0.5 * jnp.sum(jnp.square(codebook), -1)
        products = jnp.matmul(features, codebook.T, precision="highest")
        return lengths - products

    def nearest(self, features: Float[Array, "... c"]) -> Int[Array, "..."]:
        """Returns the nearest code of each vector; the first one if tied."""
        return jnp.argmin(self.distances(features), -1).astype(jnp.int32)

    def embed(self, codes: Int[Array, "..."]) -> Float[Array, "... c"]:
        """Returns the vector of each code; the caller checks that codes are in range."""
        codebook = self.codebook[...]
        return (jax.lax.stop_gradient(codebook) if self.averaged else codebook)[codes]

    def penalty(self, features: Float[Array, "n c"]) -> Float[Array, ""]:
        """Returns 0: codes are kept in use by `settle`."""
        return jnp.zeros(())

    def settle(self, seen: Sequence[Array], key: Array) -> None:
        """Updates the averages (4), and restarts dead codes.

        Each level supplies an equal share of the restarts. In proportion to their sizes, the finest
        level would supply nearly all, and the few vectors of the coarsest would share few codes.
        """
        if not self.settles:
            return
        vectors = jnp.concatenate([*seen])
        chosen = jax.nn.one_hot(self.nearest(vectors), self.vocabulary)
        counts = self._moved(self.counts[...], jnp.sum(chosen, 0))
        codebook = self.codebook[...]
        if self.averaged:
            sums = self._moved(self.sums[...], jnp.matmul(chosen.T, vectors, precision="highest"))
            known = counts[:, None] > 1e-6  # unused codes stay unchanged
            codebook = jnp.where(known, sums / jnp.maximum(counts, 1e-6)[:, None], codebook)
        if self.restart:
            dead = counts < self.restart
            codebook = jnp.where(dead[:, None], self._candidates(seen, key), codebook)
            counts = jnp.where(dead, max(self.restart, 1.0), counts)
        self.codebook[...], self.counts[...] = codebook, counts
        if self.averaged:
            self.sums[...] = codebook * counts[:, None]

    def _moved(self, average: Array, new: Array) -> Array:
        return self.decay * average + (1 - self.decay) * new

    def _candidates(self, seen: Sequence[Array], key: Array) -> Float[Array, "v c"]:
        """Returns a vector of the batch for each code, from a level drawn at random."""
        choice, *keys = jax.random.split(key, 1 + len(seen))
        options = jnp.stack(
            [
                own[jax.random.randint(key, (self.vocabulary,), 0, len(own))]
                for own, key in zip(seen, keys, strict=True)
            ]
        )
        level = jax.random.randint(choice, (self.vocabulary,), 0, len(seen))
        return options[level, jnp.arange(self.vocabulary)]

    def quantize(
        self, features: Float[Array, "... c"]
    ) -> tuple[Int[Array, "..."], Float[Array, "... c"], Float[Array, ""]]:
        """Returns codes, vectors by (3), and (2)."""
        codes = self.nearest(features)
        vectors = self.embed(codes)
        return codes, straight_through(vectors, features), fit(vectors, features, self.beta)


def fit(
    quantized: Float[Array, "..."], features: Float[Array, "..."], beta: float
) -> Float[Array, ""]:
    """Returns (2); beta is the weight of the term that trains the features."""
    constant = jax.lax.stop_gradient
    codebook = jnp.mean(jnp.square(quantized - constant(features)))
    return codebook + beta * jnp.mean(jnp.square(constant(quantized) - features))


def straight_through(
    quantized: Float[Array, "..."], features: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Returns (3): the value of `quantized` with the gradient of `features`."""
    return features + jax.lax.stop_gradient(quantized - features)


def usage(codes: Int[Array, "..."], vocabulary: int) -> Float[Array, ""]:
    """Returns the fraction of the vocabulary that occurs among the codes, in [0, 1]."""
    return jnp.mean((_counts(codes, vocabulary) > 0).astype(jnp.float32))


def perplexity(codes: Int[Array, "..."], vocabulary: int) -> Float[Array, ""]:
    """Returns exp(entropy of the codes): 1 to `vocabulary`, the maximum for uniform use."""
    shares = _counts(codes, vocabulary) / codes.size
    return jnp.exp(-jnp.sum(shares * jnp.log(jnp.where(shares > 0, shares, 1))))


def _counts(codes: Array, vocabulary: int) -> Array:
    return jnp.bincount(codes.reshape(-1), length=vocabulary).astype(jnp.float32)


def _unit(x: Array) -> Array:
    """Returns vectors of unit length; zero vectors stay zero."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
