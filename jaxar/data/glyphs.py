"""Letters and digits drawn from fonts: data of any size and amount, with no download."""

import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from jaxar.data.transform import pair

SYMBOLS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

_FACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
)
_OVERSAMPLING = 4


class Glyphs:
    """Drawn letters and digits, light on dark, (h, w, channels) in [-1, 1].

    Record i shows symbol i % num_classes; its face, size, place and angle are a pure function of
    (seed, i). The faces are Pillow's built-in one and the DejaVu faces that come with matplotlib,
    so that the pictures are the same wherever these two have the same versions.

    Args:
      size: Side of the square or (height, width), at least 8.
      channels: 1 for white symbols; with more channels each symbol has a colour.
      num_classes: How many of "0-9A-Za-z", at most 62.
      count: Number of records.
      seed: Another seed gives other pictures.

    Raises:
      ValueError: an argument is out of range.
    """

    def __init__(
        self,
        size: int | tuple[int, ...] = 16,
        channels: int = 1,
        num_classes: int = 10,
        count: int = 2000,
        seed: int = 0,
    ):
        height, width = pair(size)
        if min(height, width) < 8 or channels < 1 or count < 1 or seed < 0:
            raise ValueError(
                "glyphs need size >= 8, channels >= 1, count >= 1 and seed >= 0, got "
                f"size={size}, channels={channels}, count={count}, seed={seed}."
            )
        if not 1 <= num_classes <= len(SYMBOLS):
            raise ValueError(f"num_classes must be 1 to {len(SYMBOLS)}, got {num_classes}.")
        self.shape = (height, width, channels)
        self.num_classes = num_classes
        self._count = count
        self._seed = seed

    def __len__(self) -> int:
        return self._count

    def labels(self) -> np.ndarray:
        """Returns the labels (len,) int32: 0, 1, ..., num_classes - 1, 0, ..."""
        return np.arange(self._count, dtype=np.int32) % np.int32(self.num_classes)

    def read(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Returns one picture and its label; `rng` is not used."""
        height, width, channels = self.shape
        label = index % self.num_classes
        own = np.random.default_rng((self._seed, index))
        coverage = _draw(SYMBOLS[label], height, width, own)
        colour = own.uniform(0.4, 1, channels) if channels > 1 else np.ones(1)
        data = 2 * coverage[..., None] * colour - 1
        return {"data": data.astype(np.float32), "condition": np.int32(label)}


def _draw(symbol: str, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the part of each pixel that a symbol covers, (height, width) in [0, 1]."""
    from PIL import Image, ImageDraw

    tall, wide = height * _OVERSAMPLING, width * _OVERSAMPLING
    side = min(tall, wide)
    faces = _face_files()
    face = faces[rng.integers(len(faces))]
    font = _font(face, round(side * rng.uniform(0.7, 0.95)))
    shift = rng.uniform(-0.06, 0.06, 2) * side
    angle = rng.uniform(-12, 12)

    left, top, right, bottom = font.getbbox(symbol)
    corner = (
        (wide - left - right) / 2 + shift[0],
        (tall - top - bottom) / 2 + shift[1],
    )
    canvas = Image.new("L", (wide, tall))
    ImageDraw.Draw(canvas).text(corner, symbol, fill=255, font=font)
    canvas = canvas.rotate(angle, Image.Resampling.BICUBIC).reduce(_OVERSAMPLING)
    return np.asarray(canvas, np.float32) / 255


@functools.cache
def _face_files() -> tuple[str, ...]:
    """Returns the font files, "" for Pillow's own face; found without importing matplotlib."""
    found = importlib.util.find_spec("matplotlib")
    places = found.submodule_search_locations if found else None
    fonts = [Path(place) / "mpl-data" / "fonts" / "ttf" for place in places or ()]
    files = [folder / f"{face}.ttf" for folder in fonts for face in _FACES]
    return ("", *(str(file) for file in files if file.exists()))


@functools.lru_cache(maxsize=512)
def _font(file: str, size: int) -> Any:
    from PIL import ImageFont

    layout = ImageFont.Layout.BASIC  # the same with and without the Raqm library
    if file:
        return ImageFont.truetype(file, size, layout_engine=layout)
    return ImageFont.load_default(size)
