"""The transformer of VAR: next-scale prediction over codes.

Tokens see those of their own level and of all coarser ones. The input of a level is what the levels
before it stand for, on its grid; that of the first is the class.
Source: arXiv 2404.02905; FoundationVision/VAR models/var.py, models/basic_var.py.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.core.cache import Cache
from jaxar.core.condition import Condition, classes_of
from jaxar.core.plan import Plan
from jaxar.core.visibility import Layout
from jaxar.nn import layers
from jaxar.nn.attention import Attention, CosineAttention
from jaxar.nn.compute import PLAIN, Compute, Dropout, Pass
from jaxar.nn.module import Module
from jaxar.nn.transformer import Block, Offset, Transformer
from jaxar.tree import paths
from jaxar.typing import Array, Float, Int
from jaxar.weights.tables import Row, convert, linear, same


class VAR(Module):
    """Hidden vector of every token, given what precedes its entity and a class.

    Initial values are those of the release: N(0, 1 / (3 width)), the outputs of attention and MLP
    divided by sqrt(2 depth), scales and shifts halved, gates times `gate_init`.
    """

    def __init__(
        self,
        plan: Plan,
        channels: int,
        condition: Condition,
        *,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        cosine: bool = True,
        shared_modulation: bool = False,
        gate_init: float = 1e-3,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        compute: Compute = PLAIN,
        key: Array,
    ):
        """Makes the network.

        Args:
          plan: Entities and their order; sets the length of the sequence.
          channels: Numbers in an input, those of a code's vector.
          condition: A label; one more vector stands for "no class".
          width: Of the tokens; 64 depth in the release.
          depth: Layers.
          heads: Attention heads.
          mlp_ratio: The MLP has round(mlp_ratio width) inner units.
          cosine: Whether queries and keys are unit vectors; else logits are scaled by
            1 / (4 sqrt(e)).
          shared_modulation: Whether all layers share one map of the class, each adding vectors of
            its own, as the 512-pixel model does.
          gate_init: Factor on the initial values of the gates.
          dropout: Rate on the outputs of attention and MLP in training.
          attention_dropout: Rate on attention weights in training.
          drop_path: Rate of dropped branches at the last layer in training.
          compute: How blocks compute.
          key: Randomness of the initial values.
        """
        keys, known = iter(jax.random.split(key, 9)), classes_of(condition, "VAR")
        std = math.sqrt(1 / width / 3)
        law = layers.normal(std)
        self.plan = plan
        self.rates = Dropout(attention_dropout, dropout, drop_path)
        self.compute = compute
        self.embed = layers.Linear(channels, width, key=next(keys), init=law)
        self.classes = layers.Table(known + 1, width, key=next(keys), std=std)
        self.start = layers.Table(plan.sizes[0], width, key=next(keys), std=std)
        self.positions = layers.Table(plan.tokens, width, key=next(keys), std=std)
        self.levels = layers.Table(plan.entities, width, key=next(keys), std=std)
        self.shared = (
            layers.Adaptive(width, (6, width), key=next(keys), init=law)
            if shared_modulation
            else None
        )

        def make(key):
            return _block(width, depth, heads, mlp_ratio, cosine, shared_modulation, gate_init, key)

        self.blocks = Transformer(depth, make, key=next(keys))
        self.head_modulation = layers.Adaptive(
            width, (2, width), key=next(keys), init=layers.normal(std / 2)
        )

    def __call__(
        self,
        inputs: Float[Array, "b m c"],
        labels: Int[Array, " b"],
        layout: Layout,
        *,
        cache: Cache | None = None,
        collect: bool = False,
        key: Array | None = None,
    ) -> tuple[Float[Array, "b n d"], Cache | None]:
        """Returns float32 hidden vectors, and with `collect` the keys and values of these tokens.

        See `FlowAR` for the arguments.
        """
        condition = self.classes(labels)[:, None]
        first = sum(layout.sizes) - inputs.shape[1]
        start = condition + self.start(np.arange(first))
        x = jnp.concatenate([start, self.embed(inputs)], 1)
        level = jnp.asarray(self.plan.entity)[layout.place]
        x = x + self.levels(level) + self.positions(layout.place)
        x, kept = self.blocks(
            x,
            condition if self.shared is None else self.shared(condition),
            Pass(
                sizes=(sum(layout.sizes),),
                sees=layout.sees,
                compute=self.compute,
                rates=self.rates,
                collect=collect,
            ),
            cache=cache,
            key=key,
        )
        scale, shift = jnp.moveaxis(self.head_modulation(condition), 2, 0)
        return layers.modulate(layers.layer_norm(x), scale, shift), kept

    def empty_cache(self, batch: int, tokens: int) -> Cache:
        """Returns a cache with room for `tokens` tokens, in the compute dtype."""
        return self.blocks.empty_cache(batch, tokens, self.compute.type)


def _block(
    width: int,
    depth: int,
    heads: int,
    mlp_ratio: float,
    cosine: bool,
    shared_modulation: bool,
    gate_init: float,
    key: Array,
) -> Block:
    """Returns a block with the initial values of the release."""
    attention, mlp, modulation = jax.random.split(key, 3)
    law = layers.normal(math.sqrt(1 / width / 3))
    out = layers.normal(math.sqrt(1 / width / 3) / math.sqrt(2 * depth))
    damping = jnp.asarray([gate_init] * 2 + [0.5] * 4)[:, None]
    arguments: dict[str, Any] = dict(
        bias=(True, False, True), key=attention, init=law, out_init=out
    )
    if cosine:
        attend = CosineAttention(width, heads, **arguments)
    else:
        attend = Attention(width, heads, scale=0.25 / math.sqrt(width // heads), **arguments)
    if shared_modulation:
        vectors = jax.random.normal(modulation, (6, width)) / math.sqrt(width)
        modulate = Offset(vectors * damping)
    else:

        def damped(key, inputs, outputs):
            return law(key, inputs, outputs) * jnp.repeat(damping[:, 0], width)

        modulate = layers.Adaptive(width, (6, width), key=modulation, init=damped)
    return Block(
        attend,
        layers.MLP(
            width,
            round(width * mlp_ratio),
            activation=layers.gelu_tanh,
            key=mlp,
            init=law,
            out_init=out,
        ),
        modulate,
        norm=layers.layer_norm,
    )


# Released weights: FoundationVision/VAR. A model has the rows that its parameters ask for: a map of
# the class for each layer or one for all (512 pixels), scales of heads with cosine attention only.

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
