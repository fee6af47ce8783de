"""The Inception network of 2015, on whose features FID, Inception Score and others are defined.

It differs from the paper's network: average pools do not count padding, and the pool of the last
block takes the maximum. Names of blocks and convolutions are those of PyTorch's port.

Source: arXiv:1512.00567; the graph inception-2015-12-05 of TensorFlow, as torch-fidelity runs it.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.core.resize import resize_bilinear
from jaxar.typing import Array, Float, Params, UInt8

SIDE = 299
EPSILON = 1e-3
SPATIAL_CHANNELS = 7
"""Channels of `Mixed_6d`'s first branch that ADM's sFID uses: 17 x 17 x 7 = 2,023 features."""


class Conv(NamedTuple):
    """A convolution without bias, batch norm, ReLU.

    Attributes:
      name: Name within its block.
      channels: Output channels.
      size: (height, width) of the kernel.
      stride: Stride in both directions.
      padding: "SAME" keeps the size of the map, "VALID" does not pad.
    """

    name: str
    channels: int
    size: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: Literal["SAME", "VALID"] = "SAME"


class Pool(NamedTuple):
    """A 3 x 3 pool, mean or maximum, that does not count padding."""

    rule: Literal["mean", "max"]
    stride: int = 1
    padding: Literal["SAME", "VALID"] = "SAME"


class Fork(NamedTuple):
    """Two convolutions of one map, whose outputs are concatenated along the channels."""

    left: Conv
    right: Conv


Branch = tuple[Conv | Pool | Fork, ...]
"""Steps in sequence."""

HALVE = Pool("max", 2, "VALID")
POOL = Pool("mean")


def _block_a(pooled: int) -> tuple[Branch, ...]:
    return (
        (Conv("branch1x1", 64),),
        (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
        (
            Conv("branch3x3dbl_1", 64),
            Conv("branch3x3dbl_2", 96, (3, 3)),
            Conv("branch3x3dbl_3", 96, (3, 3)),
        ),
        (POOL, Conv("branch_pool", pooled)),
    )


def _block_c(inner: int) -> tuple[Branch, ...]:
    return (
        (Conv("branch1x1", 192),),
        (
            Conv("branch7x7_1", inner),
            Conv("branch7x7_2", inner, (1, 7)),
            Conv("branch7x7_3", 192, (7, 1)),
        ),
        (
            Conv("branch7x7dbl_1", inner),
            Conv("branch7x7dbl_2", inner, (7, 1)),
            Conv("branch7x7dbl_3", inner, (1, 7)),
            Conv("branch7x7dbl_4", inner, (7, 1)),
            Conv("branch7x7dbl_5", 192, (1, 7)),
        ),
        (POOL, Conv("branch_pool", 192)),
    )


def _block_e(pool: Pool) -> tuple[Branch, ...]:
    return (
        (Conv("branch1x1", 320),),
        (
            Conv("branch3x3_1", 384),
            Fork(Conv("branch3x3_2a", 384, (1, 3)), Conv("branch3x3_2b", 384, (3, 1))),
        ),
        (
            Conv("branch3x3dbl_1", 448),
            Conv("branch3x3dbl_2", 384, (3, 3)),
            Fork(Conv("branch3x3dbl_3a", 384, (1, 3)), Conv("branch3x3dbl_3b", 384, (3, 1))),
        ),
        (pool, Conv("branch_pool", 192)),
    )


STEM: dict[str, Branch] = {
    "64": (
        Conv("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
        Conv("Conv2d_2a_3x3", 32, (3, 3), 1, "VALID"),
        Conv("Conv2d_2b_3x3", 64, (3, 3)),
        HALVE,
    ),
    "192": (Conv("Conv2d_3b_1x1", 80), Conv("Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"), HALVE),
}
"""The first convolutions, in two parts named by their output channels."""

BLOCKS: dict[str, tuple[Branch, ...]] = {
    "Mixed_5b": _block_a(32),
    "Mixed_5c": _block_a(64),
    "Mixed_5d": _block_a(64),
    "Mixed_6a": (
        (Conv("branch3x3", 384, (3, 3), 2, "VALID"),),
        (
            Conv("branch3x3dbl_1", 64),
            Conv("branch3x3dbl_2", 96, (3, 3)),
            Conv("branch3x3dbl_3", 96, (3, 3), 2, "VALID"),
        ),
        (HALVE,),
    ),
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": (
        (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2, "VALID")),
        (
            Conv("branch7x7x3_1", 192),
            Conv("branch7x7x3_2", 192, (1, 7)),
            Conv("branch7x7x3_3", 192, (7, 1)),
            Conv("branch7x7x3_4", 192, (3, 3), 2, "VALID"),
        ),
        (HALVE,),
    ),
    "Mixed_7b": _block_e(POOL),
    "Mixed_7c": _block_e(Pool("max")),
}
"""The branches of each block; their concatenated outputs are the input of the next block."""

POOLED = {"64": "64", "192": "192", "Mixed_6e": "768", "Mixed_7c": "2048"}
"""Parts whose output is averaged over the map, and the name of that feature in torch-fidelity."""

SMALLEST = 32
"""Smallest side of an image from which the stem leaves a map."""


def features(params: Params, images: UInt8[Array, "b h w 3"]) -> dict[str, Float[Array, "b _"]]:
    """Returns features of images, by their names in torch-fidelity.

    "64", "192", "768", "2048": means over the map with that number of channels; FID uses "2048".
    "logits_unbiased": class logits without the bias, which the Inception Score uses; "logits": with
    the bias. "spatial": (b, 17 * 17 * 7), rows, columns, then channels, for ADM's sFID.

    Args:
      params: Parameters, of the shapes of `shapes`.
      images: Images of any size, values 0 to 255; they are resized as TensorFlow 1 does, which is
        part of the protocol.
    """
    x = resize_bilinear(images.astype(jnp.float32), (SIDE, SIDE))
    x = (x - 128) / 128  # sic: 0 becomes -1, 255 not quite 1
    found = {}
    for name, outputs in _walk(params, x):
        x = jnp.concatenate(outputs, -1)
        if name in POOLED:
            found[POOLED[name]] = x.mean((1, 2))
        if name == "Mixed_6d":
            found["spatial"] = outputs[0][..., :SPATIAL_CHANNELS].reshape(len(x), -1)
    logits = jnp.matmul(found["2048"], params["fc"]["kernel"], precision="highest")
    return {**found, "logits_unbiased": logits, "logits": logits + params["fc"]["bias"][None]}


def maps(params: Params, images: Float[Array, "b h w c"]) -> list[Float[Array, "b h2 w2 c2"]]:
    """Returns the maps with 64, 192 and 288 channels, the features of a perceptual distance.

    Args:
      params: See `features`.
      images: Images in [-1, 1], at least 32 x 32, c is 1 or 3; they are not resized.

    Raises:
      ValueError: the images are too small for the network.
    """
    if min(images.shape[1:3]) < SMALLEST:
        raise ValueError(
            f"Images of {images.shape[1]} x {images.shape[2]} are too small for Inception's maps, "
            f"which need {SMALLEST} x {SMALLEST}."
        )
    x = jnp.broadcast_to(images, (*images.shape[:3], 3))
    found = {}
    for name, outputs in _walk(params, x):
        found[name] = jnp.concatenate(outputs, -1)
        if name == "Mixed_5d":
            break
    return [found["64"], found["192"], found["Mixed_5d"]]


def shapes(classes: int = 1008) -> Params:
    """Returns the parameter tree as float32 shapes, the template for conversion.

    A convolution has a kernel (height, width, in, out) and the four vectors of its batch norm.

    Args:
      classes: Number of classes.
    """
    tree: Params = {}
    channels = 3
    for branch in STEM.values():
        channels = _describe(tree, branch, channels)
    for name, branches in BLOCKS.items():
        tree[name] = {}
        channels = sum(_describe(tree[name], branch, channels) for branch in branches)
    tree["fc"] = {"kernel": _shape(channels, classes), "bias": _shape(classes)}
    return tree


def _walk(params: Params, x: Array) -> Iterator[tuple[str, list[Array]]]:
    """Yields the name of each part of the stem and of each block, with its branches' outputs."""
    for name, branch in STEM.items():
        x = _run(params, branch, x)
        yield name, [x]
    for name, branches in BLOCKS.items():
        outputs = [_run(params[name], branch, x) for branch in branches]
        yield name, outputs
        x = jnp.concatenate(outputs, -1)


def _run(params: Params, branch: Branch, x: Array) -> Array:
    """Returns the map (b, h, w, c) after the steps of a branch."""
    for step in branch:
        if isinstance(step, Conv):
            x = _convolve(params[step.name], step, x)
        elif isinstance(step, Pool):
            x = _pool(step, x)
        else:
            x = jnp.concatenate([_convolve(params[conv.name], conv, x) for conv in step], -1)
    return x


def _convolve(params: Params, conv: Conv, x: Array) -> Array:
    """Returns the map (b, h, w, c) after a convolution, its batch norm and ReLU."""
    scale = params["gamma"] / jnp.sqrt(params["variance"] + EPSILON)
    x = jax.lax.conv_general_dilated(
        x,
        params["kernel"] * scale[None, None, None],  # folds the scale of the batch norm
        (conv.stride, conv.stride),
        conv.padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )
    return jax.nn.relu(x + (params["beta"] - params["mean"] * scale)[None, None, None])


def _pool(pool: Pool, x: Array) -> Array:
    """Returns the map (b, h, w, c) after a pool."""

    def over(x, start, combine):
        window, strides = (1, 3, 3, 1), (1, pool.stride, pool.stride, 1)
        return jax.lax.reduce_window(x, start, combine, window, strides, pool.padding)

    if pool.rule == "max":
        return over(x, -jnp.inf, jax.lax.max)
    counts = over(jnp.ones_like(x[:1, :, :, :1]), 0.0, jax.lax.add)
    return over(x, 0.0, jax.lax.add) / counts


def _describe(tree: Params, branch: Branch, channels: int) -> int:
    """Adds the shapes of a branch's convolutions to `tree`; returns its output channels."""
    for step in branch:
        if isinstance(step, Pool):
            continue
        convs = (step,) if isinstance(step, Conv) else tuple(step)
        for conv in convs:
            tree[conv.name] = {
                "kernel": _shape(*conv.size, channels, conv.channels),
                **{name: _shape(conv.channels) for name in ("gamma", "beta", "mean", "variance")},
            }
        channels = sum(conv.channels for conv in convs)
    return channels


def _shape(*sizes: int) -> Any:
    return jax.ShapeDtypeStruct(sizes, np.float32)
