"""Pure functions of one example: decode, crop, scale, mirror. Pillow is imported on use."""

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxar.errors import FieldError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 89_000_000
"""Larger images are refused before they are decoded (Pillow itself stops at twice this)."""

MODES = {1: "L", 3: "RGB"}
"""Pillow's name for each supported number of channels."""


def pair(size: int | tuple[int, ...]) -> tuple[int, int]:
    """Returns (height, width) of a size given as an integer or a pair.

    Raises:
      ValueError: a side is below 1, or there are not two sides.
    """
    sides = (size, size) if isinstance(size, int) else tuple(int(side) for side in size)
    if len(sides) != 2 or min(sides) < 1:
        raise FieldError(f"size must be a positive number or (height, width), not {size!r}.")
    return sides


def mode_of(channels: int) -> str:
    """Returns Pillow's mode for a number of channels.

    Raises:
      ValueError: channels is neither 1 nor 3.
    """
    if channels not in MODES:
        raise FieldError(f"channels must be one of {sorted(MODES)}, not {channels!r}.")
    return MODES[channels]


def decode(file: Any, channels: int) -> "Image":
    """Returns the upright 8-bit image of a file: greyscale for 1 channel, RGB for 3.

    The EXIF orientation is applied, transparency is composited over white, 16-bit greys keep their
    upper 8 bits, CMYK and palettes are converted.

    Args:
      file: Path or open binary file of any format Pillow reads.
      channels: 1 or 3.

    Raises:
      ValueError: the image has more than `MAX_PIXELS` pixels.
      Exception: any of the many types that Pillow raises for a damaged file.
    """
    from PIL import Image, ImageOps

    with Image.open(file) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(
                f"{image.width} x {image.height} pixels are more than the limit of {MAX_PIXELS}"
            )
        image.load()
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image), 0, 65535).astype(np.uint16) >> 8
        image = Image.fromarray(grey.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode_of(channels))


def center_crop(image: "Image", size: int | tuple[int, ...]) -> "Image":
    """Returns the central part of an image, scaled so that it just covers `size`.

    While both sides are at least twice the target, a box filter halves the image (integer division
    of the sides). A bicubic resize then brings it to the smallest size that covers the target
    (sides rounded half to even). The centre is cut out (odd margins lose the smaller half at the
    top and left). For square targets the pixels equal those of the source.
    Source: the centre crop of ADM, arXiv 2105.05233, `guided_diffusion/image_datasets.py`.

    Args:
      image: Image in a mode that Pillow can interpolate, such as L or RGB.
      size: Side of the square, or (height, width).

    Raises:
      ValueError: the image is so narrow that covering `size` needs more than `MAX_PIXELS` pixels.
    """
    from PIL import Image

    height, width = pair(size)
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    covering = round(image.width * scale), round(image.height * scale)
    if covering[0] * covering[1] > MAX_PIXELS:
        raise ValueError(
            f"{image.width} x {image.height} pixels would grow to {covering[0]} x {covering[1]}, "
            f"more than the limit of {MAX_PIXELS}"
        )
    image = image.resize(covering, Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def to_array(image: "Image", channels: int) -> np.ndarray:
    """Returns the pixels as float32 (h, w, channels) in [-1, 1]; 0 is -1 and 255 is 1."""
    pixels = np.asarray(image.convert(mode_of(channels)), np.float32) / 127.5 - 1
    return pixels.reshape(image.height, image.width, channels)


def coin(rng: np.random.Generator) -> bool:
    """Returns True with probability 1/2; one draw."""
    return bool(rng.random() < 0.5)


def flip(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns x (h, w, c), mirrored left to right with probability 1/2; one draw of `rng`."""
    return np.ascontiguousarray(x[:, ::-1]) if coin(rng) else x
