"""Two stacks of blocks with a map between: the common trunk of MAR, FlowAR and xAR.

    h = norm(encoder(norm(x + p_1)))                                                   (1)
    y = norm(decoder(between(h) + p_2))                                                (2)

p_1 and p_2 are learned positions. Source: LTH14/mar models/mar.py, `forward_mae_encoder` and
`forward_mae_decoder`.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxar.core.cache import Cache
from jaxar.nn import layers
from jaxar.nn.attention import Attention
from jaxar.nn.compute import Compute, Dropout, Pass
from jaxar.nn.module import Module
from jaxar.nn.transformer import Block, Transformer
from jaxar.typing import Array, Float

Stacks = dict[str, Cache]
"""Caches of both stacks: {"encoder": ..., "decoder": ...}."""


class TwoStacks(Module):
    """The parts of (1) and (2); a subclass says what goes in, and with which blocks."""

    def __init__(
        self,
        places: int,
        *,
        width: int,
        depth: tuple[int, int],
        block: Callable[[Array], Module],
        norm: Callable[[int], Module],
        rates: Dropout,
        compute: Compute,
        key: Array,
    ):
        """Makes both stacks.

        Args:
          places: Learned positions in each stack.
          width: Of both stacks.
          depth: Layers of encoder and decoder.
          block: block(key) -> one block.
          norm: norm(width) -> a norm with weights.
          rates: Dropout of training.
          compute: How blocks compute.
          key: Randomness of the initial values.

        Raises:
          ValueError: the depth is not of two stacks.
        """
        if not isinstance(depth, tuple | list) or len(depth) != 2:
            raise ValueError(f"depth must be the layers of encoder and decoder, not {depth!r}.")
        first, second, third, fourth, fifth = jax.random.split(key, 5)
        self.rates, self.compute = rates, compute
        self.encoder_positions = layers.Table(places, width, key=first)
        self.embed_norm = norm(width)
        self.encoder = Transformer(depth[0], block, key=second)
        self.encoder_norm = norm(width)
        self.between = layers.Linear(width, width, key=third)
        self.decoder_positions = layers.Table(places, width, key=fourth)
        self.decoder = Transformer(depth[1], block, key=fifth)
        self.decoder_norm = norm(width)

    def encode(
        self,
        x: Float[Array, "b n d"],
        place: Array | np.ndarray,
        condition: Any,
        shared: Pass,
        *,
        cache: Cache | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "b n d"], Cache | None]:
        """Returns (1), and what a cache holds of them if it is collected.

        Args:
          x: Embedded tokens.
          place: Their positions, (n,) or (b, n).
          condition: What the blocks take as such.
          shared: What all layers share, see `shared`.
          cache: That of earlier tokens.
          key: Randomness of dropout, or None for none.
        """
        x = self.embed_norm(x + self.encoder_positions(place))
        x, kept = self.encoder(x, condition, shared, cache=cache, key=key)
        return self.encoder_norm(x), kept

    def decode(
        self,
        x: Float[Array, "b n d"],
        place: Array | np.ndarray,
        condition: Any,
        shared: Pass,
        *,
        cache: Cache | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "b n d"], Cache | None]:
        """Returns (2) of what `between` gave, and what a cache holds of them if it is collected."""
        x = x + self.decoder_positions(place)
        x, kept = self.decoder(x, condition, shared, cache=cache, key=key)
        return self.decoder_norm(x), kept

    def through(
        self,
        x: Float[Array, "b n d"],
        place: Array | np.ndarray,
        condition: Any,
        shared: Pass,
        *,
        cache: Stacks | None,
        key: Array | None,
    ) -> tuple[Float[Array, "b n d"], Stacks | None]:
        """Returns (2) of (1), and what a cache holds of them if it is collected."""
        first, second = layers.split_or_none(key, 2)
        past = cache or {"encoder": None, "decoder": None}
        x, encoder = self.encode(x, place, condition, shared, cache=past["encoder"], key=first)
        x = self.between(x)
        x, decoder = self.decode(x, place, condition, shared, cache=past["decoder"], key=second)
        if encoder is None or decoder is None:
            return x, None
        return x, {"encoder": encoder, "decoder": decoder}

    def shared(self, **more: Any) -> Pass:
        """Returns what all layers of a pass share: this network's own, and `more`."""
        return Pass(compute=self.compute, rates=self.rates, **more)

    def empty_cache(self, batch: int, tokens: int) -> Stacks:
        """Returns a cache with room for `tokens` tokens, in the compute dtype."""
        shape = (batch, tokens, self.compute.type)
        return {
            "encoder": self.encoder.empty_cache(*shape),
            "decoder": self.decoder.empty_cache(*shape),
        }


def gated_block(width: int, heads: int, mlp_ratio: float, key: Array) -> Module:
    """Returns the block of FlowAR and xAR: attention and gated MLP, modulated.

    The gated MLP has int(2/3 mlp_ratio width) inner units; modulation starts at Xavier's law, not
    at zero. Source: OliverRensu/xAR models/xar.py `Block`.
    """
    attention, mlp, modulation = jax.random.split(key, 3)
    return Block(
        Attention(width, heads, key=attention),
        layers.GatedMLP(width, int(width * mlp_ratio * 2 / 3), key=mlp),
        layers.Adaptive(width, (6, width), key=modulation),
    )
