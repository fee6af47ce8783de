"""The X of next-X prediction: how a grid of tokens is cut into entities, and in which order.

A `Plan` is static data. From it follow the block-causal mask, the positions, the two-stream layout
of teacher forcing and the runs of the sampler, so that every other part of the program works for
any entity: a token, a cell, a subsample, a scale, a whole image.

Source: arXiv 2502.20388, section 3.2 (the five entities) and 3.3 (noisy context learning).
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxar.core.resize import resize_area
from jaxar.core.visibility import Layout, Visibility, causal, teacher_forcing
from jaxar.typing import Array, Bool, Float

Grid = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Entities of a grid and their order. Immutable and hashable: static under `jax.jit`.

    Attributes:
      levels: grids that hold the tokens; one grid, or those of a scale plan from coarse to fine.
        The last is the grid of the data.
      index: index[i] is where the i-th token of the sequence sits in the levels, laid end to end
        in raster order.
      sizes: number of tokens of each entity, in order.
    """

    levels: tuple[Grid, ...]
    index: tuple[int, ...]
    sizes: tuple[int, ...]

    def __post_init__(self):
        tokens = sum(h * w for h, w in self.levels)
        placed = sorted(self.index) == list(range(tokens))
        if not placed or sum(self.sizes) != tokens or min(self.sizes) < 1:
            raise ValueError(f"A plan must place each of its {tokens} tokens in one entity once.")

    @property
    def grid(self) -> Grid:
        """The grid (height, width) of the data."""
        return self.levels[-1]

    @property
    def tokens(self) -> int:
        """Length of the sequence."""
        return len(self.index)

    @property
    def entities(self) -> int:
        """Number of entities: of autoregressive steps."""
        return len(self.sizes)

    @functools.cached_property
    def offsets(self) -> tuple[int, ...]:
        """Place of each entity's first token, and at the end the length of the sequence."""
        return (0, *itertools.accumulate(self.sizes))

    def spans(self) -> list[tuple[int, int]]:
        """Returns for each entity the places of its first token and of the one after its last."""
        return list(itertools.pairwise(self.offsets))

    @functools.cached_property
    def entity(self) -> np.ndarray:
        """(tokens,) entity of each token: 0, 0, ..., 1, 1, ..."""
        return np.repeat(np.arange(self.entities), self.sizes)

    @functools.cached_property
    def positions(self) -> np.ndarray:
        """(tokens, 2) row and column of each token, in units of the data's grid.

        A coarser level spans the same range with larger strides, so that rotary positions of all
        levels agree.
        """
        height, width = self.grid
        cells = [
            np.indices((h, w)).reshape(2, -1).T * np.array((height / h, width / w))
            for h, w in self.levels
        ]
        return np.concatenate(cells)[list(self.index)]

    def layout(self) -> Layout:
        """Returns the whole sequence, block-causal: an entity sees itself and earlier ones."""
        sees = Visibility(causal, (self.entity,), (self.entity,))
        return Layout(np.arange(self.tokens), self.sizes, sees)

    def two_streams(self) -> Layout:
        """Returns the layout of teacher forcing: all clean entities, then all noised ones."""
        place, stream = np.tile(np.arange(self.tokens), 2), np.repeat([0, 1], self.tokens)
        numbers = np.tile(self.entity, 2), stream
        return Layout(place, self.sizes * 2, Visibility(teacher_forcing, numbers, numbers))

    def runs(self) -> list[tuple[int, int]]:
        """Returns ranges [first, last) of entities that one compiled loop can draw.

        The first entity stands alone, since nothing precedes it; after it, neighbours share a run
        if they and the entity before them are of one size. Scales are all different to the program.
        """
        runs = [(0, 1)]
        alike = len(self.levels) == 1
        for i in range(1, self.entities):
            first, _ = runs[-1]
            if alike and first > 0 and self.sizes[i] == self.sizes[first] == self.sizes[first - 1]:
                runs[-1] = (first, i + 1)
            else:
                runs.append((i, i + 1))
        return runs

    def cut(self, x: Float[Array, "b h w c"]) -> Float[Array, "b n c"]:
        """Returns the tokens in the plan's order; a scale plan averages the data to each level."""
        b, h, w, c = x.shape
        if (h, w) != self.grid:
            raise ValueError(f"The plan is for a grid of {self.grid}, the data has {(h, w)}.")
        levels = [resize_area(x, grid).reshape(b, -1, c) for grid in self.levels]
        return jnp.concatenate(levels, 1)[:, np.asarray(self.index)]

    def touched(self, mask: Float[Array, "b h w"]) -> Bool[Array, "b n"]:
        """Returns which tokens a mask on a grid of any finer size touches, in the plan's order.

        A token of a coarse level stands for a large part of the grid, so one spot touches it.

        Args:
          mask: Above 0 where it acts.
        """
        spots = resize_area(mask[..., None], self.grid) > 0
        return self.cut(spots.astype(jnp.float32))[..., 0] > 0

    def paste(self, tokens: Float[Array, "b n c"]) -> Float[Array, "b h w c"]:
        """Returns the grid that the tokens make: the inverse of `cut` (of its last level)."""
        height, width = self.grid
        last = np.argsort(self.index)[-height * width :]
        return tokens[:, last].reshape(-1, height, width, tokens.shape[-1])


def unmasking(tokens: int, iterations: int) -> tuple[int, ...]:
    """Returns how many tokens each iteration of unmasking reveals: MAR's cosine.

    After iteration i of n, floor(tokens cos(pi/2 i/n)) are still masked, but at least one fewer
    than before, and at least one until the last iteration, which reveals all that are left.
    Source: LTH14/mar models/mar.py `sample_tokens`; arXiv 2202.04200.

    Raises:
      ValueError: there are more iterations than tokens.
    """
    if not 1 <= iterations <= tokens:
        raise ValueError(f"{tokens} tokens take 1 to {tokens} iterations, not {iterations}.")
    left = [tokens]
    for i in range(1, iterations):
        masked = math.floor(tokens * math.cos(math.pi / 2 * i / iterations))
        left.append(max(1, min(left[-1] - 1, masked)))
    return tuple(a - b for a, b in itertools.pairwise([*left, 0]))


def token(grid: Grid, *, shuffle: int | None = None) -> Plan:
    """Returns the plan of single tokens in raster order."""
    return cell(grid, height=1, width=1, shuffle=shuffle)


def image(grid: Grid) -> Plan:
    """Returns the plan with one entity, the whole grid: plain flow matching, as SiT or DiT."""
    return cell(grid, height=grid[0], width=grid[1])


def cell(grid: Grid, *, height: int, width: int, shuffle: int | None = None) -> Plan:
    """Returns the plan of `height` x `width` blocks of neighbours; xAR's choice, with 8 x 8.

    Cells come in raster order, tokens in raster order inside their cell.

    Args:
      grid: (height, width) of the data in tokens.
      height: Rows of a cell; must divide those of the grid.
      width: Columns of a cell; must divide those of the grid.
      shuffle: Seed of a random order of the entities, or None for the raster order.
    """
    _require_divides("cell", (height, width), grid)
    raster = np.arange(grid[0] * grid[1])
    blocks = raster.reshape(grid[0] // height, height, grid[1] // width, width).swapaxes(1, 2)
    return _permutation(grid, blocks.reshape(-1, height * width), shuffle)


def subsample(grid: Grid, *, height: int, width: int, shuffle: int | None = None) -> Plan:
    """Returns the plan of `height` x `width` interleaved subsamples of the grid.

    Entity (i, j) holds the tokens of rows i, i + height, ... and columns j, j + width, ...: far
    from each other, so that each entity is a small picture of the whole.
    """
    _require_divides("subsample stride", (height, width), grid)
    raster = np.arange(grid[0] * grid[1])
    strided = raster.reshape(grid[0] // height, height, grid[1] // width, width)
    return _permutation(grid, strided.transpose(1, 3, 0, 2).reshape(height * width, -1), shuffle)


def scale(grid: Grid, *, sizes: Sequence[int | Grid]) -> Plan:
    """Returns the plan of whole maps from coarse to fine.

    Args:
      grid: (height, width) of the data in tokens.
      sizes: One size a level, (height, width) or one number for a square; the last is the grid.
    """
    levels = tuple((s, s) if isinstance(s, int) else (int(s[0]), int(s[1])) for s in sizes)
    if not levels or levels[-1] != tuple(grid):
        raise ValueError(f"The last scale must be the grid {tuple(grid)}, not {levels[-1:]}.")
    if any(not (1 <= h <= grid[0] and 1 <= w <= grid[1]) for h, w in levels):
        raise ValueError(f"Every scale must lie between 1 and the grid {tuple(grid)}: {levels}.")
    lengths = tuple(h * w for h, w in levels)
    if list(lengths) != sorted(lengths):
        raise ValueError(f"Scales must go from coarse to fine: {levels}.")
    return Plan(levels, tuple(range(sum(lengths))), lengths)


def _permutation(grid: Grid, entities: np.ndarray, shuffle: int | None) -> Plan:
    """Returns the plan whose entity i holds the raster indices `entities[i]`."""
    if shuffle is not None:
        entities = np.random.default_rng(shuffle).permutation(entities)
    count, size = entities.shape
    index = tuple(int(i) for i in entities.reshape(-1))
    return Plan(((int(grid[0]), int(grid[1])),), index, (size,) * count)


def _require_divides(what: str, part: Grid, grid: Grid) -> None:
    if min(part) < 1 or grid[0] % part[0] or grid[1] % part[1]:
        raise ValueError(
            f"A {what} of {part[0]} x {part[1]} does not divide the grid of "
            f"{grid[0]} x {grid[1]} tokens: choose a height that divides {grid[0]} "
            f"and a width that divides {grid[1]}."
        )
