"""The verb `edit`: inpainting, outpainting and class editing with any system that samples.

The image outside the mask is known. Sampling keeps its tokens and draws the others, which see the
kept ones as they see all tokens drawn before them. A token is kept if the mask touches nothing that
the token stands for. Source: FoundationVision/VAR, arXiv 2404.02905, section 5.3 (zero-shot tasks).
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxar.config import ConfigError
from jaxar.console import say
from jaxar.data.folder import read_image
from jaxar.data.source import BadRecord
from jaxar.runs import picture
from jaxar.runs.command import Command
from jaxar.runs.model import Model
from jaxar.runs.sample import read_labels
from jaxar.runs.setup import open_source

SHAPES = ("center", "border", "left", "right", "top", "bottom", "all")
"""Masks by name: the middle half of each side, what lies around it, half of the image, or all."""


def run(command: Command) -> None:
    """Draws edited images into `edited_seed<seed>.png` of a run."""
    flags, seed = command.flags, command.flags.seed or 0
    model = command.model("sample")
    path = command.workdir / f"edited_seed{seed}.png"
    labels = read_labels(flags.labels)
    draw_edits(model, flags.source, str(flags.mask), path, labels=labels, seed=seed)


def edit(
    model: Model,
    images: np.ndarray,
    mask: np.ndarray | str,
    labels: Sequence[int] | np.ndarray,
    **options: Any,
) -> np.ndarray:
    """Returns images regenerated where the mask is True, (b, h, w, c) float32 in [-1, 1].

        edit(model, images, "center", labels)      # inpainting; "border" is outpainting
        edit(model, images, mask, other_labels)    # another class where the mask is True

    Kept tokens do not change. A model of latents returns decoded latents, so the kept part differs
    from the original as any reconstruction does.

    Args:
      model: A model that samples, with its autoencoder where it has one.
      images: (b, h, w, c) float32 in [-1, 1].
      mask: (h, w) or (b, h, w), True where to regenerate; or one of `SHAPES`.
      labels: Class of each image.
      **options: Options of `Model.sample`.

    Raises:
      ConfigError: the images or the mask do not fit the model, it cannot sample, or it lacks its
        autoencoder.
      ValueError: a label or an option is out of range.
    """
    model.require_images()
    images = np.asarray(images, np.float32)
    wanted = model.image_shape
    if images.ndim != 4 or images.shape[1:] != wanted or len(images) != len(labels):
        raise ConfigError(
            f"images must be {(len(labels), *wanted)}, one for each label, not {images.shape}."
        )
    area = named_mask(mask, wanted[:2]) if isinstance(mask, str) else np.asarray(mask)
    if area.shape not in (wanted[:2], images.shape[:3]):
        raise ConfigError(f"The mask must be {wanted[:2]} or {images.shape[:3]}, not {area.shape}.")
    area = np.broadcast_to(area, images.shape[:3])
    return model.sample(labels, edit=(images, area), **options)


def named_mask(name: str, size: tuple[int, int]) -> np.ndarray:
    """Returns the (h, w) mask of a name in `SHAPES`, or of a picture file, True where it is bright.

    Raises:
      ConfigError: there is neither such a name nor such a file.
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
    """Writes a picture of images, what is kept of them, and the edited images.

    Args:
      model: A model that samples.
      sources: Image files separated by commas; by default the first example of each class in the
        config's data, from its held-out split where there is one.
      mask: See `named_mask`.
      path: File to write.
      labels: Class of each image; by default that of the example.
      seed: Seed of the noise.

    Raises:
      ConfigError: an image or the mask cannot be read, or labels are missing.
    """
    shape = model.image_shape
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
    """Returns the images of files, cropped to `shape` as training images are."""
    try:
        return np.stack([read_image(name, name, shape) for name in files]), None
    except BadRecord as error:
        raise ConfigError(str(error)) from error


def _mask_file(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Returns the (h, w) mask of a picture file, True where it is bright."""
    from PIL import Image

    if not path.is_file():
        raise ConfigError(f"There is no mask {str(path)!r}: give a file or one of {list(SHAPES)}.")
    height, width = size
    gray = Image.open(path).convert("L").resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(gray) > 127
