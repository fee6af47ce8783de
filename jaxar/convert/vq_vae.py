"""Released multi-scale tokenizers: from FoundationVision/VAR state dicts to `VQAutoencoder`.

The networks are spelled as those of `kl_vae`. Only the attention's query, key and value are fused
there, one after the other along the outputs, and the quantizer has words of its own.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxar.convert import kl_vae
from jaxar.convert.core import Row, Transform, convert
from jaxar.tree import paths

WORDS = {"to_features": "quant_conv", "from_features": "post_quant_conv"}
"""Words of the networks that are not in `kl_vae.WORDS`."""

CODEBOOK = ("quantizer/quantizer/codebook", "quantize.embedding.weight")
PHIS = ("quantizer/phis/", "quantize.quant_resi.qresi_ls.")
"""Beginnings of the paths and keys of the quantizer."""

FUSED = {"q": 0, "k": 1, "v": 2}
"""Which third of the fused map each of ours is."""

BUFFERS = ("quantize.ema_vocab_hit_SV",)
"""How often each code was chosen in the release's training."""


def rows(template: Any) -> list[Row]:
    """Returns the table for a parameter tree of arrays or shapes."""
    return [_row(path, len(leaf.shape)) for path, leaf in paths(template).items()]


def from_state_dict(state: Mapping[str, Any], template: Any) -> dict[str, Any]:
    """Returns the parameters that a released state dict holds.

    Args:
      state: Arrays by key of the release.
      template: Parameter tree of the model, arrays or shapes.

    Raises:
      WeightsError: lists every unused, missing and misshapen key.
    """
    return convert(state, rows(template), template, ignore=BUFFERS)


def _row(path: str, axes: int) -> Row:
    """Returns the row of one of our leaves."""
    transform = kl_vae.TRANSFORMS[axes]
    if path == CODEBOOK[0]:
        return Row(CODEBOOK[1], path)
    if path.startswith(PHIS[0]):
        rest = path.removeprefix(PHIS[0]).replace("kernel", "weight")
        return Row(PHIS[1] + rest.replace("/", "."), path, transform)
    *before, part, leaf = path.split("/")
    if part in FUSED:
        transform = functools.partial(_third, FUSED[part], transform)
        part = "qkv"
    return Row(kl_vae.key_of("/".join([*before, part, leaf]), WORDS), path, transform)


def _third(
    number: int, transform: Transform, array: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Returns what the transform makes of one third of the outputs.

    Raises:
      ValueError: there are no three, or the third does not fit.
    """
    if len(array) % 3:
        raise ValueError(f"{array.shape} is not three maps")
    return transform(np.split(array, 3)[number], shape)
