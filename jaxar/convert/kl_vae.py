"""Released KL autoencoders: from LTH14/mar state dicts to the parameters of `KLAutoencoder`.

The networks are unrolled, so the table is one of words: our path becomes the key of the release
word by word, at any width, number of levels and number of blocks.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from jaxar.convert.core import Row, Transform, convert, convolution, linear, same
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
