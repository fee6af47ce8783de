"""The least operations that one image needs, from the sizes of a config alone.

Counted are matrix products, a multiply and an add as 2: linear maps for the tokens that pass
through them, attention between tokens that see each other, and what depends on a time or a class
alone once for each distinct one. A backward pass costs two forward passes, but one for the maps
that see data or times, of which no gradient is asked. Not counted: norms, rotary embeddings,
dropout, softmax, convolutions of a quantizer.

    training   3 (n linear + 4 d l pairs + conditions modulation) - first maps               (1)
    sampling   sum over evaluations of rows (size linear + 4 d l size (offset + size))
               + conditions modulation                                                       (2)

n tokens, d width, l layers; an entity of `size` tokens begins at `offset`; pairs = sum of size
(offset + size). There are two rows where guidance differs from 1, and one elsewhere. A finished
entity of xAR is encoded anew for the cache once, beside the next one's first evaluation: that adds
its tokens, but nothing for an entity after which none comes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxar import assembly
from jaxar.core.plan import Plan, unmasking
from jaxar.flow.guidance import share_of
from jaxar.tree import paths

TWICE = ("heun", "midpoint")
"""Solvers that evaluate the velocity twice a step."""


def least(config: Any, what: str) -> float | None:
    """Returns the least operations of one image: of a training step, or of its sampling.

    Args:
      config: The whole config.
      what: "train" or "sample".

    Returns:
      None for a system that is no transformer over entities: an autoencoder.
    """
    if config.system != "next_x":
        return None
    system = assembly.build_system(config)
    counted = {"noisy": _xar, "clean": _xar, "shifted": _shifted, "masked": _masked}
    settings = assembly.build_settings(config)
    return counted[config.context.name](config, system, _Kernels(system), settings, what)


class _Kernels:
    """Operations of the linear maps of a system for one token, by their paths."""

    def __init__(self, system: Any):
        shapes = jax.eval_shape(system.init, jax.random.key(0))
        self._sizes = {
            tuple(path.split("/")): leaf.size
            for path, leaf in paths(shapes).items()
            if path.endswith("/kernel")
        }

    def of(self, *prefixes: str, only: Sequence[str] = (), but: Sequence[str] = ()) -> float:
        """Returns the operations of the maps under some prefixes.

        Args:
          *prefixes: First words of their paths; none for all.
          only: Words of which a path has one.
          but: Words of which a path has none.
        """
        return 2.0 * sum(
            size
            for words, size in self._sizes.items()
            if (not prefixes or words[0] in prefixes)
            and (not only or set(words) & set(only))
            and not set(words) & set(but)
        )


CONDITIONS = ("modulation", "head_modulation", "time", "time_modulation")
"""Maps that see times and classes, in backbones."""

EMBED, TIME = ("embed",), ("first",)
"""The first maps of tokens and of times."""


def pairs(plan: Plan) -> int:
    """Returns how many pairs of tokens see each other: a token sees its entity and all before."""
    return sum(size * (offset + size) for size, offset in _places(plan))


def _places(plan: Plan) -> list[tuple[int, int]]:
    return list(zip(plan.sizes, plan.offsets[:-1], strict=True))


def _xar(config: Any, system: Any, kernels: _Kernels, settings: Any, what: str) -> float:
    plan, model = system.plan, config.model
    token, condition = kernels.of(but=CONDITIONS), kernels.of(only=CONDITIONS)
    attention = 4.0 * model.width * sum(model.depth)
    if what == "train":
        streams = 2 if config.context.name == "clean" else 1
        conditions = plan.entities + streams - 1
        forward = streams * (plan.tokens * token + pairs(plan) * attention)
        first = streams * plan.tokens * kernels.of(only=EMBED) + conditions * kernels.of(only=TIME)
        return 3 * (forward + conditions * condition) - first
    times, total = _times(settings.draw), 0.0
    for number, (size, offset) in enumerate(_places(plan)):
        one = size * token + size * (offset + size) * attention
        rows = _rows(settings, share_of(number, plan.entities))
        again = (2 if settings.guided else 1) * (number < plan.entities - 1)
        total += one * (sum(map(rows, times)) + again)
    return total + _kinds(settings) * (len(times) + 1) * condition


def _shifted(config: Any, system: Any, kernels: _Kernels, settings: Any, what: str) -> float:
    plan, model = system.plan, config.model
    depth = model.depth if isinstance(model.depth, int) else sum(model.depth)
    attention = 4.0 * model.width * depth
    body = plan.tokens * kernels.of("backbone", but=CONDITIONS) + pairs(plan) * attention
    body += kernels.of("backbone", only=CONDITIONS)
    head = _flow_head if config.head.name == "flow_network" else _plain_head
    if what == "train":
        first = plan.tokens * kernels.of(only=EMBED) + plan.entities * kernels.of(only=TIME)
        return 3 * (body + head(config, plan, kernels, None)) - first
    return _kinds(settings) * body + head(config, plan, kernels, settings)


def _plain_head(config: Any, plan: Plan, kernels: _Kernels, settings: Any) -> float:
    """Returns the operations of a head that reads each hidden vector once, forward."""
    rows = [
        1 if settings is None else _rows(settings, share_of(number, plan.entities))(0.0)
        for number in range(plan.entities)
    ]
    return kernels.of("head") * float(np.dot(rows, plan.sizes))


def _flow_head(config: Any, plan: Plan, kernels: _Kernels, settings: Any) -> float:
    """Returns the operations of FlowAR's flow network, forward.

    What is made of the hidden vectors alone is made once for each token, not in each evaluation.
    """
    fixed, timed = ("condition", "kv"), ("time", "time_modulation")
    once, by_time = kernels.of("head", only=fixed), kernels.of("head", only=timed)
    token = kernels.of("head", but=(*fixed, *timed))
    attention = 4.0 * config.head.width * config.head.depth * (2 if config.head.cross else 1)
    times = (0.0,) if settings is None else _times(settings.draw)
    total = 0.0
    for number, size in enumerate(plan.sizes):
        share = share_of(number, plan.entities)
        rows = (lambda t: 1) if settings is None else _rows(settings, share)
        total += sum(map(rows, times)) * (size * token + size * size * attention)
        total += max(map(rows, times)) * size * once
    return total + (plan.entities if settings is None else len(times)) * by_time


def _masked(config: Any, system: Any, kernels: _Kernels, settings: Any, what: str) -> float:
    plan, model, context = system.plan, config.model, system.context
    n, buffer, (first, second) = plan.tokens, model.buffer, model.depth
    parts = ("embed", "encoder", "between", "decoder")
    embed, encoder, between, decoder = (kernels.of("backbone", only=(part,)) for part in parts)
    time, once = (kernels.of("head", only=(part,)) for part in ("time", "condition"))
    draw = kernels.of("head", but=("time", "condition"))

    def backbone(kept: float) -> float:
        seen, all_, pair = buffer + kept, buffer + n, 4.0 * model.width
        maps = kept * embed + seen * (encoder + between) + all_ * decoder
        return maps + pair * (seen * seen * first + all_ * all_ * second)

    if what == "train":
        masked, uses = n * masked_share(context.lowest, context.deviation), config.head.repeats
        forward = backbone(n - masked) + masked * (uses * (draw + time) + once)
        given = kernels.of("head", only=(*EMBED, *TIME))
        return 3 * forward - (n - masked) * embed - masked * uses * given
    sizes = np.asarray(unmasking(n, settings.iterations or n))
    starts = np.cumsum(sizes) - sizes
    rows, steps = _kinds(settings), settings.draw.steps
    walk = rows * float(sum(map(backbone, starts)))
    return walk + rows * n * (steps * draw + once) + steps * time


def masked_share(lowest: float, deviation: float) -> float:
    """Returns the mean of N(1, deviation^2) between `lowest` and 1: the share of masked tokens."""
    z = (lowest - 1) / deviation
    density = (math.exp(-z * z / 2) - 1) / math.sqrt(2 * math.pi)
    return 1 + deviation * density / (0.5 - (1 + math.erf(z / math.sqrt(2))) / 2)


def _kinds(settings: Any) -> int:
    """Returns how many conditions an image has: its class, and "no class" where it is guided."""
    return 2 if settings.guided else 1


def _times(solving: Any) -> tuple[float, ...]:
    """Returns the time of every evaluation that one entity takes."""
    turns = 2 if solving.solver in TWICE else 1
    return tuple(float(t) for t in np.repeat(solving.grid[:-1], turns))


def _rows(settings: Any, share: float) -> Callable[[float], int]:
    """Returns the function from a time to the rows of an evaluation at a share of the walk."""
    rule = settings.guidance
    acts = settings.guided and rule.acts_on(share)
    return lambda t: 2 if acts and rule.low <= t <= rule.high else 1
