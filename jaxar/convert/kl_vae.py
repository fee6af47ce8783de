"""Released KL autoencoders: from LTH14/mar state dicts to the parameters of `KLAutoencoder`.

The networks are unrolled, so the table is one of words: our path becomes the key of the release
word by word, at any width, number of levels and number of blocks.
"""

import itertools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from jaxar.convert.core import Row, Transform, WeightsError, convert, convolution, linear, same
from jaxar.tree import paths

WORDS = {
    "first": "conv_in",
    "last_norm": "norm_out",
    "last": "conv_out",
    "blocks": "block",
    "attentions": "attn",
    "norm_1": "norm1",
    "conv_1": "conv1",
    "norm_2": "norm2",
    "conv_2": "conv2",
    "shortcut": "nin_shortcut",
    "middle": "mid",
    "before": "block_1",
    "attention": "attn_1",
    "after": "block_2",
    "project": "proj_out",
    "to_moments": "quant_conv",
    "from_latents": "post_quant_conv",
    "kernel": "weight",
    "scale": "weight",
}
"""Our words that the release spells differently."""

STACKS = {
    "encoder": {"levels": "down", "resample": "downsample"},
    "decoder": {"levels": "up", "resample": "upsample"},
}
"""Words that depend on the first one of the path."""

LOSS = ("loss.*",)
"""The discriminator and the feature network of the release's training."""

TRANSFORMS: dict[int, Transform] = {1: same, 2: same, 3: linear, 4: convolution}
"""By the axes of our leaf: biases and scales, also of one head; maps with their head; kernels."""


def rows(template: Any) -> list[Row]:
    """Returns the table for a parameter tree of arrays or shapes."""
    return [
        Row(key_of(path), path, TRANSFORMS[len(leaf.shape)])
        for path, leaf in paths(template).items()
    ]


def key_of(path: str, more: Mapping[str, str] = MappingProxyType({})) -> str:
    """Returns the key of the release for one of our paths; `more` are words beside `WORDS`."""
    words = path.split("/")
    spelling = WORDS | STACKS.get(words[0], {}) | dict(more)
    return ".".join(spelling.get(word, word) for word in words)


def from_state_dict(state: Mapping[str, Any], template: Any) -> dict[str, Any]:
    """Returns the parameters that a released state dict holds.

    Args:
      state: Arrays by key of the release.
      template: Parameter tree of the model, arrays or shapes.

    Raises:
      WeightsError: lists every unused, missing and misshapen key.
    """
    return convert(state, rows(template), template, ignore=LOSS)


def arguments_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of the `KLAutoencoder` whose weights a state dict holds.

    They are read from the keys and shapes alone.

    Raises:
      WeightsError: it does not hold such an autoencoder.
    """
    shapes = getattr(state, "shapes", None)
    if shapes is None:
        shapes = {key: tuple(np.shape(array)) for key, array in state.items()}
    try:
        width, image_channels = shapes["encoder.conv_in.weight"][:2]
        channels = shapes["post_quant_conv.weight"][0]
        levels = _count(shapes, "encoder.down.{}.block.0.conv1.weight")
        widths = [shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in range(levels)]
    except (KeyError, IndexError, ValueError) as error:
        raise WeightsError(f"These are not the weights of a KL autoencoder: {error}.") from error
    if not levels or any(w % width for w in widths):
        raise WeightsError(
            f"These are not the weights of a KL autoencoder: its levels of {widths} channels are "
            f"no multiples of {width}."
        )
    return {
        "image_channels": image_channels,
        "width": width,
        "multipliers": tuple(w // width for w in widths),
        "blocks": _count(shapes, "encoder.down.0.block.{}.conv1.weight"),
        "encoder_attention": tuple(
            i for i in range(levels) if f"encoder.down.{i}.attn.0.q.weight" in shapes
        ),
        "channels": channels,
    }


def _count(shapes: Mapping[str, Any], pattern: str) -> int:
    """Returns how many keys there are of a pattern, counted from 0 on."""
    return next(i for i in itertools.count() if pattern.format(i) not in shapes)
