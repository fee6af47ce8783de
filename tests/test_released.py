"""Released weights in: a file and a config make pictures, checkpoints and folders to share."""

import functools
import json
import sys
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxar
from jaxar import config as configs
from jaxar import main, registry
from jaxar.config import ConfigError
from jaxar.heads.flow import Solving
from jaxar.nn.module import bind
from jaxar.objectives.perceptual import perceptual_distance
from jaxar.runs import convert as converting
from jaxar.runs import export as exporting
from jaxar.runs import load as loading
from jaxar.runs import picture
from jaxar.schemes.base import Settings
from jaxar.training.loop import fit
from jaxar.weights.files import read_state
from tests.given import Given, sample_given
from tests.released import GOLDENS, TINY, state_of, write_inception, write_tiny
from tests.shrink import arrays


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="module")
def model(files):
    return jaxar.load("xar_b", weights=files[0], tokenizer=files[1], overrides=TINY)


def sampled(model, case, solver="euler_maruyama"):
    """Returns (b, h, w, c) latents for the noise of a parity case, in float64 as released."""
    plan = model.system.plan
    draws = jnp.asarray(case[f"sample/{solver}/noise"])
    per_entity = draws.shape[0] // plan.entities
    labels = jnp.asarray(case["sample/labels"])

    given = Given(normal_of=lambda entity, number, shape: draws[entity * per_entity + number])
    with jax.enable_x64(True):
        solving = Solving(solver, int(case["sample/num_steps"]), dtype="float64")
        guidance = float(case["sample/cfg"])
        tokens = sample_given(
            model.system, model.params, labels, guidance, Settings(solving), given
        )
    return np.asarray(jax.jit(model.system.entities.paste)(tokens))


def check_pictures(model, case, path):
    """Compares latents with the released sampler's and writes what the decoder makes of them."""
    scale = model.config.tokenizer.scale
    latents = sampled(model, case)
    expected = np.moveaxis(case["sample/euler_maruyama/latents"], 1, -1)
    np.testing.assert_allclose(latents * scale, expected, rtol=1e-3, atol=2e-3)
    decoder = model.autoencoder
    images = jax.jit(lambda p, z: bind(decoder.network, p).decode(z))(decoder.params, latents)
    picture.grid(np.asarray(images), columns=len(images)).save(path)
    assert np.asarray(Image.open(path)).std() > 0


def test_from_files_to_pictures(model, tmp_path):
    with np.load(GOLDENS / "xar_tiny.npz") as case:
        check_pictures(model, case, tmp_path / "grid.png")
    images = model.sample([3, 999], seed=1)
    assert images.shape == (2, 256, 256, 3) and np.abs(images).max() <= 1
    latents = model.sample([3, 999], seed=1, latents=True)
    assert latents.shape == (2, 16, 16, 16)


def test_without_a_tokenizer_latents_are_sampled(files, model):
    bare = jaxar.load("xar_b", weights=files[0], overrides=TINY)
    np.testing.assert_array_equal(bare.sample([5], seed=2), model.sample([5], seed=2, latents=True))


def test_weights_of_another_model_are_refused(files, tmp_path):
    with pytest.raises(ConfigError, match=r"xar-tiny\.npz.*do not fit") as caught:
        jaxar.load("xar_b", weights=files[0], overrides=[*TINY, "model.depth=(3,2)"])
    assert "missing key encoder_blocks.2.attn.qkv.weight" in str(caught.value)
    with pytest.raises(ConfigError, match=r"unused key encoder\.conv_in\.weight"):
        jaxar.load("xar_b", weights=files[1], overrides=TINY)
    with pytest.raises(ConfigError, match=r"missing key encoder\.conv_in\.weight"):
        jaxar.load("xar_b", weights=files[0], tokenizer=files[0], overrides=TINY)
    with pytest.raises(ConfigError, match=r"no nowhere\.ckpt, where the autoencoder's weights"):
        jaxar.load("xar_b", weights=files[0], tokenizer="nowhere.ckpt", overrides=TINY)
    with pytest.raises(ConfigError, match=r"autoencoder has no choice .unknown."):
        jaxar.load("kl_glyphs", weights=files[0], overrides=["model.name=unknown"])


@pytest.mark.slow
def test_converted_weights_are_a_run(files, model, tmp_path):
    """They sample as the file does; training begins from them, and only once."""
    arguments = ["--config=xar_b", "--mode=convert", f"--source={files[0]}"]
    arguments += [f"--workdir={tmp_path}", f"--tokenizer={files[1]}"]
    main.main([*arguments, *(f"--config.{field}" for field in TINY)])
    converted = jaxar.load("xar_b", workdir=tmp_path)
    chex.assert_trees_all_equal(converted.params, model.params)
    chex.assert_trees_all_equal(converted.autoencoder.params, model.autoencoder.params)
    assert converted.step == 0
    with pytest.raises(ConfigError, match="holds a run already"):
        converting.convert(model.config, files[0], workdir=tmp_path)
    with pytest.raises(ConfigError, match="holds converted weights, no 'params'"):
        jaxar.load("xar_b", workdir=tmp_path, ema=False)

    short = ["steps=2", "checkpoint.every=1", "optimizer.warmup_steps=0", "log_every=1"]
    short += ["optimizer.base_learning_rate=1e-30", "optimizer.final_learning_rate=0"]
    config = configs.override(model.config, [*short, "sample.every=0", "data_shape=(16,16,32)"])
    state = fit(
        model.system, model.frozen, arrays(config), config, tmp_path, model.mesh, lambda *_: None
    )
    assert int(state.step) == 2
    for got, began in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(model.params), strict=True
    ):
        np.testing.assert_allclose(got, began, atol=1e-6)


def test_exported_models_load_from_their_folder(model, tmp_path):
    folder = exporting.export(model, tmp_path / "exported")
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md",
        "config.json",
        "export.json",
        "model.safetensors",
        "tokenizer.safetensors",
    ]
    again = jaxar.load(folder)
    chex.assert_trees_all_equal(again.params, model.params)
    np.testing.assert_array_equal(again.sample([7], seed=3), model.sample([7], seed=3))
    card = (folder / "README.md").read_text()
    hashes = json.loads((folder / "export.json").read_text())["files"]
    assert all(digest in card for digest in hashes.values()) and "xar-tiny.npz" in card
    assert str(tmp_path) not in card + (folder / "config.json").read_text()
    with pytest.raises(ConfigError, match="already"):
        exporting.export(model, folder)

    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(ConfigError, match=r"model\.safetensors is missing or not what"):
        jaxar.load(folder)


def test_names_on_the_hub(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"no folder someone/xar.*pip install 'jaxar\[hub\]'"):
        jaxar.load("someone/xar")
    folder = exporting.export(model, tmp_path / "hub")
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(folder)

    hub = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    again = jaxar.load("someone/xar")
    chex.assert_trees_all_equal(again.params, model.params)
    assert asked == [("someone/xar", [loading.CONFIG, loading.EXPORT, *WEIGHTS])]


@pytest.mark.slow
def test_inception_serves_as_a_feature_network(tmp_path):
    path = write_inception(tmp_path)
    network = registry.build("perceptual", {"name": "inception", "weights": str(path)})
    with read_state(path) as state:
        params = registry.convert(network.frozen.reader, state, network.frozen.shapes)
    features = functools.partial(network.maps, jax.tree.map(jnp.asarray, params))
    a, b = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 1, 40, 36, 1)), jnp.float32)
    assert [m.shape[-1] for m in features(a)] == [64, 192, 288]
    assert float(perceptual_distance(features, a, a)[0]) == 0
    distance, gradient = jax.value_and_grad(lambda b: perceptual_distance(features, a, b)[0])(b)
    assert 0 < float(distance) <= 4 and float(jnp.abs(gradient).max()) > 0
    with pytest.raises(ValueError, match="too small for Inception"):
        features(a[:, :20])
    with pytest.raises(ConfigError, match="nowhere"):
        registry.build("perceptual", {"name": "inception", "weights": "nowhere.pth"})


WEIGHTS = (loading.MODEL, loading.TOKENIZER)


@pytest.mark.slow
def test_full_size_files_written_by_pytorch(tmp_path):
    """xAR-B and KL-16 as .pth and .ckpt, loaded, sampled, decoded: the released code's latents."""
    torch = pytest.importorskip("torch")
    for name, file, wrap in (
        ("xar_base", "xAR-B.pth", lambda state: state),
        ("kl16", "kl16.ckpt", lambda state: {"model": state, "epoch": 3}),
    ):
        state = {key: torch.from_numpy(value) for key, value in state_of(name).items()}
        torch.save(wrap(state), tmp_path / file)
    model = jaxar.load(
        "xar_b",
        weights=tmp_path / "xAR-B.pth",
        tokenizer=tmp_path / "kl16.ckpt",
        overrides=["model.dtype=float32"],
    )
    with np.load(GOLDENS / "xar_base.npz") as case:
        check_pictures(model, case, tmp_path / "grid.png")
