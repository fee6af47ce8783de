"""Pictures: PIL images, labelled grids of images, and curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image


ROUNDING = "8 bits as round(255 (x + 1) / 2), halves to even, clipped to [0, 255]"


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Returns uint8 pixels of floats in [-1, 1]: round(255 (x + 1) / 2), clipped."""
    pixels = (np.asarray(images, np.float32) + 1) * 127.5
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def to_pil(images: np.ndarray) -> "list[Image.Image]":
    """Returns a PIL image for each of (b, h, w, c) floats in [-1, 1].

    Raises:
      ValueError: c is neither 1 (grey) nor 3 (red, green, blue).
    """
    from PIL import Image

    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"Pictures need shape (b, h, w, 1) or (b, h, w, 3), not {images.shape}; "
            "latents must be decoded first."
        )
    pixels = to_uint8(images)
    return [Image.fromarray(p[..., 0] if p.shape[-1] == 1 else p) for p in pixels]


def save_png(image: np.ndarray, file: Any, text: Mapping[str, Any]) -> None:
    """Writes one (h, w, c) image in [-1, 1] as PNG, with facts about it in text chunks.

    Args:
      image: Grey or colour image: c is 1 or 3.
      file: Path or open binary file.
      text: Facts to store, by name.
    """
    from PIL.PngImagePlugin import PngInfo

    notes = PngInfo()
    for key, value in text.items():
        notes.add_text(key, str(value))
    to_pil(image[None])[0].save(file, format="PNG", pnginfo=notes)


def grid(
    images: np.ndarray,
    *,
    columns: int,
    rows: Sequence[str] = (),
    gap: int = 2,
    zoom: int | None = None,
) -> "Image.Image":
    """Returns one picture of (b, h, w, c) images in [-1, 1], as tiles with gaps between them.

    Args:
      images: Images in reading order.
      columns: Tiles in a row.
      rows: Names to write to the left of the rows.
      gap: Pixels between tiles, before enlarging.
      zoom: Whole factor of enlargement; by default one that makes tiles about 64 pixels high.
    """
    from PIL import Image, ImageDraw

    tiles = to_pil(images)
    width, height = tiles[0].size
    zoom = zoom or max(1, round(64 / height))
    lines = -(-len(tiles) // columns)
    left = 28 if rows else 0
    step_x, step_y = (width + gap) * zoom, (height + gap) * zoom
    size = (left + columns * step_x + gap * zoom, lines * step_y + gap * zoom)
    sheet = Image.new("RGB", size, (90, 90, 90))
    pen = ImageDraw.Draw(sheet)
    for i, tile in enumerate(tiles):
        row, column = divmod(i, columns)
        corner = (left + gap * zoom + column * step_x, gap * zoom + row * step_y)
        sheet.paste(
            tile.convert("RGB").resize((width * zoom, height * zoom), Image.Resampling.NEAREST),
            corner,
        )
    for row, name in enumerate(rows[:lines]):
        middle = gap * zoom + row * step_y + height * zoom // 2
        pen.text((left // 2 + 2, middle), name, fill=(255, 255, 255), anchor="mm")
    return sheet


def side_by_side(sheets: "Sequence[Image.Image]", titles: Sequence[str] = ()) -> "Image.Image":
    """Returns one picture with others in a row, each under its title where titles are given."""
    from PIL import Image, ImageDraw

    top = 18 if titles else 0
    width, height = sum(sheet.width for sheet in sheets), max(sheet.height for sheet in sheets)
    whole = Image.new("RGB", (width, height + top), (90, 90, 90))
    pen, left = ImageDraw.Draw(whole), 0
    for i, sheet in enumerate(sheets):
        whole.paste(sheet, (left, top))
        if titles:
            middle = left + sheet.width // 2
            pen.text((middle, top // 2), titles[i], fill=(255, 255, 255), anchor="mm")
        left += sheet.width
    return whole


def save_grids(
    grids: Mapping[str, np.ndarray], path: Path, *, columns: int, rows: Sequence[str] = ()
) -> Path:
    """Returns the file written: grids of images side by side, each under its name.

    Data that are neither grey nor colour images are written as .npy instead, (grids, b, h, w, c),
    or (b, h, w, c) for a single grid.

    Args:
      grids: (b, h, w, c) in [-1, 1] by name; the name of a single grid is not written.
      path: PNG file to write; an .npy gets the same name.
      columns: Tiles in a row.
      rows: Names to write to the left of the rows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = list(grids.values())
    if arrays[0].shape[-1] in (1, 3):
        sheets = [grid(images, columns=columns, rows=rows) for images in arrays]
        side_by_side(sheets, list(grids) if len(grids) > 1 else []).save(path)
        return path
    path = path.with_suffix(".npy")
    np.save(path, np.stack(arrays) if len(arrays) > 1 else arrays[0])
    return path


def curve(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes the training loss over the steps as a PNG.

    What the loss is depends on the system, and is said by its objective; so the label does not.

    Args:
      history: Records with "step" and "loss".
      path: File to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([r["step"] for r in history], [r["loss"] for r in history], linewidth=1.2)
    axes.set(xlabel="step", ylabel="training loss")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
