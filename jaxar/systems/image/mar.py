"""The network of MAR: an encoder of the tokens that are there, a decoder of all places.

A token that is there is *kept*, the others are *masked*. The encoder sees copies of the class and
the kept tokens, the decoder the encoder's output at their places and one learned vector at all
others. Shapes do not depend on how many tokens are kept: the encoder has room for a fixed number
and looks at no place that is empty, so one compiled program serves every share of masked tokens.

Source: arXiv 2406.11838; LTH14/mar models/mar.py.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.checks import require, whole
from jaxar.core.condition import Condition, classes_of
from jaxar.core.padding import needed
from jaxar.core.plan import Plan
from jaxar.core.visibility import Visibility, present
from jaxar.nn import layers
from jaxar.nn.attention import Attention
from jaxar.nn.compute import ARGUMENTS, PLAIN, Compute, Dropout
from jaxar.nn.module import Param
from jaxar.nn.stacks import TwoStacks
from jaxar.nn.transformer import PlainBlock
from jaxar.typing import Array, Float, Int
from jaxar.weights.tables import Row, convert, linear


class MAR(TwoStacks):
    """Hidden vector of every token, given the kept tokens and a class."""

    offers = "set"

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
        buffer: int = 64,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        compute: Compute = PLAIN,
        key: Array,
    ):
        """Makes the network.

        Args:
          plan: Its tokens; they are numbered in the order of its sequence.
          channels: Numbers in a token.
          condition: A label; one more vector stands for "no class".
          width: Width of both stacks.
          depth: Layers of encoder and decoder.
          heads: Attention heads.
          mlp_ratio: The MLP has int(mlp_ratio width) inner units.
          buffer: Copies of the class that both stacks see before the tokens; at least 1.
          dropout: Rate on the outputs of attention and MLP in training.
          attention_dropout: Rate on attention weights in training.
          compute: How blocks compute.
          key: Randomness of the initial values.

        Raises:
          ValueError: `buffer` is below 1: with nothing kept the encoder would see nothing.
        """
        require(locals(), **ARGUMENTS, buffer=whole(1))
        stacks, embed, classes, no_class, mask, positions = jax.random.split(key, 6)

        def block(key):
            first, second = jax.random.split(key)
            return PlainBlock(
                width,
                Attention(width, heads, key=first),
                layers.MLP(width, int(width * mlp_ratio), activation=layers.gelu, key=second),
            )

        super().__init__(
            buffer + plan.tokens,
            width=width,
            depth=depth,
            block=block,
            norm=layers.LayerNorm,
            rates=Dropout(attention=attention_dropout, projection=dropout),
            compute=compute,
            key=stacks,
        )
        self.plan, self.buffer, self.width = plan, buffer, width
        self.embed = layers.Linear(channels, width, key=embed)
        self.classes = layers.Table(classes_of(condition, "MAR"), width, key=classes)
        self.no_class = Param(0.02 * jax.random.normal(no_class, (width,)))
        self.mask = Param(0.02 * jax.random.normal(mask, (width,)))
        self.out_positions = layers.Table(plan.tokens, width, key=positions)

    def __call__(
        self,
        tokens: Float[Array, "b n c"],
        labels: Int[Array, " b"],
        order: Int[Array, "b n"],
        kept: Array | int,
        room: int,
        *,
        usual: float | None = None,
        key: Array | None = None,
    ) -> Float[Array, "b n d"]:
        """Returns float32 hidden vectors of all tokens.

        Args:
          tokens: All tokens; those that are not kept do not matter.
          labels: Value of the condition: classes, the last number for "no class".
          order: Numbers of the tokens, for each example its own permutation.
          kept: How many tokens are kept, the first of the order, at most `room`; may be traced.
          room: Tokens that the encoder has room for; fixed.
          usual: How many are kept on average, for those who count operations; `room` by default.
          key: Randomness of dropout, or None for none.
        """
        batch, n, _ = tokens.shape
        first, second = layers.split_or_none(key, 2)
        rows = jnp.arange(batch)[:, None]
        there = order[:, :room]
        is_there = jnp.arange(room) < kept
        buffer = jnp.broadcast_to(jnp.arange(self.buffer), (batch, self.buffer))
        place = jnp.concatenate([buffer, self.buffer + there], 1)
        seen = jnp.concatenate([jnp.ones(self.buffer, bool), is_there])
        there_alone = Visibility(present, (np.zeros(len(seen), np.int32),), (seen,))

        usual = room if usual is None else usual
        with needed(usual, room):
            x = self.embed(tokens[rows, there])
        with needed(self.buffer + usual, self.buffer + room):
            x = jnp.concatenate([self._class_tokens(labels), x], 1)
            x, _ = self.encode(x, place, None, self.shared(sees=there_alone), key=first)
            x = self.between(x)

        grid = jnp.broadcast_to(self.mask[...], (batch, n, self.width))
        target = jnp.where(is_there, there, n)  # what is not there is written nowhere
        grid = grid.at[rows, target].set(x[:, self.buffer :], mode="drop")
        x = jnp.concatenate([x[:, : self.buffer], grid], 1)
        x, _ = self.decode(x, jnp.arange(self.buffer + n), None, self.shared(), key=second)
        return x[:, self.buffer :] + self.out_positions(jnp.arange(n))

    def _class_tokens(self, labels: Array) -> Any:
        """Returns the copies of the class, (b, buffer, d)."""
        known = labels < self.classes.table.shape[0]
        vectors = jnp.where(
            known[:, None], self.classes(jnp.where(known, labels, 0)), self.no_class[...]
        )
        return jnp.broadcast_to(vectors[:, None], (len(labels), self.buffer, self.width))


# Released weights: LTH14/mar.

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
