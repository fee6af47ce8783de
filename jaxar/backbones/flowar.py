"""The trunk of FlowAR: two stacks of modulated blocks over what precedes each scale.

The first entity sees the class alone, a later one the entities before it, enlarged; what comes out
is the condition of a flow network (`heads.flow_network`).
Source: arXiv 2412.15205; wangqiang9/FlowAR models/flowar.py.
"""

import functools

import jax
import jax.numpy as jnp

from jaxar.backbones.stacks import Cache, TwoStacks, gated_block
from jaxar.nn import layers
from jaxar.nn.rope import rotary_at, rotary_table
from jaxar.nn.transformer import PLAIN, Compute, Dropout
from jaxar.plan import Layout, Plan
from jaxar.typing import Array, Float, Int


class FlowAR(TwoStacks):
    """Hidden vector of every token, given what precedes its entity and a class."""

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
        self.classes = layers.Table(num_classes + 1, width, key=classes)
        self.out_positions = layers.Table(plan.tokens, width, key=positions)
        rotary_table(plan.positions[:1], self.head)  # heads it does not fit are found here

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

        Args:
          inputs: What precedes each token, but those of the first entity: m is n less its tokens
            where the layout begins with it, else n.
          labels: Classes in [0, num_classes]; num_classes stands for "no class".
          layout: Places, segments and mask of these tokens.
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
                mask=layout.mask,
                collect=collect,
            ),
            cache=cache,
            key=key,
        )
        return x + self.out_positions(layout.place), kept
