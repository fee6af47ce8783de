"""The network of xAR: an encoder and a decoder stack of modulated blocks over noised entities.

Source: arXiv 2502.20388; OliverRensu/xAR models/xar.py.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxar.nn import layers
from jaxar.nn.attention import KeyValue
from jaxar.nn.module import Module
from jaxar.nn.rope import rotary_table
from jaxar.nn.transformer import Dropout, Transformer
from jaxar.plan import Layout, Plan
from jaxar.typing import Array, Float, Int

Cache = dict[str, KeyValue]
"""Keys and values of finished entities: {"encoder": ..., "decoder": ...}, each (l, b, m, k, e)."""

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class XAR(Module):
    """Velocity of every token, given noised tokens, the time of each entity and a class.

    Both stacks see the same mask. Positions are learned, once for each stack, and rotary.
    """

    def __init__(
        self,
        plan: Plan,
        channels: int,
        num_classes: int,
        *,
        width: int,
        depth: tuple[int, int],
        heads: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        time_scale: float = 1000.0,
        truncate_time: bool = True,
        dtype: str = "float32",
        remat: bool = False,
        key: Array,
    ):
        """Makes the network.

        Args:
          plan: Entities and their order; sets the length of the sequence and its positions.
          channels: Numbers in a token.
          num_classes: Classes; one more embedding stands for "no class".
          width: Width of both stacks.
          depth: Layers of encoder and decoder.
          heads: Attention heads; the width of a head must be a multiple of 4.
          mlp_ratio: The gated MLP has int(2/3 mlp_ratio width) inner units.
          dropout: Rate on the outputs of attention and MLP in training.
          attention_dropout: Rate on attention weights in training.
          time_scale: Times are multiplied by this before their embedding.
          truncate_time: Whether scaled times are cut to integers, as in the release.
          dtype: "float32", or "bfloat16" for the matrix products inside blocks; parameters, norms,
            the sum over layers and what stands around the stacks are float32.
          remat: Whether the backward pass computes the inside of blocks anew.
          key: Randomness of the initial values.
        """
        keys = jax.random.split(key, 9)
        hidden = int(width * mlp_ratio * 2 / 3)
        self.plan, self.dtype, self.remat = plan, dtype, remat
        self.heads, self.head = heads, width // heads
        self.depth = tuple(depth)
        self.rates = Dropout(attention=attention_dropout, projection=dropout)

        self.embed = layers.Linear(channels, width, key=keys[0])
        self.embed_norm = layers.RMSNorm(width)
        self.classes = layers.Table(num_classes + 1, width, key=keys[1])
        self.time = layers.TimeEmbedding(
            width, scale=time_scale, truncate=truncate_time, key=keys[2]
        )
        self.encoder_positions = layers.Table(plan.tokens, width, key=keys[3])
        self.encoder = Transformer(depth[0], width, heads, hidden, key=keys[4])
        self.encoder_norm = layers.RMSNorm(width)
        self.between = layers.Linear(width, width, key=keys[5])
        self.decoder_positions = layers.Table(plan.tokens, width, key=keys[6])
        self.decoder = Transformer(depth[1], width, heads, hidden, key=keys[7])
        self.decoder_norm = layers.RMSNorm(width)
        self.predict = layers.Linear(width, channels, key=keys[8])
        rotary_table(plan.positions[:1], self.head)  # heads it does not fit are found here

    def __call__(
        self,
        tokens: Float[Array, "b n c"],
        times: Float[Array, "b g"],
        labels: Int[Array, " b"],
        layout: Layout,
        *,
        cache: Cache | None = None,
        collect: bool = False,
        key: Array | None = None,
    ) -> tuple[Float[Array, "b n c"], Cache | None]:
        """Returns float32 velocities, and with `collect` the keys and values of these tokens.

        Args:
          tokens: Noised tokens.
          times: One time in [0, 1] for each segment of the layout.
          labels: Classes in [0, num_classes]; num_classes stands for "no class".
          layout: Places, segments and mask of these tokens.
          cache: Keys and values of m - n earlier tokens.
          collect: Whether to return keys and values.
          key: Randomness of dropout, or None for none.
        """
        encoder_key, decoder_key = layers.split_or_none(key, 2)
        condition = self.classes(labels)[:, None] + self.time(times)
        rope = jnp.asarray(rotary_table(self.plan.positions, self.head))[:, layout.place]
        shared: dict[str, Any] = dict(
            sizes=layout.sizes,
            rope=rope,
            mask=layout.mask,
            collect=collect,
            rates=self.rates,
            remat=self.remat,
            dtype=DTYPES[self.dtype],
        )
        past = cache or {"encoder": None, "decoder": None}

        x = self.embed(tokens) + self.encoder_positions(layout.place)
        x, encoder = self.encoder(
            self.embed_norm(x), condition, cache=past["encoder"], key=encoder_key, **shared
        )
        x = self.between(self.encoder_norm(x)) + self.decoder_positions(layout.place)
        x, decoder = self.decoder(x, condition, cache=past["decoder"], key=decoder_key, **shared)
        out = self.predict(self.decoder_norm(x))
        if encoder is None or decoder is None:
            return out, None
        return out, {"encoder": encoder, "decoder": decoder}

    def empty_cache(self, batch: int, tokens: int) -> Cache:
        """Returns a cache with room for `tokens` tokens, in the compute dtype."""

        def empty(depth):
            shape = (depth, batch, tokens, self.heads, self.head)
            return jnp.zeros(shape, DTYPES[self.dtype]), jnp.zeros(shape, DTYPES[self.dtype])

        return {"encoder": empty(self.depth[0]), "decoder": empty(self.depth[1])}
