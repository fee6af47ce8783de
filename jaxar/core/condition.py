"""What data are generated from: nothing, a class, a text, an image, a prefix, or several.

A condition is static; its *values* are trees of arrays whose first axis is the batch. A network
makes of a value what it likes; schemes and training pass it on and ask three things:

    read(given)        -> value          what a person or a source gives, checked
    drop(value, key)   -> value          some examples get no condition: classifier-free training
    branches(value)    -> values         what guidance contrasts: usually [value, nothing given]

A class that is not given is the number after the last one, as in the releases of VAR and MAR; every
other value carries `given`, (b,) bool, and the network puts its own null vectors where it is False.

Source of dropping and branches: arXiv 2207.12598 (classifier-free guidance); three branches, arXiv
2211.09800, section 3.2.1.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.typing import Array


@runtime_checkable
class Condition(Protocol):
    """What every kind of condition offers."""

    @property
    def dropout(self) -> float:
        """Share of training examples whose condition is dropped, in [0, 1]."""
        ...

    def shapes(self, batch: int) -> Any:
        """Returns the shapes and dtypes of a value of `batch` examples, a tree."""
        ...

    def read(self, given: Any) -> Any:
        """Returns the value, NumPy arrays, that a person's or a source's words stand for.

        Raises:
          ValueError: they are no such condition; one sentence says what is wanted.
        """
        ...

    def drop(self, value: Any, key: Array) -> Any:
        """Returns the value with a random share `dropout` of its examples not given."""
        ...

    def branches(self, value: Any) -> list[Any]:
        """Returns the values that guidance contrasts, the full one first."""
        ...


@dataclasses.dataclass(frozen=True)
class Nothing:
    """No condition: data are drawn from their whole distribution. Its value is an empty dict."""

    dropout: float = 0.0

    def shapes(self, batch: int) -> dict[str, Any]:
        """Returns no shapes."""
        return {}

    def read(self, given: Any) -> dict[str, Any]:
        """Returns the empty value; whatever is given as `None` or nothing fits."""
        if given is not None and len(given):
            raise ValueError(f"This model takes no condition, but {given!r} was given.")
        return {}

    def drop(self, value: dict[str, Any], key: Array) -> dict[str, Any]:
        """Returns the value."""
        return value

    def branches(self, value: dict[str, Any]) -> list[Any]:
        """Returns the value alone: there is nothing to contrast it with."""
        return [value]


@dataclasses.dataclass(frozen=True)
class Label:
    """A class. Its value is (b,) int32 in [0, classes]; `classes` stands for "no class".

    Attributes:
      classes: Number of classes.
      dropout: Share of training examples whose class is dropped.
    """

    classes: int
    dropout: float = 0.0

    def __post_init__(self):
        if type(self.classes) is not int or self.classes < 1:
            raise ValueError(f"classes must be a whole number of at least 1, not {self.classes!r}.")
        _require_share(self.dropout)

    def shapes(self, batch: int) -> jax.ShapeDtypeStruct:
        """Returns (batch,) int32."""
        return jax.ShapeDtypeStruct((batch,), jnp.int32)

    def read(self, given: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns classes in [0, classes) as int32."""
        array = np.asarray(given)
        if array.ndim != 1 or not array.size or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(
                f"labels must be a list of whole numbers in [0, {self.classes}), not {given!r}."
            )
        wrong = array[(array < 0) | (array >= self.classes)]
        if wrong.size:
            raise ValueError(f"labels must lie in [0, {self.classes}), not {wrong[0]}.")
        return array.astype(np.int32)

    def drop(self, value: Any, key: Array) -> Array:
        """Returns the classes, some replaced by "no class"."""
        dropped = jax.random.bernoulli(key, self.dropout, value.shape)
        return jnp.where(dropped, self.classes, value)

    def branches(self, value: Any) -> list[Any]:
        """Returns the classes, and "no class" for each."""
        return [value, jnp.full_like(value, self.classes)]


@dataclasses.dataclass(frozen=True)
class Features:
    """A sequence of feature vectors, such as those of a frozen text encoder.

    Its value is {"features": (b, s, d) float32, "mask": (b, s) bool, "given": (b,) bool}. The mask
    is True where there is a feature; where nothing is given it stays that of the text, as in
    LlamaGen's release.

    Attributes:
      length: s, the most features of an example; shorter ones are padded.
      width: d, of a feature.
      dropout: Share of training examples whose text is dropped.
    """

    length: int
    width: int
    dropout: float = 0.0

    def __post_init__(self):
        if min(self.length, self.width) < 1:
            raise ValueError(
                f"length={self.length} and width={self.width} of features must be at least 1."
            )
        _require_share(self.dropout)

    def shapes(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of features, mask and `given`."""
        return {
            "features": jax.ShapeDtypeStruct((batch, self.length, self.width), jnp.float32),
            "mask": jax.ShapeDtypeStruct((batch, self.length), jnp.bool_),
            "given": jax.ShapeDtypeStruct((batch,), jnp.bool_),
        }

    def read(self, given: Sequence[np.ndarray] | np.ndarray) -> dict[str, np.ndarray]:
        """Returns the value of one (s, d) array an example, each with at most `length` features."""
        value = {
            "features": np.zeros((len(given), self.length, self.width), np.float32),
            "mask": np.zeros((len(given), self.length), bool),
            "given": np.ones(len(given), bool),
        }
        for i, features in enumerate(map(np.asarray, given)):
            fits = features.ndim == 2 and features.shape[1] == self.width
            if not fits or not 1 <= len(features) <= self.length:
                raise ValueError(
                    f"The features of example {i} must be (1 to {self.length}, {self.width}), not "
                    f"{features.shape}."
                )
            value["features"][i, : len(features)] = features
            value["mask"][i, : len(features)] = True
        return value

    def drop(self, value: dict[str, Any], key: Array) -> dict[str, Any]:
        """Returns the value with some texts not given."""
        return _dropped(value, self.dropout, key)

    def branches(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        """Returns the value, and the same with nothing given."""
        return [value, _without(value)]


@dataclasses.dataclass(frozen=True)
class Image:
    """An image: a control such as edges, or a picture to be changed.

    Its value is {"image": (b, h, w, c) float32 in [-1, 1], "given": (b,) bool}.

    Attributes:
      shape: (h, w, c).
      dropout: Share of training examples whose image is dropped.
    """

    shape: tuple[int, int, int]
    dropout: float = 0.0

    def __post_init__(self):
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"The shape of an image must be (h, w, c), not {self.shape!r}.")
        _require_share(self.dropout)

    def shapes(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of image and `given`."""
        return {
            "image": jax.ShapeDtypeStruct((batch, *self.shape), jnp.float32),
            "given": jax.ShapeDtypeStruct((batch,), jnp.bool_),
        }

    def read(self, given: Sequence[np.ndarray] | np.ndarray) -> dict[str, np.ndarray]:
        """Returns the value of one (h, w, c) image an example, in [-1, 1]."""
        images = np.asarray(given, np.float32)
        if images.shape[1:] != tuple(self.shape):
            raise ValueError(f"Images must be {tuple(self.shape)} each, not {images.shape[1:]}.")
        return {"image": images, "given": np.ones(len(images), bool)}

    def drop(self, value: dict[str, Any], key: Array) -> dict[str, Any]:
        """Returns the value with some images not given."""
        return _dropped(value, self.dropout, key)

    def branches(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        """Returns the value, and the same with nothing given."""
        return [value, _without(value)]


@dataclasses.dataclass(frozen=True)
class Prefix:
    """The first tokens of a sequence, given as they are: a prompt.

    Its value is {"tokens": (b, p) int32, "lengths": (b,) int32}; tokens after the length do not
    matter. A prefix is part of the sequence and is never dropped.

    Attributes:
      length: p, the most tokens.
      vocabulary: Tokens lie in [0, vocabulary).
    """

    length: int
    vocabulary: int
    dropout: float = dataclasses.field(default=0.0, init=False)

    def shapes(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of tokens and lengths."""
        return {
            "tokens": jax.ShapeDtypeStruct((batch, self.length), jnp.int32),
            "lengths": jax.ShapeDtypeStruct((batch,), jnp.int32),
        }

    def read(self, given: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
        """Returns the value of one list of tokens an example, which may be empty."""
        tokens = np.zeros((len(given), self.length), np.int32)
        for i, row in enumerate(given):
            if len(row) > self.length:
                raise ValueError(
                    f"Prefix {i} has {len(row)} tokens, at most {self.length} fit: shorten it."
                )
            wrong = [token for token in row if not 0 <= token < self.vocabulary]
            if wrong:
                raise ValueError(
                    f"Prefix {i} has the token {wrong[0]}; tokens lie in [0, {self.vocabulary})."
                )
            tokens[i, : len(row)] = row
        return {"tokens": tokens, "lengths": np.array([len(row) for row in given], np.int32)}

    def drop(self, value: dict[str, Any], key: Array) -> dict[str, Any]:
        """Returns the value."""
        return value

    def branches(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        """Returns the value alone."""
        return [value]


@dataclasses.dataclass(frozen=True)
class Several:
    """Several conditions by name. Its value is a dict of their values.

    Attributes:
      parts: Conditions by name, in the order in which guidance adds them.
      together: Whether one draw decides for all of them whether they are dropped; with the rate of
        the first. Else each is dropped by itself.
      stepwise: Whether branches give up one condition after the other, the last first, as
        instruction-following editors need; else there are two: all given, none given.
    """

    parts: Mapping[str, Condition]
    together: bool = False
    stepwise: bool = False

    def __post_init__(self):
        if not self.parts:
            raise ValueError("Several conditions need at least one part.")

    @property
    def dropout(self) -> float:
        """The rate of the first part."""
        return next(iter(self.parts.values())).dropout

    def shapes(self, batch: int) -> dict[str, Any]:
        """Returns the shapes of each part's value."""
        return {name: part.shapes(batch) for name, part in self.parts.items()}

    def read(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the value of a dict with an entry for each part."""
        if not isinstance(given, Mapping) or set(given) != set(self.parts):
            raise ValueError(f"The condition must have the entries {sorted(self.parts)}.")
        value = {name: part.read(given[name]) for name, part in self.parts.items()}
        lengths = {name: len(jax.tree.leaves(part)[0]) for name, part in value.items() if part}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"All parts of a condition need as many examples, not {lengths}.")
        return value

    def drop(self, value: dict[str, Any], key: Array) -> dict[str, Any]:
        """Returns the value with some parts not given."""
        keys = jax.random.split(key, len(self.parts))
        dropped = {}
        for (name, part), own in zip(self.parts.items(), keys, strict=True):
            if self.together and hasattr(part, "dropout"):
                part = dataclasses.replace(part, dropout=self.dropout)  # pyright: ignore
                own = key
            dropped[name] = part.drop(value[name], own)
        return dropped

    def branches(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        """Returns the values that guidance contrasts, from all given to none given."""
        nulls = {name: part.branches(value[name])[-1] for name, part in self.parts.items()}
        if not self.stepwise:
            return [value, nulls]
        found, names = [value], list(self.parts)
        for i in reversed(range(len(names))):
            found.append({**value, **{name: nulls[name] for name in names[i:]}})
        return found


def classes_of(condition: Condition, network: str) -> int:
    """Returns the number of classes of a condition that must be a label.

    Raises:
      ValueError: it is another kind.
    """
    if not isinstance(condition, Label):
        kind = type(condition).__name__.lower()
        raise ValueError(f"{network} takes a label as its condition, not {kind}: set it to label.")
    return condition.classes


def stacked(values: Sequence[Any]) -> Any:
    """Returns branches as one value, one after the other along the batch."""
    if len(values) == 1:
        return values[0]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *values)


def _dropped(value: dict[str, Any], rate: float, key: Array) -> dict[str, Any]:
    dropped = jax.random.bernoulli(key, rate, value["given"].shape)
    return {**value, "given": value["given"] & ~dropped}


def _without(value: dict[str, Any]) -> dict[str, Any]:
    return {**value, "given": jnp.zeros_like(value["given"])}


def _require_share(rate: float) -> None:
    if not 0 <= rate <= 1:
        raise ValueError(f"dropout must be from 0 to 1, not {rate!r}.")
