"""The network of xAR: an encoder and a decoder stack of modulated blocks over noised entities.

Source: arXiv 2502.20388; OliverRensu/xAR models/xar.py.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax

from jaxar.core.condition import Condition, classes_of
from jaxar.core.plan import Plan
from jaxar.core.visibility import Layout
from jaxar.nn import layers
from jaxar.nn.compute import PLAIN, Compute, Dropout
from jaxar.nn.rope import rotary_at, rotary_table
from jaxar.nn.stacks import Stacks, TwoStacks, gated_block
from jaxar.typing import Array, Float, Int
from jaxar.weights.tables import Row, convert, linear


class XAR(TwoStacks):
    """Velocity of every token, given noised tokens, the time of each entity and a class.

    Both stacks see the same entities. Positions are learned, once for each stack, and rotary.
    """

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
        time_scale: float = 1000.0,
        truncate_time: bool = True,
        compute: Compute = PLAIN,
        key: Array,
    ):
        """Makes the network.

        Args:
          plan: Entities and their order; sets the length of the sequence and its positions.
          channels: Numbers in a token.
          condition: A label; one more vector stands for "no class".
          width: Width of both stacks.
          depth: Layers of encoder and decoder.
          heads: Attention heads; the width of a head must be a multiple of 4.
          mlp_ratio: The gated MLP has int(2/3 mlp_ratio width) inner units.
          dropout: Rate on the outputs of attention and MLP in training.
          attention_dropout: Rate on attention weights in training.
          time_scale: Times are multiplied by this before their embedding.
          truncate_time: Whether scaled times are cut to integers, as in the release.
          compute: How blocks compute.
          key: Randomness of the initial values.
        """
        stacks, embed, classes, time, predict = jax.random.split(key, 5)
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
        self.plan, self.head = plan, width // heads
        self.embed = layers.Linear(channels, width, key=embed)
        self.classes = layers.Table(classes_of(condition, "xAR") + 1, width, key=classes)
        self.time = layers.TimeEmbedding(width, scale=time_scale, truncate=truncate_time, key=time)
        self.predict = layers.Linear(width, channels, key=predict)
        rotary_table(plan.positions[:1], self.head)  # heads it does not fit are found here

    def __call__(
        self,
        tokens: Float[Array, "b n c"],
        times: Float[Array, "b g"],
        labels: Int[Array, " b"],
        layout: Layout,
        *,
        cache: Stacks | None = None,
        collect: bool = False,
        key: Array | None = None,
    ) -> tuple[Float[Array, "b n c"], Stacks | None]:
        """Returns float32 velocities, and with `collect` the keys and values of these tokens.

        Args:
          tokens: Noised tokens.
          times: One time in [0, 1] for each segment of the layout.
          labels: Value of the condition: classes, the last number for "no class".
          layout: Places, segments and visibility of these tokens.
          cache: Keys and values of m - n earlier tokens.
          collect: Whether to return keys and values.
          key: Randomness of dropout, or None for none.
        """
        x, kept = self.through(
            self.embed(tokens),
            layout.place,
            self.classes(labels)[:, None] + self.time(times),
            self.shared(
                sizes=layout.sizes,
                rope=rotary_at(self.plan.positions, self.head, layout.place),
                sees=layout.sees,
                collect=collect,
            ),
            cache=cache,
            key=key,
        )
        return self.predict(x), kept


# Released weights: OliverRensu/xAR.

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
