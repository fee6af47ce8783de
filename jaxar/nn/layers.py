"""Linear maps, norms, embeddings, MLPs and adaptive modulation.

Parameters are float32. Every layer computes in the dtype of its input, norms in float32.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jaxar.nn.dropout import dropout
from jaxar.nn.module import PROJECTED, RETURNED, Module, Param
from jaxar.parallel import axes
from jaxar.parallel.axes import hold
from jaxar.typing import Array, Float

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
"""Compute dtypes by their names in configs."""

LANES = 128
"""Lanes of a TPU vector register."""

Shape = int | tuple[int, ...]
Initial = Callable[[Array, int, int], Array]
"""init(key, inputs, outputs) -> (inputs, outputs): an initializer of kernels."""


def xavier_uniform(key: Array, inputs: int, outputs: int) -> Array:
    """Returns an (inputs, outputs) matrix, uniform within sqrt(6 / (inputs + outputs))."""
    bound = math.sqrt(6 / (inputs + outputs))
    return jax.random.uniform(key, (inputs, outputs), minval=-bound, maxval=bound)


def normal(std: float) -> Initial:
    """Returns the initializer N(0, std^2)."""
    return lambda key, inputs, outputs: std * jax.random.normal(key, (inputs, outputs))


def zeros(key: Array, inputs: int, outputs: int) -> Array:
    """Returns an (inputs, outputs) matrix of zeros."""
    return jnp.zeros((inputs, outputs))


class Linear(Module):
    """A linear map from the last axes of its input to new ones: y = x kernel + bias.

    `inputs` and `outputs` are one size or several. Heads, for instance, are then an axis of the
    kernel that can be sharded. The initializer gets the flattened sizes.
    """

    def __init__(
        self,
        inputs: Shape,
        outputs: Shape,
        *,
        bias: bool | tuple[bool, ...] = True,
        key: Array,
        init: Initial = xavier_uniform,
    ):
        """Initializes the kernel by `init(key, inputs, outputs)`, the bias to zero.

        `bias` says whether there is one, for all outputs or for each entry of the first output
        axis: for queries, keys and values, for instance, if keys have none.
        """
        self.inputs, self.outputs = _axes(inputs), _axes(outputs)
        kernel = init(key, math.prod(self.inputs), math.prod(self.outputs))
        self.kernel = Param(kernel.reshape(self.inputs + self.outputs))
        self.biased = bias if isinstance(bias, tuple) else (bias,) * self.outputs[0]
        if any(self.biased):
            self.bias = Param(jnp.zeros((sum(self.biased), *self.outputs[1:])))

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns (..., *outputs) for x of shape (..., *inputs)."""
        bias = None
        if any(self.biased):
            bias = self.bias[...]
            if not all(self.biased):
                bias = jnp.zeros(self.outputs).at[np.flatnonzero(self.biased)].set(bias)
        return self._affine(x, self.kernel[...], bias)

    def parts(self, x: Float[Array, "..."]) -> list[Array]:
        """Returns the output for each entry of the first output axis, each by its own product.

        This slices the kernel, which is cheap, instead of the activations.
        """
        axis, found = len(self.inputs), []
        for i in range(self.outputs[0]):
            kernel = jax.lax.index_in_dim(self.kernel[...], i, axis, keepdims=False)
            bias = self.bias[sum(self.biased[:i])] if self.biased[i] else None
            found.append(self._affine(x, kernel, bias))
        return found

    def widened(self, x: Float[Array, "..."], outputs: int) -> Float[Array, "..."]:
        """Returns (..., outputs), the map's outputs padded with zeros; x may be padded, too."""
        kernel, bias = self.kernel[...].astype(x.dtype), self.bias[...]
        rows, columns = (0, x.shape[-1] - kernel.shape[0]), (0, outputs - kernel.shape[1])
        return self._affine(x, jnp.pad(kernel, (rows, columns)), jnp.pad(bias, columns))

    def _affine(self, x: Array, kernel: Array, bias: Array | None) -> Array:
        """Returns x kernel + bias.

        For kernels with a head axis the compiler makes one product per head. Heads of width 64
        leave a TPU's 128 x 128 matrix unit half empty, so these kernels are flattened. On CPUs the
        rows are flattened too: a gradient over several row axes is slow, as it transposes them.
        """
        inner, outputs = len(self.inputs), kernel.shape[len(self.inputs) :]
        rows, flat = x.shape[: x.ndim - inner], math.prod(outputs)
        kernel = kernel.astype(x.dtype)
        if kernel.ndim > 2:
            kernel = kernel.reshape(math.prod(self.inputs), flat)
            if self.inputs[-1] % LANES or outputs[-1] % LANES:
                kernel = jax.lax.optimization_barrier(kernel)
        merged = (-1,) if axes.platform() == "cpu" else rows
        y = x.reshape(*merged, len(kernel)) @ kernel
        if bias is not None:
            y = y + bias.astype(x.dtype).reshape(flat)
        return checkpoint_name(y, PROJECTED).reshape(*rows, *outputs)


class Table(Module):
    """Learned embeddings, for instance of classes or positions, initialized from N(0, std^2)."""

    def __init__(self, size: int, width: int, *, key: Array, std: float = 0.02):
        """Initializes `size` vectors of `width` channels."""
        self.table = Param(std * jax.random.normal(key, (size, width)))

    def __call__(self, index: Array | np.ndarray) -> Float[Array, "..."]:
        """Returns the vectors at `index`; the caller checks that it is in range."""
        return self.table[...][index]


def rms_norm(x: Float[Array, "..."], epsilon: float = 1e-6) -> Float[Array, "..."]:
    """Returns x / sqrt(mean(x^2) + epsilon) over the last axis, computed in float32."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + epsilon)
    return y.astype(x.dtype)


class RMSNorm(Module):
    """RMS norm with a learned scale; `rms_norm` is the function without one."""

    def __init__(self, width: int):
        """Starts the scale at one."""
        self.scale = Param(jnp.ones(width))

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Returns the normalised input times the scale."""
        return rms_norm(x) * self.scale[...].astype(x.dtype)


def layer_norm(x: Float[Array, "..."], epsilon: float = 1e-6) -> Float[Array, "..."]:
    """Returns (x - mean) / sqrt(variance + epsilon) over the last axis, computed in float32."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, -1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + epsilon)
    return y.astype(x.dtype)


class LayerNorm(Module):
    """Layer norm with a learned scale and bias; `layer_norm` is the function without them."""

    def __init__(self, width: int):
        """Starts the scale at one, the bias at zero."""
        self.scale = Param(jnp.ones(width))
        self.bias = Param(jnp.zeros(width))

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Returns the normalised input times the scale, plus the bias."""
        return layer_norm(x) * self.scale[...].astype(x.dtype) + self.bias[...].astype(x.dtype)


def gelu(x: Array) -> Array:
    """Returns x Phi(x), with Phi the normal CDF, computed in float32.

    float32 uses erf, as PyTorch does. Half precision uses `_normal_cdf`, whose error, 2e-6, is
    below rounding. erf takes three times as many operations; erfc, as in `jax.nn.gelu`, takes six.
    """
    y = x.astype(jnp.float32)
    if x.dtype == jnp.float32:
        return 0.5 * y * (1 + jax.lax.erf(y * math.sqrt(0.5)))
    return (y * _normal_cdf(y)).astype(x.dtype)


@jax.custom_jvp
def _normal_cdf(x: Array) -> Array:
    """Returns the approximation Phi(x) = (1 + tanh(x p(x^2))) / 2; its derivative is exact.

    The coefficients minimise the maximum error of x Phi(x), 3.1e-6 over all x.
    """
    u = jnp.square(x)
    p = 1.11910097e-6 * u - 3.05813193e-5
    p = (p * u - 1.24860131e-4) * u + 3.64687888e-2
    return 0.5 * (1 + jnp.tanh(x * (p * u + 0.797828136)))


@_normal_cdf.defjvp
def _normal_density(primals, tangents):
    (x,), (slope,) = primals, tangents
    density = math.sqrt(0.5 / math.pi) * jnp.exp(-0.5 * jnp.square(x))
    return _normal_cdf(x), density * slope


def gelu_tanh(x: Array) -> Array:
    """Returns the tanh approximation of GELU."""
    return jax.nn.gelu(x, approximate=True)


class MLP(Module):
    """A two-layer MLP: down(activation(up(x)))."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        activation: Callable[[Array], Array],
        key: Array,
        init: Initial = xavier_uniform,
        out_init: Initial = xavier_uniform,
    ):
        """Makes two maps of inner width `hidden`, with initializers `init` and `out_init`."""
        up, down = jax.random.split(key)
        self.activation = activation
        self.up = Linear(width, hidden, key=up, init=init)
        self.down = Linear(hidden, width, key=down, init=out_init)

    def __call__(
        self, x: Float[Array, "... d"], rate: float = 0.0, key: Array | None = None
    ) -> Float[Array, "... d"]:
        """Returns the MLP's output; with a key, dropout acts inside and after it."""
        inner, outer = split_or_none(key, 2)
        hidden = hold(self.activation(self.up(x)), ..., "mlp")
        hidden = dropout(hidden, rate, inner)
        return dropout(checkpoint_name(self.down(hidden), RETURNED), rate, outer)


class GatedMLP(Module):
    """A gated MLP: down(gelu(gate(x)) up(x)).

    The paper calls it SwiGLU; the released code passes GELU as the activation, as here. In half
    precision the inner units are zero-padded to a multiple of LANES, because a TPU must mask partly
    filled vectors in every operation except matrix products.
    Source: OliverRensu/xAR models/xar.py `Block`, timm `SwiGLU`.
    """

    def __init__(self, width: int, hidden: int, *, key: Array):
        """Makes three maps of inner width `hidden`."""
        gate, up, down = jax.random.split(key, 3)
        self.gate = Linear(width, hidden, key=gate)
        self.up = Linear(width, hidden, key=up)
        self.down = Linear(hidden, width, key=down)

    def __call__(
        self, x: Float[Array, "b n d"], rate: float = 0.0, key: Array | None = None
    ) -> Float[Array, "b n d"]:
        """Returns the MLP's output; with a key, dropout acts inside and after it."""
        inner, outer = split_or_none(key, 2)
        units = self.gate.outputs[0]
        if x.dtype != jnp.float32:
            units += -units % LANES
        hidden = gelu(self.gate.widened(x, units)) * self.up.widened(x, units)
        hidden = settled(dropout(hold(hidden, ..., "mlp"), rate, inner))
        y = self.down.widened(hidden, x.shape[-1])
        return dropout(checkpoint_name(y, RETURNED), rate, outer)


@jax.custom_jvp
def settled(x: Array) -> Array:
    """Returns x behind an optimization barrier, so that XLA does not recompute it in each product.

    Derivatives pass, forward and backward, without a barrier.
    """
    return jax.lax.optimization_barrier(x)


settled.defjvp(lambda primals, tangents: (settled(*primals), *tangents))


class TimeEmbedding(Module):
    """Embeds times by sinusoids of the scaled time and a two-layer MLP.

    Source: OliverRensu/xAR models/xar.py `TimestepEmbedder`, after DiT and GLIDE.
    """

    features = 256

    def __init__(
        self,
        width: int,
        *,
        scale: float,
        truncate: bool,
        key: Array,
        init: Initial = xavier_uniform,
    ):
        """Multiplies times by `scale`; `truncate` drops the fraction, as xAR's release does."""
        first, second = jax.random.split(key)
        self.scale, self.truncate = scale, truncate
        self.first = Linear(self.features, width, key=first, init=init)
        self.second = Linear(width, width, key=second, init=init)

    def __call__(self, t: Float[Array, "..."]) -> Float[Array, "... d"]:
        """Returns float32 vectors for times in [0, 1]."""
        t = t.astype(jnp.float32) * self.scale
        if self.truncate:
            t = jnp.trunc(t)
        return self.second(jax.nn.silu(self.first(sinusoids(t, self.features))))


def sinusoids(t: Float[Array, "..."], features: int, period: float = 1e4) -> Float[Array, "... f"]:
    """Returns cosines, then sines, of t at frequencies falling from 1 to nearly 1 / period."""
    half = features // 2
    frequency = jnp.exp(-math.log(period) * jnp.arange(half, dtype=jnp.float32) / half)
    angle = t[..., None] * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)


class Adaptive(Linear):
    """The modulation vectors of a block: a linear map of silu(condition).

    Source: adaLN of DiT, arXiv 2212.09748; `ada_lin` in VAR, FlowAR and xAR.
    """

    def __call__(
        self, condition: Float[Array, "..."], dtype: Any = jnp.float32
    ) -> Float[Array, "..."]:
        """Returns (..., *outputs), computed in `dtype`."""
        return super().__call__(jax.nn.silu(condition).astype(dtype))


def modulate(x: Array, scale: Array, shift: Array) -> Array:
    """Returns x (1 + scale) + shift."""
    return x * (1 + scale) + shift


def per_segment(
    function: Callable[..., Array],
    x: Float[Array, "b n d"],
    vectors: Sequence[Float[Array, "b g d"]],
    sizes: tuple[int, ...],
) -> Float[Array, "b n d"]:
    """Returns function(x, *vectors), where each token n gets the vectors of its segment g.

    Segments of equal size become an axis, so that vectors broadcast; only unequal segments repeat
    them for each token.
    """
    b, n, d = x.shape
    if len(set(sizes)) == 1:
        y = function(x.reshape(b, len(sizes), -1, d), *(v[:, :, None] for v in vectors))
        return y.reshape(b, n, d)
    repeats = np.asarray(sizes)
    return function(x, *(jnp.repeat(v, repeats, 1, total_repeat_length=n) for v in vectors))


def split_or_none(key: Array | None, count: int) -> Sequence[Array | None]:
    """Returns `count` keys, or a list of `count` times None if `key` is None."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def _axes(shape: Shape) -> tuple[int, ...]:
    return (shape,) if isinstance(shape, int) else tuple(shape)
