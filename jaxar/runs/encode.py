"""The verb `encode`: caches the latents of images, so that training reads no pixels."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxar import config as configs
from jaxar import registry
from jaxar.config import ConfigError
from jaxar.console import Bar, say
from jaxar.data import loader
from jaxar.data.ahead import batches_ahead
from jaxar.data.latents import LatentRecords
from jaxar.data.records import RecordLayout
from jaxar.data.source import BadRecord
from jaxar.data.writer import LatentWriter
from jaxar.nn.module import bind
from jaxar.parallel import distributed, sharding
from jaxar.runs.command import Command
from jaxar.runs.load import load_autoencoder
from jaxar.runs.model import Autoencoder
from jaxar.runs.setup import autoencoder_settings, describe, prepare

CROP = "ADM centre crop: halved by a box filter, then bicubic, then the middle"
MAX_LEFT_OUT = 0.001
"""Share of the images that may be unreadable."""


def run(command: Command) -> None:
    """Encodes the images of --source to --output."""
    encode(command.config, str(command.flags.source), str(command.flags.output))


def encode(
    config: Any,
    source: str | Path | Any,
    output: str | Path,
    *,
    tokenizer: str | Path | None = None,
    batch_size: int = 64,
    shard_size: int = 8192,
    dtype: str = "float32",
) -> Path:
    """Returns the folder that now holds the latents of images and of their mirror images.

    Latents are unscaled: mean and log-variance of a variational autoencoder, or the feature map
    that a quantizer turns into codes. They are written to ArrayRecord shards that the source
    `latent_records` reads. A call that was interrupted goes on with the missing shards, which come
    out the same. Several processes divide the shards, and each uses its own devices.

    Args:
      config: Config with the autoencoder.
      source: A folder of class folders; or a part of config.data, as a spec or in words:
        'tfds(dataset="imagenet2012", size=256, flip=False)'.
      output: Folder to write.
      tokenizer: Weights of the autoencoder; those of `config.autoencoder.weights` by default.
      batch_size: Images in a batch.
      shard_size: Latents in a file.
      dtype: Type of the stored latents, "float32" or "float16".

    Raises:
      ConfigError: there is no autoencoder, its weights or the images do not fit, or `output` holds
        other latents.
      DataError: more than `MAX_LEFT_OUT` of the images cannot be read.
    """
    if tokenizer is not None:
        config = configs.override(config, [f"autoencoder.weights={str(tokenizer)!r}"])
    ready = prepare(config)
    if distributed.many():
        ready = dataclasses.replace(ready, mesh=sharding.own_mesh())
    autoencoder = load_autoencoder(config, ready)
    if autoencoder is None:
        raise ConfigError("encoding needs an autoencoder and its weights: give --tokenizer=FILE.")
    images = _open_images(config, source, autoencoder.network)
    h, w, _ = images.shape
    layout = RecordLayout(_shape(autoencoder, images.shape), dtype, True)
    facts = {
        **autoencoder_settings(config),
        "autoencoder_weights": autoencoder.origin.facts(autoencoder.params),
        "image_size": [h, w],
        "crop": CROP,
        "source": loader.fingerprint(images),
    }
    try:
        writer = LatentWriter(
            str(output),
            layout,
            num_classes=images.num_classes,
            shard_size=shard_size,
            facts=facts,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    say("devices", describe(ready.mesh))
    say("source", f"{len(images):,} images of {h} x {w} in {images.num_classes} classes")
    run = _encoder(autoencoder, ready.mesh)
    parts = sharding.batch_parts(ready.mesh)
    _write(writer, images, run, -(-batch_size // parts) * parts)
    distributed.meet("all is encoded")
    if distributed.first():
        _require_few(writer.left_out(), images)
        say("written", f"{writer.finish():,} latents of {layout.shape} to {output}")
        if "scale" in config.tokenizer:
            scale = 1 / _deviation(LatentRecords(str(output), flip=False))
            say("scale", f"config.tokenizer.scale={scale:.4g} gives them about unit variance")
    distributed.meet("the manifest is written")
    return Path(output)


def _deviation(source: LatentRecords) -> float:
    """Returns the standard deviation of latents drawn from up to 1,000 records, over all channels.

    Models learn badly from latents whose variance differs from that of their noise, so users of
    their own autoencoder need this number.
    """
    numbers = np.linspace(0, len(source) - 1, min(1000, len(source))).astype(int).tolist()
    moments = np.stack([source.read(i, np.random.default_rng(0))["data"] for i in numbers])
    mean, log_variance = np.split(moments.astype(np.float64), 2, -1)
    return float(np.sqrt(mean.var() + np.exp(np.clip(log_variance, -30, 20)).mean()))


def _open_images(config: Any, source: str | Path | Any, network: Any) -> Any:
    """Returns the data source of --source, without random flips, at the size of the autoencoder."""
    h, w, _ = config.data_shape
    size = (h * network.factor, w * network.factor)
    like = configs.spec("folder", path="", size=size, channels=network.image_channels, flip=False)
    if isinstance(source, str | Path):
        text = str(source)
        is_path = "(" not in text
        source = like if is_path else configs.read_spec("--source", text, like)
        if is_path:
            source.path = text
    if source.get("flip"):
        raise ConfigError(
            "--source: flip=True would mix images with their mirror images: leave it out."
        )
    if source.name in ("folder", "tfds"):
        source = configs.spec(**{"flip": False, "size": size, **source})
    try:
        images = registry.build("data", source, where="--source")
    except ConfigError as error:
        raise ConfigError(str(error).replace("config.--source", "--source", 1)) from error
    wanted = (*size, network.image_channels)
    if tuple(images.shape) != wanted:
        raise ConfigError(
            f"--source gives images of {images.shape}; this config's latents of "
            f"{h} x {w} come from {wanted}."
        )
    return images


def _shape(autoencoder: Autoencoder, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of the latents of one image."""
    image = jax.ShapeDtypeStruct((1, *shape), np.float32)

    def kept(params, image):
        return bind(autoencoder.network, params).record(image)

    return jax.eval_shape(kept, autoencoder.params, image).shape[1:]


def _encoder(autoencoder: Autoencoder, mesh: Any) -> Callable[[np.ndarray], Any]:
    """Returns the function from images to the latents of images and mirror images, on devices."""

    @jax.jit
    def run(params, images):
        network = bind(autoencoder.network, params)
        with jax.default_matmul_precision("highest"):
            return network.record(images), network.record(images[:, :, ::-1])

    place = sharding.batch_sharding(mesh)
    return lambda images: run(autoencoder.params, jax.device_put(images, place))


def _write(writer: LatentWriter, images: Any, run: Any, batch_size: int) -> None:
    """Writes this process's share of the missing shards."""
    size, total = writer.shard_size, len(images)
    there = np.zeros(-(-total // size), bool)
    there[writer.whole()] = True
    missing = np.flatnonzero(~distributed.told(there))
    _require_few(writer.left_out(), images)
    if there.any():
        say("resume", f"{there.sum():,} of {len(there):,} shards are written already")
    mine = [
        (int(number), range(number * size, min((number + 1) * size, total)))
        for number in missing[jax.process_index() :: jax.process_count()]
    ]
    bar = Bar("encode", sum(len(numbers) for _, numbers in mine))
    done = 0
    for number, numbers in mine:
        left_out: list[str] = []
        examples = _examples(images, numbers, run, batch_size, left_out, bar, done)
        writer.write_shard(examples, number=number, left_out=left_out)
        done += len(numbers)
        _require_few(writer.left_out(), images)


def _require_few(left_out: list[str], images: Any) -> None:
    """Raises DataError where too many images could not be read."""
    if len(left_out) > MAX_LEFT_OUT * len(images):
        raise loader.DataError(
            f"{len(left_out)} images cannot be read, more than {MAX_LEFT_OUT:.1%} of "
            f"{len(images):,}: the last is {left_out[-1]}"
        )


def _examples(
    images: Any,
    numbers: range,
    run: Any,
    batch_size: int,
    left_out: list[str],
    bar: Bar,
    done: int,
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yields latents, latents of the mirror image, and label, with one batch encoded ahead.

    Args:
      images: Data source.
      numbers: Numbers of the images.
      run: Function that `_encoder` returns.
      batch_size: Images in a batch.
      left_out: List to which the reason is added for each image that cannot be read.
      bar: Bar that counts images.
      done: Count before the first of these images.
    """

    def read(number: int) -> Any:
        try:
            return images.read(number, np.random.default_rng(number))
        except BadRecord as error:
            return str(error)

    waiting = None
    for batch in batches_ahead(read, numbers, batch_size):
        left_out += [record for record in batch if isinstance(record, str)]
        good = [record for record in batch if not isinstance(record, str)]
        data = np.zeros((batch_size, *images.shape), np.float32)
        for i, record in enumerate(good):
            data[i] = record["data"]
        started = run(data), [int(record["condition"]) for record in good]
        if waiting:
            yield from _fetched(*waiting)
        waiting = started
        done += len(batch)
        bar.count(done)
    if waiting:
        yield from _fetched(*waiting)


def _fetched(latents: Any, labels: list[int]) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yields the examples of a batch, once the devices have finished it."""
    straight, mirrored = jax.device_get(latents)
    yield from zip(straight, mirrored, labels, strict=False)  # the batch may be padded
