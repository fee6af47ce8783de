"""Released VAR weights: from FoundationVision/VAR state dicts to backbone and head.

The rows of all variants stand in one table; a model has those that its parameters ask for: a map
of the class for each layer or one for all (512 pixels), scales of heads with cosine attention only.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxar.convert.core import Row, convert, linear, same
from jaxar.tree import paths

BLOCK = (
    ("attn.proj", "attention/out"),
    ("ffn.fc1", "mlp/up"),
    ("ffn.fc2", "mlp/down"),
    ("ada_lin.1", "modulation"),
)

MAPS = (
    ("word_embed", "backbone/embed"),
    ("shared_ada_lin.1", "backbone/shared"),
    ("head_nm.ada_lin.1", "backbone/head_modulation"),
    ("head", "head/logits"),
    *((f"blocks.{{i}}.{theirs}", f"backbone/blocks/blocks/{ours}") for theirs, ours in BLOCK),
)


def per_head(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a number for each head, (1, k, 1, 1) there, as ours, (k,).

    Raises:
      ValueError: it is none.
    """
    if array.shape != (1, *shape, 1, 1):
        raise ValueError(f"{array.shape} is not {(1, *shape, 1, 1)}")
    return array.reshape(shape)


ATTENTION = ("blocks.{i}.attn", "backbone/blocks/blocks/attention")

ROWS = (
    Row("class_emb.weight", "backbone/classes/table"),
    Row("pos_start", "backbone/start/table"),
    Row("pos_1LC", "backbone/positions/table"),
    Row("lvl_embed.weight", "backbone/levels/table"),
    Row(f"{ATTENTION[0]}.mat_qkv.weight", f"{ATTENTION[1]}/qkv/kernel", linear),
    Row(f"{ATTENTION[0]}.q_bias", f"{ATTENTION[1]}/qkv/bias", part=0),
    Row(f"{ATTENTION[0]}.v_bias", f"{ATTENTION[1]}/qkv/bias", part=1),
    Row(f"{ATTENTION[0]}.scale_mul_1H11", f"{ATTENTION[1]}/log_scale", per_head),
    Row("blocks.{i}.ada_gss", "backbone/blocks/blocks/modulation/table", same),
    *(Row(f"{theirs}.weight", f"{ours}/kernel", linear) for theirs, ours in MAPS),
    *(Row(f"{theirs}.bias", f"{ours}/bias") for theirs, ours in MAPS),
)

BUFFERS = ("lvl_1L", "attn_bias_for_masking", "blocks.*.attn.zero_k_bias")
"""Constants of the release that follow from the plan, and the bias that keys do not have."""


def rows(template: Any) -> list[Row]:
    """Returns the rows for what a parameter tree of arrays or shapes has."""
    wanted = paths(template)
    return [row for row in ROWS if row.ours in wanted]


def from_state_dict(state: Mapping[str, Any], template: Any) -> dict[str, Any]:
    """Returns the parameters that a released state dict holds.

    Args:
      state: Arrays by key of the release.
      template: Parameter tree of the model, arrays or shapes.

    Raises:
      WeightsError: lists every unused, missing and misshapen key.
    """
    return convert(state, rows(template), template, ignore=BUFFERS)
