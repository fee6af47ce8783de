"""Dropout of values and of residual branches, with cheap random bits.

Threefry takes about a hundred operations per value, a measurable part of a step. Dropout needs
less: each row and column of an array gets a word, a hash of its index and the key, and the word of
an element mixes those of its row and column in eight operations. The words do not depend on the
device or the sharding, and need no communication.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.typing import Array


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Returns x with each value zeroed with probability `rate`, the rest scaled up; x without key.

    The probability is `rate` to within 2^-32.
    """
    if key is None or rate == 0:
        return x
    return jnp.where(stays(words(key, x.shape), rate), x / (1 - rate), jnp.zeros_like(x))


def drop_path(x: Array, rate: Array | None, key: Array | None) -> Array:
    """Returns x with whole examples zeroed with probability `rate`, the rest scaled up.

    It returns x without a key or a rate. Source: stochastic depth, arXiv 1603.09382, as in timm.
    """
    if key is None or rate is None:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, (len(x), *(1,) * (x.ndim - 1)))
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x)).astype(x.dtype)


def words(key: Array, shape: tuple[int, ...]) -> Array:
    """Returns 32 random bits for each element of an array, uint32; rows beyond 2^32 repeat."""
    first, second = key_words(key)
    *rows, columns = shape
    number = jnp.zeros((*rows, 1), jnp.uint32)
    for axis in range(len(rows)):
        stride = math.prod(rows[axis + 1 :]) % 2**32
        number += jax.lax.broadcasted_iota(jnp.uint32, number.shape, axis) * np.uint32(stride)
    of_columns = column_words(jnp.arange(columns, dtype=jnp.uint32), first, second)
    return mixed(row_words(number, first, second), of_columns)


def stays(words: Array, rate: float) -> Array:
    """Returns the keep mask, given the random words.

    Words are compared as signed integers: TPUs have no unsigned comparison.
    """
    return jax.lax.bitcast_convert_type(words, jnp.int32) >= np.int32(round(rate * 2**32) - 2**31)


def key_words(key: Array) -> Array:
    """Returns the two words of a key for `row_words` and `column_words`, uint32."""
    return jax.random.key_data(key).reshape(-1)[-2:]


def row_words(numbers: Array, first: Array, second: Array) -> Array:
    """Returns random bits for rows, by their row-major indices and two words of a key."""
    return _hashed(_hashed(numbers ^ first) + second)


def column_words(numbers: Array, first: Array, second: Array) -> Array:
    """Returns random bits for columns, by their indices and two words of a key."""
    return _hashed(_hashed(numbers + second) ^ first)


def mixed(row: Array, column: Array) -> Array:
    """Returns random bits for elements; the upper bits are the best.

    Fewer operations leave correlations between rows (`tests/test_nn.py` tests for them).
    """
    return _hashed(row + column)


def _hashed(x: Array) -> Array:
    """Returns the lowbias32 hash without its last shift.

    Source: Chris Wellons, "Prospecting for Hash Functions", 2018.
    """
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    return (x ^ (x >> 15)) * np.uint32(0x846CA68B)
