"""Dropout of values and of residual branches, by random words that cost little.

Threefry takes about a hundred operations for each value, which shows in the time of a step.
Dropout needs less: the word of a place is a hash of the place and of the key, a dozen operations.
It is the same on every device and however an array is shared out, and needs no communication.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.typing import Array


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Returns x with each value zeroed with probability `rate`, the rest scaled up; x if no key.

    The probability is `rate` to within 2^-32.
    """
    if key is None or rate == 0:
        return x
    return jnp.where(stays(words(key, x.shape), rate), x / (1 - rate), jnp.zeros_like(x))


def drop_path(x: Array, rate: Array | None, key: Array | None) -> Array:
    """Returns x with whole examples zeroed with probability `rate`, the rest scaled up.

    x where there is no key, or no rate. Source: stochastic depth, arXiv 1603.09382, as in timm.
    """
    if key is None or rate is None:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, (len(x), *(1,) * (x.ndim - 1)))
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x)).astype(x.dtype)


def words(key: Array, shape: tuple[int, ...]) -> Array:
    """Returns 32 random bits for each place of an array, uint32; places beyond 2^32 repeat."""
    return hashed(_places(shape), *key_words(key))


def stays(words: Array, rate: float) -> Array:
    """Returns where a value does not fall away, given its random word.

    Words are compared with their sign, which is random, too: TPUs have no other comparison.
    """
    return jax.lax.bitcast_convert_type(words, jnp.int32) >= np.int32(round(rate * 2**32) - 2**31)


def key_words(key: Array) -> Array:
    """Returns the two words of a key that `hashed` takes, uint32."""
    return jax.random.key_data(key).reshape(-1)[-2:]


def hashed(places: Array, first: Array, second: Array) -> Array:
    """Returns random bits for each place, uint32, given two words of a key.

    One word of the key enters before and one between the rounds of the hash. Source: the constants
    are those of lowbias32, Chris Wellons, "Prospecting for Hash Functions", 2018.
    """
    x = places ^ first
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) + second
    x = (x ^ (x >> 16)) * np.uint32(0x846CA68B)
    return (x ^ (x >> 15)) * np.uint32(0x846CA68B)


def _places(shape: tuple[int, ...]) -> Array:
    """Returns the number of each place in row-major order, modulo 2^32."""
    places = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :]) % 2**32
        places += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride)
    return places
