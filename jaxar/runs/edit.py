"""Images made anew in part: in-painting, out-painting and class editing, by any system.

What lies outside the mask is known; sampling keeps the tokens of it and draws the others, which see
them as they see everything that was drawn before. A token is kept if the mask touches nothing that
it stands for. Source: FoundationVision/VAR, arXiv 2404.02905, section 5.3 (zero-shot tasks).
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxar.runs import picture
from jaxar.runs.model import Model
from jaxar.runs.setup import open_source
from jaxar.config import ConfigError
from jaxar.console import say
from jaxar.data.folder import read_image
from jaxar.data.source import BadRecord

SHAPES = ("center", "border", "left", "right", "top", "bottom", "all")
"""Masks by name: the middle half of each side, all around it, or one half of the image."""


def edit(
    model: Model,
    images: np.ndarray,
    mask: np.ndarray | str,
    labels: Sequence[int] | np.ndarray,
    **options: Any,
) -> np.ndarray:
    """Returns images made anew where the mask says so, (b, h, w, c) float32.

        edit(model, images, "center", labels)      # in-painting; "border" is out-painting
        edit(model, images, mask, other_labels)    # another class where the mask is True

    Kept tokens stay as they are. The images of an autoencoder's latents are those latents decoded,
    so that kept parts differ from the originals as any reconstruction does.

    Args:
      model: Any model that samples, with its autoencoder where it has one.
      images: (b, h, w, c) float32 in [-1, 1].
      mask: (h, w) or (b, h, w), True where to make anew; or one of `SHAPES`.
      labels: Class of each image.
      **options: As of `Model.sample`.

    Raises:
      ConfigError: the images or the mask do not fit the model, or it lacks its autoencoder.
      ValueError: a label or an option makes no sense.
    """
    if model.config.autoencoder.name != "none" and model.autoencoder is None:
        raise ConfigError("Editing images needs the autoencoder's weights: give --tokenizer=FILE.")
    images = np.asarray(images, np.float32)
    wanted = image_shape(model)
    if images.ndim != 4 or images.shape[1:] != wanted or len(images) != len(labels):
        raise ConfigError(
            f"images must be {(len(labels), *wanted)}, one for each label, not {images.shape}."
        )
    area = named_mask(mask, wanted[:2]) if isinstance(mask, str) else np.asarray(mask)
    if area.shape not in (wanted[:2], images.shape[:3]):
        raise ConfigError(f"The mask must be {wanted[:2]} or {images.shape[:3]}, not {area.shape}.")
    area = np.broadcast_to(area, images.shape[:3])
    return model.sample(labels, edit=(images, area), **options)


def image_shape(model: Model) -> tuple[int, int, int]:
    """Returns (h, w, c) of the images that a model makes."""
    h, w, c = model.system.shape
    if model.autoencoder is None:
        return h, w, c
    network = model.autoencoder.network
    return h * network.factor, w * network.factor, network.image_channels


def named_mask(name: str, size: tuple[int, int]) -> np.ndarray:
    """Returns the (h, w) mask of a name in `SHAPES`, or of a picture file: True where it is bright.

    Raises:
      ConfigError: there is no such name or file.
    """
    if name not in SHAPES:
        return _mask_file(Path(name), size)
    h, w = size
    rows, columns = np.arange(h)[:, None], np.arange(w)[None]
    inside = (rows >= h // 4) & (rows < h - h // 4) & (columns >= w // 4) & (columns < w - w // 4)
    return {
        "center": inside,
        "border": ~inside,
        "left": np.broadcast_to(columns < w // 2, size),
        "right": np.broadcast_to(columns >= w // 2, size),
        "top": np.broadcast_to(rows < h // 2, size),
        "bottom": np.broadcast_to(rows >= h // 2, size),
        "all": np.ones(size, bool),
    }[name]


def draw_edits(
    model: Model,
    sources: str | None,
    mask: str,
    path: Path,
    *,
    labels: Sequence[int] | None = None,
    seed: int = 0,
) -> None:
    """Writes a picture: images, what is kept of them, and what the model makes of the rest.

    Args:
      model: Any model that samples.
      sources: Image files with commas between; by default examples of the config's data, the first
        of each class, from its held-out part where there is one.
      mask: See `named_mask`.
      path: File to write.
      labels: Class of each image; that of the example by default.
      seed: Of the noise.

    Raises:
      ConfigError: an image or the mask cannot be read, or labels are missing.
    """
    shape = image_shape(model)
    if shape[-1] not in (1, 3):
        raise ConfigError("Only grey and colour images can be edited on the command line.")
    area = named_mask(mask, shape[:2])
    images, classes = _examples(model) if sources is None else _read(sources.split(","), shape)
    if labels is not None:
        images, classes = images[: len(labels)], list(labels)
    if classes is None or len(images) != len(classes):
        raise ConfigError(f"Give one class for each of the {len(images)} images: --labels=3,1,4.")
    try:
        made = edit(model, images, area, classes, seed=seed)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    kept = np.where(area[..., None], 0.0, images)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ["image", "kept", "made"]
    sheet = np.concatenate([images, kept, made]).astype(np.float32)
    picture.grid(sheet, columns=len(images), rows=rows).save(path)
    say("picture", str(path))


def _examples(model: Model) -> tuple[np.ndarray, list[int]]:
    """Returns the first example of each class, up to `config.sample.classes`, and the classes."""
    if model.autoencoder is not None:
        raise ConfigError("Name the images to edit: --source=FILE.png, or several with commas.")
    source = _held_out(model.config)
    classes, first = np.unique(source.labels(), return_index=True)
    first, classes = first[: model.config.sample.classes], classes[: model.config.sample.classes]
    rows = [source.read(int(i), np.random.default_rng(0))["data"] for i in first]
    return np.stack(rows), [int(c) for c in classes]


def _held_out(config: Any) -> Any:
    """Returns the held-out examples of a config's data, or all where no split has that name."""
    if config.data.get("split"):
        with contextlib.suppress(ConfigError):
            return open_source(config, split="held_out")
    return open_source(config)


def _read(files: Sequence[str], shape: tuple[int, int, int]) -> tuple[np.ndarray, None]:
    """Returns image files, cropped to `shape` as training images are."""
    try:
        return np.stack([read_image(name, name, shape) for name in files]), None
    except BadRecord as error:
        raise ConfigError(str(error)) from error


def _mask_file(path: Path, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    if not path.is_file():
        raise ConfigError(f"There is no mask {str(path)!r}: give a file or one of {list(SHAPES)}.")
    height, width = size
    gray = Image.open(path).convert("L").resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(gray) > 127
