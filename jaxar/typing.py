"""Array aliases and the glossary of the project.

Letters of shapes, the same in every docstring and annotation:

| letter | dimension                     | letter | dimension                        |
|--------|-------------------------------|--------|----------------------------------|
| b      | batch                         | k      | attention heads                  |
| h w    | height, width of a grid       | c      | channels of a token or a pixel   |
| n      | tokens of the call            | l      | layers                           |
| m      | tokens that can be attended   | x      | entities                         |
| d      | width of the network          | g      | segments: runs of tokens that    |
| e      | width of one attention head   |        | share one time and one condition |

Values: images lie in [-1, 1], channels last. Times lie in [0, 1]: 0 is data, 1 is noise.

jaxtyping checks the annotations in the tests; without it they are plain comments.
"""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

Array = jax.Array
Mask = jax.Array | np.ndarray | None
"""(n, m) bool, True where token n sees token m; None where all see all."""
Params = dict[str, Any]
"""Nested dict of arrays: what is trained, averaged, sharded, saved and converted."""

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Key, UInt8
else:
    try:
        from jaxtyping import Bool, Float, Int, Key, UInt8
    except ImportError:  # a machine that only computes

        class _Any:
            def __class_getitem__(cls, item):
                return Any

        Bool = Float = Int = Key = UInt8 = _Any

__all__ = ["Array", "Bool", "Float", "Int", "Key", "Mask", "Params", "UInt8"]
