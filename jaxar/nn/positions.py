"""Learned positions that do not belong to one grid: a table as a map, resized to a plan's levels.

A network whose positions stand in such a map takes plans of any size and of any list of scales.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from jaxar.core.plan import Grid, Plan
from jaxar.core.resize import resize_area
from jaxar.typing import Array, Float


def resized_positions(
    table: Float[Array, "*grid d"],
    plan: Plan,
    *,
    resize: Callable[[Array, Grid], Array] = resize_area,
) -> Float[Array, "n d"]:
    """Returns a vector for each token of a plan, of a learned map that covers the same data.

    Source: jiaosiyu1999/FlexVAR models/flexvar.py `forward`, `pos_1LC`, by area from 32 x 32.

    Args:
      table: One vector for each place of its own grid, of the rank of the plan's.
      plan: Tokens; its levels may be coarser or finer than the table.
      resize: Rule of `core.resize`. Where levels are finer than the table, area repeats vectors:
        take `resize_bicubic`, as vision transformers do.

    Raises:
      ValueError: the table has another rank than the plan.
    """
    levels = [resize(table[None], level).reshape(-1, table.shape[-1]) for level in plan.levels]
    return jnp.concatenate(levels)[np.asarray(plan.index)]
