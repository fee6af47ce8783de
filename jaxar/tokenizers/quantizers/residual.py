"""The multi-scale residual quantizer: a map as levels of codes, each correcting those before it.

With f the map, f_0 = 0, and level k of K on a grid of its own:

    r_k = area(f - f_{k-1}),    codes_k = nearest(r_k)                                 (1)
    f_k = f_{k-1} + phi_k(bicubic(embed(codes_k)))                                     (2)
    phi(h) = h / 2 + conv(h) / 2                                                       (3)
    input_{k+1} = area(f_k)                                                            (4)
    loss = mean over k of |f_k - sg f|^2 + beta |sg f_k - f|^2                         (5)

area shrinks to the grid of the level, bicubic enlarges to that of the map; both leave the last
level as it is. (4) is what an autoregressive model sees before it predicts the codes of level
k + 1. With levels of one size and no phi this is the residual quantizer of RQ-VAE (arXiv
2203.01941), and with a single level plain vector quantization.
Source: arXiv 2404.02905, algorithms 1 and 2; FoundationVision/VAR models/quant.py.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.core.plan import Grid
from jaxar.core.resize import resize_area, resize_bicubic
from jaxar.nn.conv import Conv
from jaxar.nn.module import Module, Series
from jaxar.tokenizers.quantizers.vector import Quantizer, fit, straight_through
from jaxar.typing import Array, Float, Int

LevelCodes = tuple[Array, ...]
"""For each level the codes of its grid, (b, h, w) int32."""


class MultiScaleQuantizer(Module):
    """Levels of codes of one quantizer, from coarse to fine; f_K is what they stand for.

    Where the quantizer has a codebook of its own lengths, few phis do; without one
    (`implicit`), give each level its phi.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        *,
        levels: Sequence[int | Sequence[int]] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
        phis: int = 4,
        beta: float = 0.25,
        key: Array,
    ):
        """Makes the convolutions of the phis.

        Args:
          quantizer: Of the vectors at every level.
          levels: Grids: a side or (height, width) each. The last is the grid of the map, and none
            is larger.
          phis: How many phis the levels share; see `phi_indices`. 0 for none: phi(h) = h.
          beta: Of (5): the weight of the term that moves the features.
          key: Randomness of the initial values.

        Raises:
          ValueError: an argument makes no sense.
        """
        self.grids = tuple(_grid(level) for level in levels)
        if not self.grids or any(
            not (1 <= h <= self.grid[0] and 1 <= w <= self.grid[1]) for h, w in self.grids
        ):
            raise ValueError(f"Each level of {tuple(levels)} must lie between 1 and the last.")
        if phis < 0 or beta < 0:
            raise ValueError(f"phis={phis} and beta={beta} must be at least 0.")
        self.quantizer, self.beta = quantizer, beta
        self.vocabulary, self.channels = quantizer.vocabulary, quantizer.channels
        self.which = phi_indices(len(self.grids), phis) if phis else None
        keys = jax.random.split(key, phis) if phis else []
        self.phis = Series(Conv(self.channels, self.channels, key=key) for key in keys)

    @property
    def grid(self) -> Grid:
        """The grid (height, width) of the map."""
        return self.grids[-1]

    def encode(self, features: Float[Array, "b h w c"]) -> LevelCodes:
        """Returns the codes of each level, (1). No gradient passes.

        Raises:
          ValueError: the map is not on the grid of the last level, or of other channels.
        """
        return self._walk(features)[0]

    def decode(self, codes: LevelCodes) -> Float[Array, "b h w c"]:
        """Returns what the first levels stand for, f_k for k of them: at least one.

        Raises:
          ValueError: there are none or too many levels.
        """
        return self.partial(codes)[-1]

    def partial(self, codes: LevelCodes) -> list[Float[Array, "b h w c"]]:
        """Returns f_1, f_2, ... of the given first levels.

        Raises:
          ValueError: there are none or too many levels.
        """
        if not 1 <= len(codes) <= len(self.grids):
            raise ValueError(f"There must be 1 to {len(self.grids)} levels, not {len(codes)}.")
        total = jnp.zeros((len(codes[0]), *self.grid, self.channels))
        totals = []
        for level, own in enumerate(codes):
            total = total + self.contribution(own, level)
            totals.append(total)
        return totals

    def contribution(self, codes: Array, level: int) -> Float[Array, "b h2 w2 c"]:
        """Returns what the codes of a level add to the map, phi_k(bicubic(embed(codes))).

        Args:
          codes: (b, h, w) int, or weights of all codes (b, h, w, v) float, which mix their vectors.
          level: k, from 0.
        """
        enlarged = resize_bicubic(self._vectors(codes), self.grid)
        if self.which is None:
            return enlarged
        phi = [*self.phis][self.which[level]]
        return 0.5 * enlarged + 0.5 * phi(enlarged)

    def input_of(self, level: int, total: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Returns the input of a level, (4), from what the levels before it stand for."""
        return resize_area(total, self.grids[level])

    def teacher_forcing(self, codes: LevelCodes) -> Float[Array, "b n c"]:
        """Returns (4) for all levels but the first, in raster order, one after the other.

        The codes of the last level do not matter: n is the number of codes less those of level 0.
        """
        totals = self.partial(codes)[: len(self.grids) - 1]
        inputs = [
            self.input_of(level, total).reshape(len(total), -1, self.channels)
            for level, total in enumerate(totals, 1)
        ]
        return jnp.concatenate([jnp.zeros((len(codes[0]), 0, self.channels)), *inputs], 1)

    def quantize(
        self, features: Float[Array, "b h w c"], used: Int[Array, " b"] | None = None
    ) -> tuple[LevelCodes, Float[Array, "b h w c"], Float[Array, ""]]:
        """Returns the codes, f_K with a gradient straight through, and (5) plus the penalty.

        Codebook and phis learn from the loss alone.

        Args:
          features: The map.
          used: For each example the number k of levels, 1 to K, whose f_k is returned instead.

        Raises:
          ValueError: see `encode`.
        """
        codes, totals, residuals = self._walk(features)
        loss = jnp.mean(jnp.stack([fit(total, features, self.beta) for total in totals]))
        seen = [residual.reshape(-1, self.channels) for residual in residuals]
        loss = loss + self.quantizer.penalty(jnp.concatenate(seen))
        final = totals[-1]
        if used is not None:
            final = jnp.stack(totals)[used - 1, jnp.arange(len(features))]
        return codes, straight_through(final, features), loss

    def settle(self, features: Float[Array, "b h w c"], key: Array) -> None:
        """Sets the quantizer's parameters that no gradient moves, given a batch of training."""
        _, _, residuals = self._walk(jax.lax.stop_gradient(features))
        self.quantizer.settle([x.reshape(-1, self.channels) for x in residuals], key)

    def join(self, codes: LevelCodes) -> Int[Array, "b n"]:
        """Returns the codes of all levels as one sequence, each level in raster order."""
        return jnp.concatenate([own.reshape(len(own), -1) for own in codes], 1)

    def split(self, sequence: Array) -> LevelCodes:
        """Returns codes (b, n), or weights of codes (b, n, v), by level: the inverse of `join`.

        Raises:
          ValueError: the sequence is not of all levels.
        """
        sizes = [h * w for h, w in self.grids]
        if sequence.shape[1] != sum(sizes):
            raise ValueError(f"All levels have {sum(sizes)} codes, not {sequence.shape[1]}.")
        parts = jnp.split(sequence, np.cumsum(sizes)[:-1], 1)
        return tuple(
            part.reshape(len(part), *grid, *part.shape[2:])
            for part, grid in zip(parts, self.grids, strict=True)
        )

    def _vectors(self, codes: Array) -> Float[Array, "... c"]:
        """Returns the vectors of codes, or their means by weights of all codes."""
        if jnp.issubdtype(codes.dtype, jnp.integer):
            return self.quantizer.embed(codes)
        return codes @ self.quantizer.embed(jnp.arange(self.vocabulary))

    def _walk(self, features: Array) -> tuple[LevelCodes, list[Array], list[Array]]:
        """Returns the codes, f_k, and r_k of every level."""
        if features.shape[1:] != (*self.grid, self.channels):
            raise ValueError(
                f"The map must be {(*self.grid, self.channels)}, not {features.shape[1:]}."
            )
        total = jnp.zeros_like(features)
        codes, totals, residuals = [], [], []
        for level, grid in enumerate(self.grids):
            residual = resize_area(features - jax.lax.stop_gradient(total), grid)
            own = self.quantizer.nearest(residual)
            total = total + self.contribution(own, level)
            codes.append(own)
            totals.append(total)
            residuals.append(residual)
        return tuple(codes), totals, residuals


def phi_indices(levels: int, phis: int) -> tuple[int, ...]:
    """Returns for each level the phi that it uses: the one whose tick is nearest.

    Level k of K stands at k / (K - 1), a single one at 0. Ticks are spread evenly over [0, 1], from
    1 / (2 phis) on, but for the four of the release from 1 / (3 phis) on. The first of two equally
    near ones is taken, in float64 as in the release, where rounding decides.
    Source: FoundationVision/VAR models/quant.py `PhiPartiallyShared`.
    """
    start = 1 / 3 / phis if phis == 4 else 1 / 2 / phis
    ticks = np.linspace(start, 1 - start, phis)
    places = [level / (levels - 1) if level else 0.0 for level in range(levels)]
    return tuple(int(np.argmin(np.abs(ticks - place))) for place in places)


def _grid(level: int | Sequence[int]) -> Grid:
    if isinstance(level, int):
        return level, level
    height, width = level
    return int(height), int(width)
