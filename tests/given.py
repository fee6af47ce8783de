"""Sampling with given numbers instead of drawn ones, for comparisons."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jaxar.core.random import Draws
from jaxar.nn.module import bind
from jaxar.schemes.base import request_for


@dataclasses.dataclass(frozen=True)
class Given(Draws):
    """Stands in for `Draws`: normal numbers come from normal_of(entity, number, shape).

    Attributes:
      normal_of: Source of the normal numbers, (b, *shape).
      order: (b, n) permutation, where one is asked for.
      gumbel_of: Source of Gumbel numbers; zeros make sampling greedy.
      entity: Whose draws these are.
      batch: Number of examples.
    """

    keys: Any = None
    normal_of: Callable[[Any, Any, tuple[int, ...]], Any] | None = None
    order: Any = None
    gumbel_of: Callable[[Any, Any, tuple[int, ...]], Any] | None = None
    entity: Any = None
    batch: int = 0

    @property
    def examples(self):
        return self.batch

    def at(self, entity):
        return dataclasses.replace(self, entity=entity)

    def normal(self, number, shape):
        return self.normal_of(self.entity, number, shape)

    def gumbel(self, number, shape):
        return self.gumbel_of(self.entity, number, shape)

    def permutation(self, count):
        return self.order


def sample_given(system, params, labels, guidance, settings, draws):
    """Returns the tokens that a system samples with given numbers."""

    draws = dataclasses.replace(draws, batch=len(labels))

    def run(params, labels, guidance):
        return system.sample_tokens(
            params, request_for(system.condition, labels, guidance, draws, settings)
        )

    return jax.jit(run)(params, labels, guidance)


def loss_given(system, params, tokens, condition, noise, key=None):
    """Returns the loss of tokens for given randomness; dropout only where a key is given."""
    return system.scheme.loss(bind(system.network, params), tokens, condition, noise, key)
