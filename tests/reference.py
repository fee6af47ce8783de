"""xAR and its training written out plainly in float64 NumPy-style JAX, from the equations.

Nothing of the library is used: loops over layers and entities, no scan, no cache, no optax. It is
what the library is compared with, step for step.
"""

import jax
import jax.numpy as jnp
import numpy as np


def norm(x):
    return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)


def linear(p, x, axes=1):
    return jnp.tensordot(x, p["kernel"], axes) + p["bias"]


def rotate(x, positions):
    """Turns pairs of x (b, n, k, e): the first half of e by the row, the second by the column."""
    half = x.shape[-1] // 2
    parts = []
    for axis in range(2):
        part = x[..., axis * half : (axis + 1) * half]
        frequency = 1e4 ** (-np.arange(0, half, 2) / half)
        angle = (positions[:, axis : axis + 1] * frequency)[None, :, None]
        even, odd = part[..., 0::2], part[..., 1::2]
        turned = jnp.stack(
            [
                even * jnp.cos(angle) - odd * jnp.sin(angle),
                odd * jnp.cos(angle) + even * jnp.sin(angle),
            ],
            -1,
        )
        parts.append(turned.reshape(part.shape))
    return jnp.concatenate(parts, -1)


def block(p, x, condition, entity, positions):
    vectors = linear(p["modulation"], condition * jax.nn.sigmoid(condition))[:, entity]
    gate1, gate2, scale1, scale2, shift1, shift2 = (vectors[:, :, i] for i in range(6))
    y = norm(x) * (1 + scale1) + shift1
    qkv = linear(p["attention"]["qkv"], y)
    q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    q, k = rotate(q, positions), rotate(k, positions)
    logits = jnp.einsum("bnke,bmke->bknm", q, k) / np.sqrt(q.shape[-1])
    logits = jnp.where(entity[:, None] >= entity[None], logits, -1e30)
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    y = jnp.einsum("bknm,bmke->bnke", weights, v)
    x = x + gate1 * linear(p["attention"]["out"], y, 2)
    y = norm(x) * (1 + scale2) + shift2
    gate = linear(p["mlp"]["gate"], y)
    gelu = gate * (1 + jax.scipy.special.erf(gate / np.sqrt(2))) / 2
    return x + gate2 * linear(p["mlp"]["down"], gelu * linear(p["mlp"]["up"], y))


def velocity(p, x, times, labels, entity, positions):
    t = jnp.floor(times * 1000)
    frequency = np.exp(-np.log(1e4) * np.arange(128) / 128)
    angle = t[..., None] * frequency
    h = linear(p["time"]["first"], jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1))
    time = linear(p["time"]["second"], h * jax.nn.sigmoid(h))
    condition = p["classes"]["table"][labels][:, None] + time
    x = linear(p["embed"], x) + p["encoder_positions"]["table"]
    x = norm(x) * p["embed_norm"]["scale"]
    for i in range(p["encoder"]["blocks"]["modulation"]["bias"].shape[0]):
        layer = jax.tree.map(lambda a, i=i: a[i], p["encoder"]["blocks"])
        x = block(layer, x, condition, entity, positions)
    x = norm(x) * p["encoder_norm"]["scale"]
    x = linear(p["between"], x) + p["decoder_positions"]["table"]
    for i in range(p["decoder"]["blocks"]["modulation"]["bias"].shape[0]):
        layer = jax.tree.map(lambda a, i=i: a[i], p["decoder"]["blocks"])
        x = block(layer, x, condition, entity, positions)
    return linear(p["predict"], norm(x) * p["decoder_norm"]["scale"])


def loss(p, x, times, noise, labels, entity, positions):
    """Noisy context learning: every entity noised by its own time; predict e - x."""
    t = times[:, entity, None]
    predicted = velocity(p, (1 - t) * x + t * noise, times, labels, entity, positions)
    return jnp.mean((predicted - (noise - x)) ** 2)


class AdamW:
    """Clipping by the global norm, then AdamW without decay on biases and norm scales."""

    def __init__(self, params, beta1, beta2, decay, clip):
        self.m = jax.tree.map(jnp.zeros_like, params)
        self.v = jax.tree.map(jnp.zeros_like, params)
        self.beta1, self.beta2, self.decay, self.clip, self.t = beta1, beta2, decay, clip, 0

    def step(self, params, gradients, rate):
        self.t += 1
        size = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(gradients)))
        gradients = jax.tree.map(lambda g: g * jnp.minimum(1, self.clip / size), gradients)
        self.m = jax.tree.map(lambda m, g: self.beta1 * m + (1 - self.beta1) * g, self.m, gradients)
        self.v = jax.tree.map(
            lambda v, g: self.beta2 * v + (1 - self.beta2) * g**2, self.v, gradients
        )

        def move(path, p, m, v):
            m_hat, v_hat = m / (1 - self.beta1**self.t), v / (1 - self.beta2**self.t)
            decay = 0 if path[-1].key in ("bias", "scale") else self.decay
            return p - rate * (m_hat / (jnp.sqrt(v_hat) + 1e-8) + decay * p)

        return jax.tree_util.tree_map_with_path(move, params, self.m, self.v)
