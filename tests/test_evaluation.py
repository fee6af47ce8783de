"""Evaluation: sets of samples that no interruption changes, figures that say what they are of."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import jaxar
from jaxar import console, main, registry
from jaxar.config import ConfigError
from jaxar.evaluation import evaluate as evaluation
from jaxar.evaluation import features, fidelity
from jaxar.evaluation import sample_set as sampleset
from jaxar.evaluation.reference import write_reference
from jaxar.runs import setup
from jaxar.runs import train as training
from jaxar.runs.command import Command
from jaxar.runs.model import Model
from jaxar.runs.verbs import Flags
from tests.released import write_inception
from tests.shrink import shrunk, system_and_params

ROOT = Path(__file__).parents[1]
FIDELITY = "evaluation=fidelity(samples=30, network='digits', reference='data', batch_size=8)"


def model_of(*overrides):
    config, system, params = system_and_params("xar_digits", *overrides)
    return Model(config, system, params, setup.prepare(config).mesh)


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    return write_inception(tmp_path_factory.mktemp("inception"))


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(("count", "classes"), [(50_000, 1000), (30, 10), (7, 3), (3, 10), (1, 1)])
def test_labels_are_balanced_and_in_the_order_of_the_release(count, classes):
    labels = sampleset.labels_of(count, classes)
    assert np.ptp(np.bincount(labels, minlength=classes)) <= 1
    if count % classes == 0:
        np.testing.assert_array_equal(labels, np.repeat(np.arange(classes), count // classes))


def test_a_set_begun_again_ends_with_the_same_bytes(tmp_path):
    model = model_of()
    protocol = sampleset.sampling_protocol(model, count=30, seed=1)
    sampleset.sample_set(model, tmp_path / "once", protocol, batch_size=8)
    whole = contents(tmp_path / "once")
    assert len(whole) == 32
    with np.load(tmp_path / "once" / "images.npz") as arrays:
        images = arrays["arr_0"]
    assert images.shape == (30, 16, 16) and images.dtype == np.uint8
    picture = Image.open(tmp_path / "once" / "images" / "00007.png")
    np.testing.assert_array_equal(np.asarray(picture), images[7])
    assert picture.text["label"] == "2" and picture.text["seed"] == "1"

    rng = np.random.default_rng(0)
    for name in ("images.npz", *(f"images/{i:05}.png" for i in rng.permutation(30)[:12])):
        (tmp_path / "once" / name).unlink()
    (tmp_path / "once" / "images" / "00003.png.partial").write_bytes(b"cut short")
    sampleset.sample_set(model, tmp_path / "once", protocol, batch_size=8)
    again = contents(tmp_path / "once")
    assert {k: v for k, v in again.items() if k.suffix != ".partial"} == whole


@pytest.mark.parametrize("overrides", [(8, []), (5, []), (8, ["mesh.data=4"])])
def test_a_set_does_not_depend_on_batch_or_devices(tmp_path, overrides):
    batch_size, changes = overrides
    sets = []
    for name, size, model in (("a", 30, model_of()), ("b", batch_size, model_of(*changes))):
        protocol = sampleset.sampling_protocol(model, count=20, seed=1)
        sampleset.sample_set(model, tmp_path / name, protocol, batch_size=size)
        with np.load(tmp_path / name / "images.npz") as arrays:
            sets.append(arrays["arr_0"].astype(int))
    assert np.abs(sets[0] - sets[1]).max() <= 1  # a sum rounded otherwise may tip one level
    assert (sets[0] != sets[1]).mean() < 0.01


def test_samples_of_another_protocol_are_not_mixed(tmp_path):
    model = model_of()
    protocol = sampleset.sampling_protocol(model, count=4, seed=1)
    sampleset.sample_set(model, tmp_path, protocol, batch_size=4)
    other = sampleset.sampling_protocol(model, count=4, seed=2)
    with pytest.raises(ConfigError, match="seed: 2 here, 1 there"):
        sampleset.sample_set(model, tmp_path, other, batch_size=4)
    model.params = jax.tree.map(lambda x: x + 1e-3, model.params)
    moved = sampleset.sampling_protocol(model, count=4, seed=1)
    with pytest.raises(ConfigError, match="parameters_sha256"):
        sampleset.sample_set(model, tmp_path, moved, batch_size=4)


def test_figures_come_with_their_protocol(tmp_path, capsys):
    result = jaxar.evaluate(model_of(FIDELITY), workdir=tmp_path)
    assert list(result["figures"]) == ["frechet_distance_digits"]
    assert result["figures"]["frechet_distance_digits"] > 0
    sampling = result["sampling"]
    assert sampling["count"] == 30 and sampling["images_per_class"] == [3, 3]
    assert {"solver", "steps", "guidance"} <= sampling["sampling"].keys()
    assert {"seed", "ema_rate", "rounding"} <= sampling.keys()
    assert result["reference"]["images"]["count"] == 1442
    assert len(result["samples"]["pixels_sha256"]) == 64
    assert "2,048" in result["warnings"][0]
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith("result:"))
    assert "not FID" in line and "30 samples" in line and "data of xar_digits" in line
    assert "warning:" in said
    assert json.loads((tmp_path / "result.json").read_text()) == result
    (folder,) = tmp_path.glob("evaluation-*")
    assert json.loads((folder / "result.json").read_text()) == result

    before = (tmp_path / "result.json").read_bytes()
    jaxar.evaluate(model_of(FIDELITY), workdir=tmp_path)
    assert (tmp_path / "result.json").read_bytes() == before


@pytest.mark.parametrize("words", ["recognition(per_class=5)", "none", "fidelity(samples=7)"])
def test_network_and_reference_choose_fidelity_for_any_config(words, monkeypatch):
    model = types.SimpleNamespace(config=shrunk("xar_digits", f"evaluation={words}"))
    chosen = []
    monkeypatch.setattr(Command, "model", lambda self: model)
    monkeypatch.setattr(evaluation, "evaluate", lambda _, **given: chosen.append(given))
    flags = dict(network="digits", reference="data")
    evaluation.run(Command(Flags(**flags), model.config, []))
    samples = 7 if "samples" in words else 50_000
    assert chosen[0]["evaluation"] == fidelity.Fidelity(samples, **flags)


def test_fields_that_a_config_leaves_out_have_defaults(tmp_path, monkeypatch):
    model = model_of("evaluation=fidelity(samples=20)")
    monkeypatch.setattr(Command, "model", lambda self: model)
    flags = Flags(
        workdir=str(tmp_path / "run"),
        network="digits",
        reference="data",
        output=str(tmp_path / "drawn"),
    )
    evaluation.run(Command(flags, model.config, []))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (
        result["samples"]["count"] == 20 and len(list((tmp_path / "drawn/images").iterdir())) == 20
    )
    assert json.loads((tmp_path / "drawn" / "result.json").read_text()) == result


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fidelity(network='digits', reference='nowhere.npz')", "nowhere"),
        ("fidelity(network='digits')", "--reference"),
        ("fidelity(network='nowhere.pth', reference='data')", "nowhere"),
        ("recognition(reference='digits(size=8)')", r"\(8, 8, 1\), the model draws \(16, 16, 1\)"),
        ("recognition(reference='glyphs(size=16, num_classes=36)')", "36 classes"),
    ],
)
def test_what_an_evaluation_lacks_is_found_before_training(words, message, tmp_path):
    with pytest.raises((ConfigError, OSError), match=message):
        training.train(shrunk("xar_digits", f"evaluation={words}"), workdir=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "part",
    [
        dict(name="fidelity", samples=1),
        dict(name="fidelity", batch_size=0),
        dict(name="recognition", per_class=0),
    ],
)
def test_evaluations_check_their_fields(part):
    with pytest.raises(ConfigError, match=f"{list(part)[1]} must be a whole number of at least"):
        registry.build("evaluation", part)


def test_an_output_belongs_to_fidelity(tmp_path):
    with pytest.raises(ConfigError, match="fidelity"):
        jaxar.evaluate(model_of(), workdir=tmp_path, output=tmp_path / "drawn")


def test_models_without_images_are_refused_before_anything_is_drawn(tmp_path):
    latents = model_of("autoencoder=kl(weights='')", FIDELITY)
    with pytest.raises(ConfigError, match="give the autoencoder's weights"):
        jaxar.evaluate(latents, workdir=tmp_path)
    config, system, params = system_and_params("kl_glyphs", FIDELITY)
    rebuilt = Model(config, system, params, setup.prepare(config).mesh)
    with pytest.raises(ConfigError, match="kl_glyphs cannot sample; it can reconstruct"):
        jaxar.evaluate(rebuilt, workdir=tmp_path)
    assert not list(tmp_path.iterdir())


def pictures(folder, count, seed=0, size=(20, 24)):
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for i in range(count):
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.mark.slow
def test_images_are_judged_by_inception(inception, tmp_path):
    """A set against itself is at distance zero; what so few images cannot tell is left out."""
    samples = pictures(tmp_path / "samples", 6)
    result = jaxar.evaluate_images(samples, network=str(inception), reference=samples)
    figures = result["figures"]
    assert figures.keys() == {"fid", "sfid", "precision", "recall"}
    assert figures["fid"] < 1e-6 and figures["sfid"] < 1e-6
    assert figures["precision"] == figures["recall"] == 1
    assert result["left_out"].keys() == {
        "inception_score",
        "inception_score_std",
        "kid",
        "kid_std",
    }
    assert result["network"]["file"] == inception.name
    assert "TensorFlow 1" in result["rules"]["resize"]


def test_a_folder_and_an_array_of_the_same_images_agree(tmp_path):
    """So do real images of another size once they are brought to the samples'."""
    samples = pictures(tmp_path / "samples", 6)
    real = pictures(tmp_path / "real", 5, seed=1, size=(40, 31))
    files = sorted(samples.iterdir())
    np.savez(tmp_path / "samples.npz", np.stack([np.asarray(Image.open(f)) for f in files]))
    folder = jaxar.evaluate_images(samples, network="digits", reference=real)
    array = jaxar.evaluate_images(
        tmp_path / "samples.npz", network="digits", reference=real, output=tmp_path / "out"
    )
    assert array["figures"] == folder["figures"]
    assert array["samples"]["pixels_sha256"] == folder["samples"]["pixels_sha256"]
    assert folder["reference"]["images"]["size"] == [20, 24]


def test_features_are_kept_and_made_anew_for_other_images(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "CHUNK", 4)
    samples, real = pictures(tmp_path / "samples", 10), pictures(tmp_path / "real", 5, seed=1)
    run, calls = features.digit_features, []

    def counted(images):
        calls.append(len(images))
        return run(images)

    monkeypatch.setattr(features, "digit_features", counted)
    judge = lambda: jaxar.evaluate_images(samples, network="digits", reference=real)  # noqa: E731
    first = judge()
    assert calls == [4, 4, 2, 4, 1]
    (tmp_path / "samples.evaluation" / "features" / "samples-00002.npz").unlink()
    assert judge() == first and calls[5:] == [2]
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(samples / "3.png")
    assert judge() != first and calls[6:] == [4, 4, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--network=digits.*not FID"),
        (["--network=digits"], "--reference"),
        (["--network=digits", "--reference=data"], "needs a config"),
        (["--network=digits", "--reference=nowhere.npz"], "nowhere.npz"),
        (["--network=nowhere.pth", "--reference=data"], "nowhere.pth"),
        (["--network=digits", "--reference=STATISTICS"], "no images"),
        (["--network=digits", "--reference=SAMPLES", "--samples=nowhere"], "neither a folder"),
        (["--network=digits", "--reference=SAMPLES", "--samples=MIXED"], "several sizes"),
        (["--network=digits", "--reference=SAMPLES", "--config=xar_b"], "leave out --config"),
        (["--seed=3"], "--seed belongs to --mode=sample"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message, tmp_path, capsys):
    samples = pictures(tmp_path / "samples", 3)
    mixed = pictures(tmp_path / "mixed", 3)
    Image.new("RGB", (5, 5)).save(mixed / "9.png")
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(2048), sigma=np.eye(2048, dtype=np.float32))
    names = {"STATISTICS": tmp_path / "statistics.npz", "SAMPLES": samples, "MIXED": mixed}
    for name, path in names.items():
        arguments = [argument.replace(name, str(path)) for argument in arguments]
    if not any(argument.startswith("--samples") for argument in arguments):
        arguments = [*arguments, f"--samples={samples}"]
    with pytest.raises(SystemExit) as stopped:
        main.main(["--mode=evaluate", *arguments])
    assert stopped.value.code == console.BAD_INPUT
    error = capsys.readouterr().err
    assert re.search(message, error) and "Traceback" not in error


@pytest.mark.slow
def test_killed_three_times_it_writes_the_same_result(tmp_path):
    """SIGKILL at random moments while samples are drawn and judged; the files are equal."""
    base = [sys.executable, "-m", "jaxar.main", "--config=xar_digits"]
    small = ["model.width=16", "model.depth=(1,1)", "model.heads=2", "sample.steps=2", "steps=2"]
    small += ["optimizer.warmup_steps=1", "batch_size=8", "sample.every=0", "evaluation=none"]
    fields = [f"--config.{field}" for field in small]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONUNBUFFERED": "1"}
    options = dict(cwd=ROOT, env=environment)
    train = [*base, f"--workdir={tmp_path}", *fields]
    subprocess.run(train, check=True, capture_output=True, **options)
    evaluation = "fidelity(samples=1500, network='digits', reference='data', batch_size=50)"
    evaluate = [*base, "--mode=evaluate", f"--workdir={tmp_path}"]
    evaluate += [f"--config.evaluation={evaluation}"]

    def output(name):
        return [*evaluate, f"--output={tmp_path / name}"]

    began = time.monotonic()
    subprocess.run(output("once"), check=True, capture_output=True, **options)
    seconds, rng, kills = time.monotonic() - began, random.Random(), 0
    while kills < 3:
        process = subprocess.Popen(
            output("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options
        )
        time.sleep(rng.uniform(0.5, 1) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    subprocess.run(output("killed"), check=True, capture_output=True, **options)
    once, killed = (contents(tmp_path / name) for name in ("once", "killed"))
    leftovers = {name for name in killed if name.suffix == ".partial"}
    assert once.keys() == killed.keys() - leftovers
    for name in once:
        if name.suffix != ".json" or name.name in ("result.json", "protocol.json"):
            assert once[name] == killed[name], name


@pytest.mark.slow
def test_statistics_and_their_images_give_one_distance(inception, tmp_path):
    """A reference of statistics alone leaves out what needs images, and says so."""
    samples = pictures(tmp_path / "samples", 12)
    network = features.open_network(str(inception), setup.sharding.make_mesh(ONE))
    images = fidelity.collections.open_images(samples)
    found = features.compute(images, network, tmp_path / "features", "samples")
    pool, spatial = (fidelity._moments(found, name) for name in ("pool", "spatial"))
    write_reference(tmp_path / "adm.npz", pool, spatial)
    result = jaxar.evaluate_images(samples, network=str(inception), reference=tmp_path / "adm.npz")
    assert result["figures"].keys() == {"fid", "sfid", "inception_score", "inception_score_std"}
    assert result["figures"]["fid"] < 1e-6 and result["figures"]["sfid"] < 1e-6
    assert result["left_out"].keys() == {"precision", "recall", "kid", "kid_std"}


ONE = {"data": 1, "fsdp": 1, "tensor": 1}
