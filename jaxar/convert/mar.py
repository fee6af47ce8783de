"""Released MAR weights: the table from LTH14/mar state dicts to backbone and head."""

from collections.abc import Mapping
from typing import Any

from jaxar.convert.core import Row, convert, linear

BLOCK = (
    ("attn.qkv", "attention/qkv"),
    ("attn.proj", "attention/out"),
    ("mlp.fc1", "mlp/up"),
    ("mlp.fc2", "mlp/down"),
)
BLOCK_NORMS = (("norm1", "attention_norm"), ("norm2", "mlp_norm"))

HEAD = (
    ("time_embed.mlp.0", "time/first"),
    ("time_embed.mlp.2", "time/second"),
    ("cond_embed", "condition"),
    ("input_proj", "embed"),
    ("res_blocks.{i}.mlp.0", "blocks/mlp/up"),
    ("res_blocks.{i}.mlp.2", "blocks/mlp/down"),
    ("res_blocks.{i}.adaLN_modulation.1", "blocks/modulation"),
    ("final_layer.adaLN_modulation.1", "modulation"),
    ("final_layer.linear", "predict"),
)


def _blocks(parts: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Returns the names of parts of the blocks of both stacks."""
    return tuple(
        (f"{stack}_blocks.{{i}}.{theirs}", f"backbone/{stack}/blocks/{ours}")
        for stack in ("encoder", "decoder")
        for theirs, ours in parts
    )


MAPS = (
    ("z_proj", "backbone/embed"),
    ("decoder_embed", "backbone/between"),
    *_blocks(BLOCK),
    *((f"diffloss.net.{theirs}", f"head/{ours}") for theirs, ours in HEAD),
)

NORMS = (
    ("z_proj_ln", "backbone/embed_norm"),
    ("encoder_norm", "backbone/encoder_norm"),
    ("decoder_norm", "backbone/decoder_norm"),
    *_blocks(BLOCK_NORMS),
    ("diffloss.net.res_blocks.{i}.in_ln", "head/blocks/norm"),
)

ROWS = (
    Row("class_emb.weight", "backbone/classes/table"),
    Row("fake_latent", "backbone/no_class"),
    Row("mask_token", "backbone/mask"),
    Row("encoder_pos_embed_learned", "backbone/encoder_positions/table"),
    Row("decoder_pos_embed_learned", "backbone/decoder_positions/table"),
    Row("diffusion_pos_embed_learned", "backbone/out_positions/table"),
    *(Row(f"{theirs}.weight", f"{ours}/kernel", linear) for theirs, ours in MAPS),
    *(Row(f"{theirs}.weight", f"{ours}/scale") for theirs, ours in NORMS),
    *(Row(f"{theirs}.bias", f"{ours}/bias") for theirs, ours in (*MAPS, *NORMS)),
)


def from_state_dict(state: Mapping[str, Any], template: Any) -> dict[str, Any]:
    """Returns the parameters that a released state dict holds, {"backbone": ..., "head": ...}.

    Args:
      state: Arrays by key of the release.
      template: Parameter tree of the network, arrays or shapes.

    Raises:
      WeightsError: lists every unused, missing and misshapen key.
    """
    return convert(state, ROWS, template)
