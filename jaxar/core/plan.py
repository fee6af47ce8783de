"""The X of next-X prediction: how a grid of tokens is cut into entities, and in which order.

A `Plan` is static data over a grid of any rank: (time,) for text, sound and series, (height, width)
for pictures, (frames, height, width) for video. From it follow the block-causal mask, the
positions, the two-stream layout of teacher forcing and the runs of the sampler, so that every other
part of the program works for any entity.

    block       neighbours; token, cell, row, frame, clip and image are blocks of certain shapes
    subsample   tokens at a fixed stride: each entity is a coarse copy of the whole
    scale       whole maps from coarse to fine

Source: arXiv 2502.20388, section 3.2 (the five entities) and 3.3 (noisy context learning).
"""

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxar.core.resize import resize_area
from jaxar.core.visibility import Layout, Visibility, causal, teacher_forcing
from jaxar.typing import Array, Bool, Float, Int

Grid = tuple[int, ...]
"""Tokens along each axis, the slowest axis of the raster order first."""


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
        for level in self.levels:
            _require_tokens(level)
        if len({len(level) for level in self.levels}) != 1:
            raise ValueError(f"A plan needs levels of one rank, not {self.levels}.")
        tokens = sum(map(math.prod, self.levels))
        placed = np.array_equal(np.sort(self.index), np.arange(tokens))
        if not placed or sum(self.sizes) != tokens or min(self.sizes) < 1:
            raise ValueError(f"A plan must place each of its {tokens} tokens in one entity once.")

    def __hash__(self) -> int:
        """Returns a hash computed once: a call of a jitted function hashes its static arguments."""
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.levels, self.index, self.sizes))

    @property
    def grid(self) -> Grid:
        """The grid of the data."""
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
        """(tokens, rank) coordinates of each token, in units of the data's grid.

        A coarser level spans the same range with larger strides, so that rotary positions of all
        levels agree.
        """
        rank = len(self.grid)
        cells = [
            np.indices(level).reshape(rank, -1).T * (np.array(self.grid) / np.array(level))
            for level in self.levels
        ]
        return np.concatenate(cells)[list(self.index)]

    def positions_in(self, grid: Grid) -> Float[np.ndarray, "n rank"]:
        """Returns the coordinates in units of another grid, fractional where the grids differ.

        Plans of all sizes then span the range of one grid, say of the one trained on.

        Raises:
          ValueError: the grid has another rank.
        """
        _require_rank("A grid", grid, self.grid)
        return self.positions * (np.array(grid) / np.array(self.grid))

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
        if they and the entity before them are of one size. Each scale stands alone: what one hands
        to the next has a shape of its own.
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

    def cut(
        self, x: Float[Array, "b *grid c"] | Int[Array, "b *grid c"]
    ) -> Float[Array, "b n c"] | Int[Array, "b n c"]:
        """Returns the tokens in the plan's order; a scale plan averages the data to each level.

        Raises:
          ValueError: the data lie on another grid, or are integers, which have no average.
        """
        grid = x.shape[1:-1]
        if grid != self.grid:
            raise ValueError(f"The plan is for a grid of {self.grid}, the data has {grid}.")
        if len(self.levels) > 1 and not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"A plan of scales averages the data, which cannot be {x.dtype}.")
        maps = (x if level == grid else resize_area(x, level) for level in self.levels)
        levels = [level.reshape(x.shape[0], -1, x.shape[-1]) for level in maps]
        return jnp.concatenate(levels, 1)[:, np.asarray(self.index)]

    def touched(self, mask: Float[Array, "b *grid"]) -> Bool[Array, "b n"]:
        """Returns which tokens a mask on a grid of any finer size touches, in the plan's order.

        A token of a coarse level stands for a large part of the grid, so one spot touches it.

        Args:
          mask: Above 0 where it acts.
        """
        spots = resize_area(mask[..., None], self.grid) > 0
        return self.cut(spots.astype(jnp.float32))[..., 0] > 0

    def paste(
        self, tokens: Float[Array, "b n c"] | Int[Array, "b n c"]
    ) -> Float[Array, "b *grid c"] | Int[Array, "b *grid c"]:
        """Returns the grid that the tokens make: the inverse of `cut` (of its last level)."""
        last = np.argsort(self.index)[-math.prod(self.grid) :]
        return tokens[:, last].reshape(-1, *self.grid, tokens.shape[-1])


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


def block(grid: Grid, *, shape: int | Sequence[int], shuffle: int | None = None) -> Plan:
    """Returns the plan of blocks of neighbours.

    Blocks come in raster order, tokens in raster order inside their block.

    Args:
      grid: Of the data, in tokens.
      shape: Of a block: its tokens along each axis, or one number for all axes. Each divides the
        tokens of the grid along its axis.
      shuffle: Seed of a random order of the entities, or None for the raster order.

    Raises:
      ValueError: the grid is empty, or a block does not divide it.
    """
    return _blocks("A block", grid, shape, shuffle)


def token(grid: Grid, *, shuffle: int | None = None) -> Plan:
    """Returns the plan of single tokens in raster order."""
    return block(grid, shape=1, shuffle=shuffle)


def cell(grid: Grid, *, height: int, width: int, shuffle: int | None = None) -> Plan:
    """Returns the plan of `height` x `width` blocks of a picture; xAR's choice, with 8 x 8."""
    return _blocks("A cell", grid, (height, width), shuffle)


def row(grid: Grid) -> Plan:
    """Returns the plan of rows: an entity is a whole last axis."""
    return block(grid, shape=(*[1] * (len(grid) - 1), *grid[-1:]))


def frame(grid: Grid) -> Plan:
    """Returns the plan of frames: an entity is all that shares one place on the first axis."""
    return clip(grid, frames=1)


def clip(grid: Grid, *, frames: int) -> Plan:
    """Returns the plan of clips of `frames` frames each; see `frame`."""
    return _blocks("A clip", grid, (frames, *grid[1:]))


def image(grid: Grid) -> Plan:
    """Returns the plan with one entity, the whole grid: plain flow matching, as SiT or DiT."""
    return block(grid, shape=grid)


def subsample(
    grid: Grid,
    *,
    stride: int | Sequence[int] | None = None,
    height: int | None = None,
    width: int | None = None,
    shuffle: int | None = None,
) -> Plan:
    """Returns the plan of interleaved subsamples of the grid.

    Entity (i, j) holds the tokens of rows i, i + height, ... and columns j, j + width, ...: far
    from each other, so that each entity is a small picture of the whole.

    Args:
      grid: Of the data, in tokens.
      stride: Steps from token to token along each axis, or one number for all axes.
      height: First number of the stride of a picture, in place of `stride`.
      width: Second number of it.
      shuffle: Seed of a random order of the entities, or None for the raster order.

    Raises:
      ValueError: the stride is absent or given twice, or does not divide the grid.
    """
    if stride is None and height is not None and width is not None:
        stride = (height, width)
    elif stride is None or height is not None or width is not None:
        raise ValueError("A subsample needs either a stride, or a height and a width.")
    parts = _split("A subsample stride", grid, stride)
    return _permutation(grid, parts.T, shuffle)


def scale(grid: Grid, *, sizes: Sequence[int | Sequence[int]]) -> Plan:
    """Returns the plan of whole maps from coarse to fine.

    Args:
      grid: Of the data, in tokens.
      sizes: A grid for each level, or one number for all its axes; the last is the grid of the
        data.

    Raises:
      ValueError: the grid is empty, or the sizes do not grow from 1 to it.
    """
    grid = _require_tokens(grid)
    levels = tuple(_sides("A scale", size, grid) for size in sizes)
    if not levels or levels[-1] != grid:
        raise ValueError(f"The last scale must be the grid {grid}, not {levels[-1:]}.")
    if any(not 1 <= n <= most for level in levels for n, most in zip(level, grid, strict=True)):
        raise ValueError(f"Every scale must lie between 1 and the grid {grid}: {levels}.")
    lengths = tuple(map(math.prod, levels))
    if list(lengths) != sorted(lengths):
        raise ValueError(f"Scales must go from coarse to fine: {levels}.")
    return Plan(levels, tuple(range(sum(lengths))), lengths)


def shuffled(plan: Plan, seed: int) -> Plan:
    """Returns the plan with its entities in a random order, the tokens inside each as they are.

    Raises:
      ValueError: the entities are scales, which have one order.
    """
    if len(plan.levels) > 1:
        raise ValueError("Scales go from coarse to fine: they cannot be shuffled.")
    order = np.random.default_rng(seed).permutation(plan.entities)
    tokens = np.argsort(np.argsort(order)[plan.entity], kind="stable")
    index, sizes = np.asarray(plan.index)[tokens], np.asarray(plan.sizes)[order]
    return Plan(plan.levels, tuple(index.tolist()), tuple(sizes.tolist()))


def _blocks(what: str, grid: Grid, shape: int | Sequence[int], shuffle: int | None = None) -> Plan:
    return _permutation(grid, _split(what, grid, shape), shuffle)


def _split(what: str, grid: Grid, part: int | Sequence[int]) -> np.ndarray:
    """Returns the raster indices of the tokens as (blocks, tokens of a block)."""
    grid = _require_tokens(grid)
    sides = _sides(what, part, grid)
    if min(sides) < 1 or any(n % side for n, side in zip(grid, sides, strict=True)):
        raise ValueError(
            f"{what} of {_words(sides)} does not divide the grid of {_words(grid)} tokens: "
            "along each axis, choose a divisor of the tokens there."
        )
    counts = [n // side for n, side in zip(grid, sides, strict=True)]
    raster = np.arange(math.prod(grid))
    raster = raster.reshape([n for pair in zip(counts, sides, strict=True) for n in pair])
    rank = len(grid)
    raster = raster.transpose(*range(0, 2 * rank, 2), *range(1, 2 * rank, 2))
    return raster.reshape(math.prod(counts), math.prod(sides))


def _permutation(grid: Grid, entities: np.ndarray, shuffle: int | None) -> Plan:
    """Returns the plan whose entity i holds the raster indices `entities[i]`."""
    count, size = entities.shape
    plan = Plan((_require_tokens(grid),), tuple(entities.reshape(-1).tolist()), (size,) * count)
    return plan if shuffle is None else shuffled(plan, shuffle)


def _sides(what: str, given: int | Sequence[int], grid: Grid) -> Grid:
    """Returns one whole number for each axis of the grid."""
    if isinstance(given, int):
        return (given,) * len(grid)
    sides = tuple(map(operator.index, given))
    _require_rank(what, sides, grid)
    return sides


def _require_rank(what: str, sides: Grid, grid: Grid) -> None:
    if len(sides) != len(grid):
        raise ValueError(
            f"{what} of {_words(sides)} has {len(sides)} axes, the grid of {_words(grid)} tokens "
            f"has {len(grid)}."
        )


def _require_tokens(grid: Grid) -> Grid:
    """Returns the grid in Python's integers, if it holds a token."""
    sides = tuple(map(operator.index, grid))
    if not sides or min(sides) < 1:
        raise ValueError(f"A grid needs axes with at least one token each, not {sides}.")
    return sides


def _words(sides: Grid) -> str:
    return " x ".join(map(str, sides))
