"""The head of MAR: a small network draws each token by itself, by diffusion.

    loss = diffusion loss of (token, t, e),    x_t -> (noise, variance) = net(x_t, t, h)

h is the hidden vector that the backbone gives for the token. Every hidden vector is used several
times with other steps and noise, which costs little beside the backbone.
Source: arXiv 2406.11838, section 3.1; LTH14/mar models/diffloss.py.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxar.core.plan import Plan
from jaxar.flow.diffusion import Diffusion
from jaxar.flow.guidance import guided
from jaxar.heads.base import Turn
from jaxar.nn import layers
from jaxar.nn.compute import PLAIN, Compute
from jaxar.nn.module import Module, scan, stack
from jaxar.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class Denoising:
    """How tokens are drawn. Static under `jax.jit`.

    Attributes:
      steps: Steps of the diffusion, spread over those of training.
      temperature: Factor on the noise of the steps.
      clip: Bound on the data that each step implies, as where pixels are the data; 0 for none, as
        for the latents of the release. At the noisiest steps an error of the noise is an error of
        the data many thousand times as large, which small networks do not recover from.
    """

    steps: int = 100
    temperature: float = 1.0
    clip: float = 0.0

    def __post_init__(self):
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"The number of diffusion steps must be 1 or more: {self.steps!r}.")
        if not (self.temperature >= 0 and self.clip >= 0):
            raise ValueError(
                f"temperature and clip must be at least 0, not {self.temperature}, {self.clip}."
            )


class DiffusionNoise(NamedTuple):
    """Randomness of the loss: steps (r, b, n) and noise (r, b, n, c) for r uses of each token."""

    steps: Array
    noise: Array


class DiffusionHead(Module):
    """Noise and variance of a token, given the noised token, its step and a condition."""

    def __init__(
        self,
        plan: Plan,
        hidden: int,
        channels: int,
        *,
        width: int,
        depth: int,
        steps: int = 1000,
        repeats: int = 4,
        compute: Compute = PLAIN,
        key: Array,
    ):
        """Makes the network; modulation and output start at zero.

        Args:
          plan: Entities; they do not matter to tokens that are drawn each by itself.
          hidden: Width of the backbone's hidden vectors.
          channels: Numbers in a token.
          width: Of the network.
          depth: Residual blocks.
          steps: Steps of the diffusion in training.
          repeats: Uses of each token in a loss.
          compute: How blocks compute.
          key: Randomness of the initial values.
        """
        keys = jax.random.split(key, 6)
        self.channels, self.repeats, self.diffusion = channels, repeats, Diffusion(steps)
        self.compute = compute
        self.embed = layers.Linear(channels, width, key=keys[0])
        self.time = layers.TimeEmbedding(
            width, scale=1.0, truncate=False, key=keys[1], init=layers.normal(0.02)
        )
        self.condition = layers.Linear(hidden, width, key=keys[2])
        self.blocks = stack(lambda key: ResidualBlock(width, key=key), depth, keys[3])
        self.modulation = layers.Adaptive(width, (2, width), key=keys[4], init=layers.zeros)
        self.predict = layers.Linear(width, 2 * channels, key=keys[5], init=layers.zeros)

    def __call__(
        self, x: Float[Array, "... c"], steps: Array, hidden: Float[Array, "... d"]
    ) -> Float[Array, "... c2"]:
        """Returns predicted noise, then variances, for steps of training that broadcast."""
        condition = self.time(steps.astype(jnp.float32)) + self.condition(hidden)
        how = self.compute

        def body(y, block):
            return block(y, condition, how.type), None

        y, _ = scan(body, self.embed(x), self.blocks, remat=how.remat, unroll=how.unroll)
        shift, scale = jnp.moveaxis(self.modulation(condition), -2, 0)
        return self.predict(layers.modulate(layers.layer_norm(y), scale, shift))

    def noise(self, key: Array, tokens: Float[Array, "b n c"], plan: Plan) -> DiffusionNoise:
        """Returns steps and noise for each use of each token."""
        step_key, noise_key = jax.random.split(key)
        shape = (self.repeats, *tokens.shape)
        steps = jax.random.randint(step_key, shape[:-1], 0, self.diffusion.steps)
        return DiffusionNoise(steps, jax.random.normal(noise_key, shape))

    def loss(
        self,
        hidden: Float[Array, "b n d"],
        tokens: Float[Array, "b n c"],
        noise: DiffusionNoise,
        plan: Plan,
    ) -> Float[Array, "b n"]:
        """Returns the diffusion loss of every token, a mean over its uses."""
        x = jnp.broadcast_to(tokens, noise.noise.shape)
        x_t = self.diffusion.noised(x, noise.steps, noise.noise)
        output = self(x_t, noise.steps, hidden)
        return jnp.mean(self.diffusion.loss(output, x, x_t, noise.steps, noise.noise), 0)

    def draw(self, hidden: Float[Array, "b2 m d"], turn: Turn) -> Float[Array, "b m c"]:
        """Returns the tokens; guidance acts on the noise, variances are the conditional ones."""
        guide = turn.guide
        batch = len(hidden) // (1 if guide is None else guide.branches)
        shape = (hidden.shape[1], self.channels)

        def network(x, step):
            def both() -> Any:
                assert guide is not None
                noise, variance = jnp.split(self(guide.repeated(x), step, hidden), 2, -1)
                return jnp.concatenate([noise, guide.repeated(variance[:batch])], -1)

            share = step / self.diffusion.steps
            return guided(guide, share, both, lambda: self(x, step, hidden[:batch]))

        chain = self.diffusion.respaced(turn.settings.steps)
        tokens = chain.sample(
            network,
            lambda i: turn.draws.normal(i, shape),
            turn.settings.temperature,
            turn.settings.clip,
        )
        return tokens if turn.known is None else turn.known.keep(tokens)


class ResidualBlock(Module):
    """x + gate MLP(norm(x) (1 + scale) + shift), the MLP as wide as the tokens."""

    def __init__(self, width: int, *, key: Array):
        """Makes a block whose gate starts at zero."""
        mlp, modulation = jax.random.split(key)
        self.norm = layers.LayerNorm(width)
        self.mlp = layers.MLP(width, width, activation=jax.nn.silu, key=mlp)
        self.modulation = layers.Adaptive(width, (3, width), key=modulation, init=layers.zeros)

    def __call__(
        self, x: Float[Array, "... d"], condition: Float[Array, "... d"], dtype: Any = jnp.float32
    ) -> Float[Array, "... d"]:
        """Returns tokens, float32; every one has its own condition, and `dtype` is that inside."""
        shift, scale, gate = jnp.moveaxis(self.modulation(condition, dtype), -2, 0)
        y = layers.modulate(self.norm(x), scale, shift)
        return x + gate * self.mlp(y.astype(dtype))
