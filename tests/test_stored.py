"""What earlier versions stored is loaded, and goes on as it would have (tests/stored/make.py)."""

import json
from pathlib import Path

import numpy as np
import pytest

import jaxar
from jaxar import config as configs
from jaxar import tree
from jaxar.data.latents import LatentRecords
from jaxar.runs import setup
from jaxar.runs import train as training
from tests.stored.make import CACHES, EXPORTS, RUNS, next_losses, shown, unpack

STORED = Path(__file__).parent / "stored"
VERSIONS = sorted(path.name for path in STORED.glob("v*"))
EXPECTED = {v: json.loads((STORED / v / "expected.json").read_text()) for v in VERSIONS}


@pytest.fixture(params=VERSIONS)
def version(request, tmp_path, monkeypatch):
    """The working directory is one in which that version has trained, encoded and exported."""
    unpack(request.param, tmp_path)
    monkeypatch.chdir(tmp_path)
    return request.param


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_loaded_and_goes_on_with_the_same_losses(version, name, monkeypatch):
    """Not bit for bit: other processors add in another order, and so may other versions of XLA."""
    monkeypatch.setattr(training, "_draw", lambda *_, **__: None)  # pictures take time
    expected = EXPECTED[version][name]
    model = jaxar.load(name)
    np.testing.assert_allclose(shown(model), expected["shown"], rtol=1e-4, atol=1e-4)
    if "losses" in expected:
        losses = next_losses(Path("runs") / name)
        np.testing.assert_allclose(losses, expected["losses"], rtol=1e-5)


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_is_the_model_of_its_run(version, name):
    exported, run = jaxar.load(f"exports/{name}"), jaxar.load(name)
    there, here = tree.paths(exported.params), tree.paths(run.params)
    assert there.keys() == here.keys() and exported.step == run.step > 0
    for path, leaf in here.items():
        np.testing.assert_array_equal(there[path], leaf, path)
    same = configs.differences(exported.config, run.config, ignore=["autoencoder.weights"])
    assert not same and (exported.autoencoder is None) == (run.autoencoder is None)
    if run.autoencoder is not None:
        assert tree.digest(exported.autoencoder.params) == tree.digest(run.autoencoder.params)


@pytest.mark.parametrize("name", CACHES)
def test_a_cache_is_opened_and_fits_its_autoencoder(version, name):
    user, _ = CACHES[name]
    source = LatentRecords(f"runs/{name}", flip=False)
    latents = [source.read(i, np.random.default_rng(0))["data"] for i in range(len(source))]
    assert np.shape(latents) == (24, 4, 4, 8) and np.std(latents) > 0
    model = jaxar.load(user)
    assert len(setup.open_source(model.config)) == 24
    training._require_same_weights(model.config, model.autoencoder, source.manifest)
