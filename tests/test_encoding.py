"""The cache of latents: what the autoencoder says of every image, whatever interrupts it."""

import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

import jaxar
from jaxar import config as configs
from jaxar import console, main
from jaxar.config import ConfigError
from jaxar.data import latents
from jaxar.data.folder import ImageFolder
from jaxar.data.loader import DataError
from jaxar.data.source import Digits
from jaxar.evaluation import evaluate as evaluation
from jaxar.nn.module import bind
from jaxar.runs import encode as encoding
from jaxar.runs import export as exporting
from jaxar.runs import load as loading
from jaxar.runs import setup
from jaxar.runs import train as training
from tests.released import write_tiny
from tests.shrink import shrunk, with_autoencoder

SMALL = ("autoencoder.width=32", "data_shape=(2,3,32)", "plan=token", "num_classes=3")
SIZE = (32, 48)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten pictures in three classes, wider than high, all a little larger than needed."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(10):
        path = root / f"class{i % 3}" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 255, (34 + i, 60, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("weights"))[1]


@pytest.fixture(scope="module")
def config(tokenizer):
    return shrunk("xar_b", *SMALL, f"autoencoder.weights={str(tokenizer)!r}")


@pytest.fixture(scope="module")
def cache(config, folder, tmp_path_factory):
    """All of it, in one go, by two devices."""
    two = configs.override(config, ["mesh.data=2"])
    return encoding.encode(
        two, folder, tmp_path_factory.mktemp("cache"), batch_size=3, shard_size=4
    )


def test_the_cache_holds_what_the_encoder_says(config, folder, cache):
    ready = setup.prepare(config)
    autoencoder = loading.load_autoencoder(config, ready)
    network = bind(ready.network, autoencoder.params)
    images = ImageFolder(str(folder), SIZE, flip=False)
    source = latents.LatentRecords(str(cache), flip=False)
    assert source.shape == (2, 3, 32) and len(source) == 10
    np.testing.assert_array_equal(source.labels(), images.labels())
    moments = jax.jit(network.moments)
    for i in range(10):
        image = images.read(i, np.random.default_rng(0))["data"][None]
        read = source.read(i, np.random.default_rng(0))["data"]
        np.testing.assert_allclose(read, moments(image)[0], atol=1e-4)
        mirrored, _ = source._layout.decode(source._records[i], True)
        np.testing.assert_allclose(mirrored, moments(image[:, :, ::-1])[0], atol=1e-4)


def test_the_scale_that_is_suggested_gives_unit_variance(cache):
    source = latents.LatentRecords(str(cache), flip=False)
    moments = np.stack([source.read(i, np.random.default_rng(0))["data"] for i in range(10)])
    mean, deviation = moments[..., :16], np.exp(moments[..., 16:] / 2)
    drawn = mean + deviation * np.random.default_rng(1).normal(size=(200, *mean.shape))
    assert encoding._deviation(source) == pytest.approx(drawn.std(), rel=0.02)


def test_the_manifest_tells_where_latents_come_from(cache, config):
    manifest = json.loads((cache / "manifest.json").read_text())
    assert manifest["image_size"] == list(SIZE) and "ADM" in manifest["crop"]
    assert manifest["counts"] == [4, 3, 3] and manifest["left_out"] == []
    assert manifest["autoencoder"]["width"] == 32
    autoencoder = loading.load_autoencoder(config, setup.prepare(config))
    facts = autoencoder.origin.facts(autoencoder.params)
    assert manifest["autoencoder_weights"] == facts and facts["file"] == "kl16-tiny.npz"
    assert [shard["count"] for shard in manifest["shards"]] == [4, 4, 2]


@pytest.mark.parametrize("whole", [0, 1, 2])
def test_interrupted_it_goes_on_and_ends_with_the_same_bytes(
    config, folder, cache, tmp_path, monkeypatch, whole
):
    two = configs.override(config, ["mesh.data=2"])
    write, count = encoding.LatentWriter.write_shard, []

    def interrupted(self, examples, **options):
        if len(count) == whole:
            next(iter(examples))
            raise KeyboardInterrupt
        count.append(1)
        write(self, examples, **options)

    arguments = dict(batch_size=3, shard_size=4)
    with monkeypatch.context() as patch:
        patch.setattr(encoding.LatentWriter, "write_shard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            encoding.encode(two, folder, tmp_path, **arguments)
    assert not (tmp_path / "manifest.json").exists()
    if whole:
        with pytest.raises(ConfigError, match=r"begun with other settings .*dtype"):
            encoding.encode(two, folder, tmp_path, **arguments, dtype="float16")
    encoding.encode(two, folder, tmp_path, **arguments)
    names = sorted(file.name for file in cache.iterdir())
    assert names == sorted(file.name for file in tmp_path.iterdir())
    for name in names:
        assert (cache / name).read_bytes() == (tmp_path / name).read_bytes(), name
    with pytest.raises(ConfigError, match="already holds latents"):
        encoding.encode(two, folder, tmp_path, **arguments)


def test_images_that_cannot_be_read_are_left_out_and_named(config, folder, tmp_path, monkeypatch):
    for path in folder.rglob("*.png"):
        copy = tmp_path / "pictures" / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (tmp_path / "pictures" / "class1" / "4.png").write_bytes(b"no picture")
    arguments = (config, tmp_path / "pictures", tmp_path / "cache")
    for _ in range(2):  # another try does not get past it either
        with pytest.raises(DataError, match=r"1 images cannot be read.*4\.png"):
            encoding.encode(*arguments, batch_size=3)
    monkeypatch.setattr(encoding, "MAX_LEFT_OUT", 0.2)
    encoding.encode(*arguments, batch_size=3)
    source = latents.LatentRecords(str(tmp_path / "cache"))
    assert len(source) == 9 and source.manifest["counts"] == [4, 2, 3]
    assert "4.png" in source.manifest["left_out"][0]


@pytest.mark.slow
def test_training_reads_the_cache_and_refuses_what_does_not_fit(config, cache, tokenizer, tmp_path):
    own = configs.override(config, [f"data=latent_records(path={str(cache)!r})"])
    training.train(own, workdir=tmp_path / "run")
    model = jaxar.load("xar_b", workdir=tmp_path / "run")
    assert model.sample([0], steps=2).shape == (1, *SIZE, 3)

    changed = ["autoencoder.channels=8", "data_shape=(2,3,32)"]
    with pytest.raises(ConfigError, match="channels is 16 there, 8 in the config"):
        setup.open_source(configs.override(own, changed))
    with np.load(tokenizer) as state:
        other = {**state}
    other["decoder.conv_out.bias"] += 1
    np.savez(tmp_path / "other.npz", **other)
    foreign = configs.override(own, [f"autoencoder.weights={str(tmp_path / 'other.npz')!r}"])
    with pytest.raises(ConfigError, match=r"parameters have the SHA-256 .*other\.npz have"):
        training.train(foreign, workdir=tmp_path / "other")


@pytest.fixture(scope="module")
def discrete(tmp_path_factory):
    """A config of codes on 8 x 8 digits, with an autoencoder of random weights, and its cache."""
    root = tmp_path_factory.mktemp("discrete")
    config = with_autoencoder(
        shrunk("var_digits", "evaluation=recognition(per_class=2, reference='digits(size=8)')"),
        root / "autoencoder",
    )
    source = 'digits(split="held_out", size=8)'
    cache = encoding.encode(config, source, root / "cache", batch_size=128)
    return configs.override(config, [f"data.path={str(cache)!r}"])


def test_a_quantizers_features_are_cached_as_they_are(discrete):
    autoencoder = loading.load_autoencoder(discrete, setup.prepare(discrete))
    network = bind(autoencoder.network, autoencoder.params)
    images = Digits("held_out", size=8)
    source = latents.LatentRecords(discrete.data.path, flip=False)
    assert source.shape == (4, 4, 8) and len(source) == len(images)
    numbers = range(0, len(images), 50)
    data = np.stack([images.read(i, np.random.default_rng(0))["data"] for i in numbers])
    features = jax.jit(network.features)
    for mirrored, expected in ((False, features(data)), (True, features(data[:, :, ::-1]))):
        read = [source._layout.decode(source._records[i], mirrored)[0] for i in numbers]
        np.testing.assert_allclose(read, expected, atol=1e-4)
    assert source.manifest["quantizer"] == dict(discrete.quantizer)


def test_codes_are_trained_on_sampled_judged_and_shared(discrete, tmp_path):
    model = training.train(discrete, workdir=tmp_path)
    figures = evaluation.evaluate(model, workdir=tmp_path)
    assert figures["samples"] == 20 and 0 <= figures["recognised"] <= 1
    again = jaxar.load(exporting.export(model, tmp_path / "exported"))
    images = model.sample([3, 1], seed=5)
    assert images.shape == (2, 8, 8, 1)
    np.testing.assert_array_equal(again.sample([3, 1], seed=5), images)
    model.config = configs.override(discrete, ["evaluation.reference=digits(size=16)"])
    with pytest.raises(ConfigError, match=r"images of \(16, 16, 1\), the model draws \(8, 8, 1\)"):
        evaluation.evaluate(model, workdir=tmp_path)


def test_codes_need_the_tokenizer_that_made_their_cache(discrete, tmp_path):
    bare = configs.override(discrete, ["autoencoder.weights=''"])
    with pytest.raises(ConfigError, match="needs its weights"):
        training.train(bare, workdir=tmp_path)
    other = configs.override(discrete, ["quantizer.vocabulary=16"])
    with pytest.raises(ConfigError, match=r"quantizer\.vocabulary is 32 there, 16 in the config"):
        setup.open_source(other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=xar_digits", "--source=x"], "needs an autoencoder and its weights"),
        (["--config=xar_b", "--source=x"], "give --tokenizer=FILE"),
        (["--config=xar_b", "--source=/nowhere", "TOKENIZER"], "--source: There is no"),
        (
            ["--config=xar_b", "--source=glyphs(size=16)", "TOKENIZER"],
            r"\(16, 16, 1\).*256, 256, 3",
        ),
        (["--config=xar_b", "--source=folder(path='x',flip=True)", "TOKENIZER"], "leave it out"),
        (["--config=xar_b", "--source=glyphs(siez=16)", "TOKENIZER"], "mean '--source.size'"),
        (["--config=xar_b"], "needs --source"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message, tokenizer, tmp_path, capsys):
    arguments = [f"--tokenizer={tokenizer}" if a == "TOKENIZER" else a for a in arguments]
    if any("tokenizer" in a for a in arguments):
        arguments.append("--config.autoencoder.width=32")
    with pytest.raises(SystemExit) as stopped:
        main.main([*arguments, "--mode=encode", f"--output={tmp_path}"])
    assert stopped.value.code == console.BAD_INPUT
    assert re.search(message, capsys.readouterr().err)
