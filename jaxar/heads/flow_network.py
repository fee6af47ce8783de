"""The head of FlowAR: a flow network draws all tokens of an entity together.

    x_t = path(x, e, t),   loss = sum over entities of size / last size |net(x_t, t, h) - v|^2   (1)

h is the hidden vector that the backbone gives for each token; every entity has its own time t. Two
networks were released: the small model's modulates every token by time and condition, that of the
large ones attends to the conditions. Attention stays inside an entity.

Source: arXiv 2412.15205; wangqiang9/FlowAR models/flowmodel.py, models/flowloss.py.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.core.plan import Plan
from jaxar.core.visibility import Layout, Visibility, same
from jaxar.flow.guidance import guided
from jaxar.heads.base import Turn
from jaxar.heads.flow import Flow, FlowNoise, solve
from jaxar.nn import layers
from jaxar.nn.attention import Attention, CrossAttention
from jaxar.nn.compute import PLAIN, Compute, Pass
from jaxar.nn.module import Module
from jaxar.nn.rope import rotary_at, rotary_table
from jaxar.nn.transformer import Block, Transformer
from jaxar.typing import Array, Float


class FlowNetwork(Module):
    """Velocity of every token of an entity, given the noised entity, its time and conditions."""

    def __init__(
        self,
        plan: Plan,
        hidden: int,
        channels: int,
        *,
        flow: Flow,
        width: int,
        depth: int,
        heads: int,
        cross: bool = False,
        mlp_ratio: float = 4.0,
        compute: Compute = PLAIN,
        key: Array,
    ):
        """Makes the network.

        Args:
          plan: Entities and their positions.
          hidden: Width of the backbone's hidden vectors.
          channels: Numbers in a token.
          flow: Path and law of training times.
          width: Of the network.
          depth: Layers.
          heads: Of attention; width / 64 in the release.
          cross: Whether blocks attend to the conditions (FlowAR-L and -H) instead of being
            modulated by them throughout (FlowAR-S).
          mlp_ratio: The gated MLP has int(2/3 mlp_ratio width) inner units.
          compute: How blocks compute.
          key: Randomness of the initial values.
        """
        keys = jax.random.split(key, 6)
        self.plan, self.channels, self.flow = plan, channels, flow
        self.head, self.compute = width // heads, compute
        self.cross = cross
        self.embed = layers.Linear(channels, width, key=keys[0])
        self.time = layers.TimeEmbedding(
            width, scale=1000.0, truncate=True, key=keys[1], init=layers.normal(0.02)
        )
        self.condition = layers.Linear(hidden, width, key=keys[2])
        inner = int(width * mlp_ratio * 2 / 3)

        def make(key):
            if cross:
                return CrossBlock(width, hidden, heads, inner, key=key)
            attention, mlp, modulation = jax.random.split(key, 3)
            return Block(
                Attention(width, heads, bias=False, key=attention),
                layers.GatedMLP(width, inner, key=mlp),
                layers.Adaptive(width, (6, width), key=modulation),
            )

        self.blocks = Transformer(depth, make, key=keys[3])
        self.modulation = layers.Adaptive(width, (2, width), key=keys[4])
        self.predict = layers.Linear(width, channels, key=keys[5], init=layers.zeros)
        rotary_table(plan.positions[:1], self.head)  # heads it does not fit are found here

    def __call__(
        self,
        x: Float[Array, "b n c"],
        times: Float[Array, "b g"],
        hidden: Float[Array, "b n d"],
        layout: Layout,
    ) -> Float[Array, "b n c"]:
        """Returns float32 velocities.

        Args:
          x: Noised tokens.
          times: One time in [0, 1] for each segment of the layout.
          hidden: Condition of each token.
          layout: Places, segments and visibility of these tokens; entities must not see each other.
        """
        time, condition = self.time(times), self.condition(hidden)
        both = layers.per_segment(jnp.add, condition, (time,), layout.sizes)
        y, _ = self.blocks(
            self.embed(x),
            (time, both, hidden) if self.cross else both,
            Pass(
                sizes=layout.sizes if self.cross else (1,) * x.shape[1],
                rope=rotary_at(self.plan.positions, self.head, layout.place),
                sees=layout.sees,
                compute=self.compute,
            ),
        )
        shift, scale = jnp.moveaxis(self.modulation(both), 2, 0)
        return self.predict(layers.modulate(layers.rms_norm(y), scale, shift))

    def noise(self, key: Array, tokens: Float[Array, "b n c"], plan: Plan) -> FlowNoise:
        """Returns a time for each entity and noise for each token."""
        return self.flow.noise(key, tokens, plan)

    def loss(
        self,
        hidden: Float[Array, "b n d"],
        tokens: Float[Array, "b n c"],
        noise: FlowNoise,
        plan: Plan,
    ) -> Float[Array, "b n"]:
        """Returns the squared error of every token, so weighted that its mean is (1)."""
        noised, target = self.flow.prepare(tokens, noise, plan)
        inside = Visibility(same, (plan.entity,), (plan.entity,))
        layout = Layout(np.arange(plan.tokens), plan.sizes, inside)
        velocity = self(noised, noise.times, hidden, layout)
        error = jnp.mean(jnp.square(velocity - target), -1)
        return error * (plan.tokens / plan.sizes[-1])

    def draw(self, hidden: Float[Array, "b2 m d"], turn: Turn) -> Float[Array, "b m c"]:
        """Returns the tokens of one entity, in the dtype of the solver's state.

        Tokens that are entities of their own may be drawn together.

        Outside the interval of guidance the unconditional half is not computed. The release goes
        on with it there, from noise of its own; nothing of it reaches the other half.
        """
        batch = len(hidden) // (1 if turn.guide is None else turn.guide.branches)
        layout = self._drawn_together(turn.place, hidden.shape[1])

        def predict(x, t, hidden):
            times = jnp.broadcast_to(t.astype(jnp.float32), (len(hidden), len(layout.sizes)))
            return self(x.astype(jnp.float32), times, hidden, layout).astype(x.dtype)

        def velocity(x, t):
            def both():
                assert turn.guide is not None
                return predict(turn.guide.repeated(x), t, hidden)

            return guided(turn.guide, t, both, lambda: predict(x, t, hidden[:batch]))

        shape = (hidden.shape[1], self.channels)
        return solve(velocity, shape, turn.settings, self.flow.path, turn.draws, turn.known)

    def _drawn_together(self, place: Any, size: int) -> Layout:
        """Returns the layout of one entity at these places, or of tokens that each are one."""
        if max(self.plan.sizes) > 1:
            return Layout(place, (size,), None)
        # A token that sees itself alone does so anywhere: places may differ among the examples.
        place = np.arange(size)
        return Layout(place, (1,) * size, Visibility(same, (place,), (place,)))


class CrossBlock(Module):
    """Attention modulated by time, attention to the conditions, MLP modulated by both.

    Source: wangqiang9/FlowAR models/flowmodel.py `Block_v2`.
    """

    def __init__(self, width: int, hidden: int, heads: int, inner: int, *, key: Array):
        """Makes a block with an MLP of inner width `inner` for conditions of width `hidden`."""
        keys = jax.random.split(key, 5)
        self.attention = Attention(width, heads, bias=False, key=keys[0])
        self.cross = CrossAttention(width, hidden, heads, key=keys[1])
        self.cross_norm = layers.RMSNorm(width)
        self.context_norm = layers.RMSNorm(hidden)
        self.mlp = layers.GatedMLP(width, inner, key=keys[2])
        self.time_modulation = layers.Adaptive(width, (3, width), key=keys[3])
        self.modulation = layers.Adaptive(width, (3, width), key=keys[4])

    def __call__(
        self,
        x: Float[Array, "b n d"],
        condition: tuple[Array, Array, Array],
        shared: Pass,
        *,
        cache: None = None,
        path_rate: Array | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "b n d"], None]:
        """Returns the tokens, float32, and no cache.

        Args:
          x: Tokens.
          condition: Time (b, g, d) of each segment; time + condition (b, n, d) and the hidden
            vectors (b, n, d2) of each token.
          shared: What all layers share.
          cache: There is none.
          path_rate: Not used: this block has no dropout.
          key: Not used.
        """
        sizes, dtype, way = shared.sizes, shared.compute.type, shared.compute.attention
        time, both, hidden = condition
        gate_1, scale_1, shift_1 = jnp.moveaxis(self.time_modulation(time, dtype), 2, 0)
        gate_2, scale_2, shift_2 = jnp.moveaxis(self.modulation(both, dtype), 2, 0)
        y = layers.per_segment(layers.modulate, layers.rms_norm(x), (scale_1, shift_1), sizes)
        y, _ = self.attention(y.astype(dtype), shared)
        x = x + layers.per_segment(jnp.multiply, y, (gate_1,), sizes)
        context = self.context_norm(hidden).astype(dtype)
        y = self.cross_norm(x).astype(dtype)
        rope = shared.rope
        x = x + self.cross(y, context, rope=rope, memory_rope=rope, sees=shared.sees, way=way)
        y = layers.modulate(layers.rms_norm(x), scale_2, shift_2).astype(dtype)
        return x + gate_2 * self.mlp(y), None
