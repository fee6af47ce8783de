"""The trunk of FlowAR: two stacks of modulated blocks over what precedes each scale.

The first entity sees the class alone, a later one the entities before it, enlarged; what comes out
is the condition of a flow network (`heads.flow_network`).
Source: arXiv 2412.15205; wangqiang9/FlowAR models/flowar.py.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxar.core.condition import Condition, classes_of
from jaxar.core.plan import Plan
from jaxar.core.visibility import Layout
from jaxar.nn import layers
from jaxar.nn.compute import PLAIN, Compute, Dropout
from jaxar.nn.rope import rotary_at, rotary_table
from jaxar.nn.stacks import Stacks, TwoStacks, gated_block
from jaxar.systems.image.xar import BLOCK
from jaxar.tree import paths
from jaxar.typing import Array, Float, Int
from jaxar.weights.tables import Row, convert, linear


class FlowAR(TwoStacks):
    """Hidden vector of every token, given what precedes its entity and a class."""

    def __init__(
        self,
        plan: Plan,
        channels: int,
        condition: Condition,
        *,
        width: int,
        depth: tuple[int, int],
        heads: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        compute: Compute = PLAIN,
        key: Array,
    ):
        """Makes the network; see `XAR` for the arguments."""
        stacks, embed, classes, positions = jax.random.split(key, 4)
        super().__init__(
            plan.tokens,
            width=width,
            depth=depth,
            block=functools.partial(gated_block, width, heads, mlp_ratio),
            norm=layers.RMSNorm,
            rates=Dropout(attention=attention_dropout, projection=dropout),
            compute=compute,
            key=stacks,
        )
        self.plan, self.width, self.head = plan, width, width // heads
        self.embed = layers.Linear(channels, width, key=embed)
        self.classes = layers.Table(classes_of(condition, "FlowAR") + 1, width, key=classes)
        self.out_positions = layers.Table(plan.tokens, width, key=positions)
        rotary_table(plan.positions[:1], self.head)  # heads it does not fit are found here

    def __call__(
        self,
        inputs: Float[Array, "b m c"],
        labels: Int[Array, " b"],
        layout: Layout,
        *,
        cache: Stacks | None = None,
        collect: bool = False,
        key: Array | None = None,
    ) -> tuple[Float[Array, "b n d"], Stacks | None]:
        """Returns float32 hidden vectors, and with `collect` the keys and values of these tokens.

        Args:
          inputs: What precedes each token, but those of the first entity: m is n less its tokens
            where the layout begins with it, else n.
          labels: Value of the condition: classes, the last number for "no class".
          layout: Places, segments and visibility of these tokens.
          cache: Keys and values of earlier tokens.
          collect: Whether to return keys and values.
          key: Randomness of dropout, or None for none.
        """
        condition = self.classes(labels)[:, None]
        first = sum(layout.sizes) - inputs.shape[1]
        start = jnp.broadcast_to(condition, (len(inputs), first, self.width))
        x, kept = self.through(
            jnp.concatenate([start, self.embed(inputs)], 1),
            layout.place,
            condition,
            self.shared(
                sizes=(sum(layout.sizes),),
                rope=rotary_at(self.plan.positions, self.head, layout.place),
                sees=layout.sees,
                collect=collect,
            ),
            cache=cache,
            key=key,
        )
        return x + self.out_positions(layout.place), kept


# Released weights: wangqiang9/FlowAR. The keys of the trunk are those of xAR; the flow network was
# released in two versions, which the parameters that are asked for tell apart.

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
