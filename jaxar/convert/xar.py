"""Released xAR weights: the table from OliverRensu/xAR state dicts to the parameters of `XAR`."""

from collections.abc import Mapping
from typing import Any

from jaxar.convert.core import Row, convert, linear

BLOCK = (
    ("attn.qkv", "attention/qkv"),
    ("attn.proj", "attention/out"),
    ("mlp.fc1_g", "mlp/gate"),
    ("mlp.fc1_x", "mlp/up"),
    ("mlp.fc2", "mlp/down"),
    ("ada_lin.1", "modulation"),
)

MAPS = (
    ("z_proj", "embed"),
    ("time_embed.mlp.0", "time/first"),
    ("time_embed.mlp.2", "time/second"),
    ("decoder_embed", "between"),
    ("pred", "predict"),
    *(
        (f"{stack}_blocks.{{i}}.{theirs}", f"{stack}/blocks/{ours}")
        for stack in ("encoder", "decoder")
        for theirs, ours in BLOCK
    ),
)

ROWS = (
    Row("class_emb.weight", "classes/table"),
    Row("encoder_pos_embed_learned", "encoder_positions/table"),
    Row("decoder_pos_embed_learned", "decoder_positions/table"),
    Row("z_proj_ln.weight", "embed_norm/scale"),
    Row("encoder_norm.weight", "encoder_norm/scale"),
    Row("decoder_norm.weight", "decoder_norm/scale"),
    *(Row(f"{theirs}.weight", f"{ours}/kernel", linear) for theirs, ours in MAPS),
    *(Row(f"{theirs}.bias", f"{ours}/bias") for theirs, ours in MAPS),
)

BUFFERS = ("mask", "*.attn.rope.*")
"""Constants of the release that follow from the plan."""


def from_state_dict(state: Mapping[str, Any], template: Any) -> dict[str, Any]:
    """Returns the parameters that a released state dict holds.

    Args:
      state: Arrays by key of the release.
      template: Parameter tree of the model, arrays or shapes.

    Raises:
      ValueError: lists every unused, missing and misshapen key.
    """
    return convert(state, ROWS, template, ignore=BUFFERS)
