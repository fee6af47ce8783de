"""Own parts, as they stand in a user's package: tests name them "tests.own:Scaled"."""

import dataclasses
from typing import Annotated

from jaxar.heads.categorical import Categorical
from jaxar.heads.diffusion import DiffusionHead
from jaxar.heads.flow import Flow
from jaxar.signatures import Part


def everything(
    *,
    plan: Part,
    model: Part,
    flow: Flow,
    note=None,
    scales: tuple = ((1, 1), (2, 2)),
    words: tuple = ("a", "b"),
):
    """A system that takes fields of all types and keeps them."""
    return dict(plan=plan, model=model, flow=flow, note=note, scales=scales, words=words)


def pair(*, a: Annotated[Part, "time"], b: Annotated[Part, "time"]):
    """A system of two parts of a kind."""
    return a, b


@dataclasses.dataclass(frozen=True)
class Shift:
    """Settings of an own head's sampling."""

    amount: float = 0.5


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A tokenizer whose argument is a part: it multiplies what the other one gives."""

    inner: Annotated[Part, "tokenizer"]
    scale: float = 1.0

    def latents(self, shape):
        return self.inner.latents(shape)

    def encode(self, data, key):
        return self.scale * self.inner.encode(data, key)

    def decode(self, latents):
        return self.inner.decode(latents / self.scale)


class Head(DiffusionHead):
    """A head that is drawn by settings of its own."""

    sampling = Shift


class Undeclared(Categorical):
    """A head that says of no network that it reads it."""

    serves = ()


WORDS = "no class and no function"
