"""Released FlowAR weights: from wangqiang9/FlowAR state dicts to trunk and flow network.

The trunk's keys are those of xAR. The flow network was released in two versions, which the
parameters that are asked for tell apart.
"""

from collections.abc import Mapping
from typing import Any

from jaxar.convert.core import Row, convert, linear
from jaxar.convert.xar import BLOCK
from jaxar.tree import paths

TRUNK = (
    ("z_proj", "embed"),
    ("decoder_embed", "between"),
    *(
        (f"{stack}_blocks.{{i}}.{theirs}", f"{stack}/blocks/{ours}")
        for stack in ("encoder", "decoder")
        for theirs, ours in BLOCK
    ),
)
"""Linear maps of the trunk."""

FLOW = (
    ("input_proj", "embed"),
    ("time_embed.mlp.0", "time/first"),
    ("time_embed.mlp.2", "time/second"),
    ("cond_embed", "condition"),
    ("final_layer.adaLN_modulation.1", "modulation"),
    ("final_layer.linear", "predict"),
)
"""Linear maps around the blocks of the flow network."""

COMMON = (
    ("attn.proj", "attention/out"),
    ("mlp.fc1_g", "mlp/gate"),
    ("mlp.fc1_x", "mlp/up"),
    ("mlp.fc2", "mlp/down"),
)
"""Linear maps of the flow network's blocks, with biases: of both versions."""

MODULATED = (("ada_lin", "modulation"),)
"""And of FlowAR-S."""

CROSS = (
    ("crossattn.proj", "cross/out"),
    ("ada_lin_attn", "time_modulation"),
    ("ada_lin_mlp", "modulation"),
)
"""And of FlowAR-L and -H, which also have `CROSS_ROWS`."""

TRUNK_ROWS = (
    Row("class_emb.weight", "backbone/classes/table"),
    Row("encoder_pos_embed_learned", "backbone/encoder_positions/table"),
    Row("decoder_pos_embed_learned", "backbone/decoder_positions/table"),
    Row("diffusion_pos_embed_learned", "backbone/out_positions/table"),
    Row("z_proj_ln.weight", "backbone/embed_norm/scale"),
    Row("encoder_norm.weight", "backbone/encoder_norm/scale"),
    Row("decoder_norm.weight", "backbone/decoder_norm/scale"),
)

THEIRS, OURS = "flownet.res_blocks.{i}.", "head/blocks/blocks/"
"""Beginnings of the keys and paths of the flow network's blocks."""

CROSS_ROWS = (
    Row(THEIRS + "crossattn.q.weight", OURS + "cross/query/kernel", linear),
    Row(THEIRS + "crossattn.kv.weight", OURS + "cross/kv/kernel", linear),
    Row(THEIRS + "norm2_1.weight", OURS + "cross_norm/scale"),
    Row(THEIRS + "norm2_2.weight", OURS + "context_norm/scale"),
)

BUFFERS = ("mask", "*.rope.*")
"""Constants of the release that follow from the plan."""


def rows(template: Any) -> list[Row]:
    """Returns the table for a parameter tree of arrays or shapes, of either version."""
    cross = CROSS_ROWS[0].ours in paths(template)
    maps = [
        *((theirs, f"backbone/{ours}") for theirs, ours in TRUNK),
        *((f"flownet.{theirs}", f"head/{ours}") for theirs, ours in FLOW),
        *((THEIRS + theirs, OURS + ours) for theirs, ours in COMMON),
        *((THEIRS + theirs, OURS + ours) for theirs, ours in (CROSS if cross else MODULATED)),
    ]
    return [
        *TRUNK_ROWS,
        *(Row(f"{theirs}.weight", f"{ours}/kernel", linear) for theirs, ours in maps),
        *(Row(f"{theirs}.bias", f"{ours}/bias") for theirs, ours in maps),
        Row(THEIRS + "attn.qkv.weight", OURS + "attention/qkv/kernel", linear),
        *(CROSS_ROWS if cross else ()),
    ]


def from_state_dict(state: Mapping[str, Any], template: Any) -> dict[str, Any]:
    """Returns the parameters that a released state dict holds.

    Args:
      state: Arrays by key of the release.
      template: Parameter tree of backbone and head, arrays or shapes.

    Raises:
      WeightsError: lists every unused, missing and misshapen key.
    """
    return convert(state, rows(template), template, ignore=BUFFERS)
