"""Own parts in what is read: nothing is imported that nobody trusts."""

import json
import sys

import pytest

from jaxar import checkpoint, main
from jaxar.config import ConfigError, from_json, load, override, to_json, trusting
from jaxar.data.source import Digits
from jaxar.runs import load as loading
from jaxar.runs import setup
from jaxar.runs import train as training

OWN = "own_package.parts:Digits"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that tells when it is imported."""
    folder = tmp_path / "own_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    marker = tmp_path / "imported"
    (folder / "parts.py").write_text(
        f"open({str(marker)!r}, 'w')\nfrom jaxar.data.source import Digits\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield marker
    for name in [name for name in sys.modules if name.startswith("own_package")]:
        del sys.modules[name]


def stored(path, value):
    """The text of a run's config in which a setting is another one."""
    tree = json.loads(to_json(load("xar_digits")))
    *groups, field = path.split(".")
    group = tree
    for name in groups:
        group = group[name]
    group[field] = value
    return json.dumps(tree)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("data.name", OWN),
        ("system", OWN),
        ("flow.path.name", OWN),
        ("evaluation.reference", f"{OWN}(size=16)"),  # read as words
        ("evaluation.reference", f" {OWN} "),
        ("plan.height", {"name": OWN}),
        ("model.depth", [OWN]),
    ],
)
def test_what_is_read_names_no_own_part_unless_it_is_trusted(package, path, value):
    text = stored(path, value)
    for others in ((), ("own", "own_package.part", "package", "jaxar", "")):
        with trusting(others), pytest.raises(ConfigError) as error:
            from_json(text)
        assert "own_package.parts:Digits" in str(error.value)
        assert "--trust=own_package " in str(error.value)
    assert not package.exists()


@pytest.mark.parametrize("trusted", ["own_package", "own_package.parts", OWN])
def test_what_is_trusted_is_read(package, trusted):
    with trusting([trusted]):
        assert from_json(stored("data.name", OWN)).data.split == "train"
    assert package.exists()
    with pytest.raises(ConfigError, match="--trust=own_package"):
        from_json(stored("data.name", OWN))


def test_a_path_is_no_own_part(package):
    for text in ("/data/x:y", "gs://bucket:x/y", "a b:c", "C:/data", "x:y z", "10:30"):
        assert from_json(stored("evaluation.reference", text)).evaluation.reference == text


FILE = """
from jaxar.config import load, spec

def get_config():
    config = load("xar_digits").unlock()
    config.data = spec("own_package.parts:Digits")
    return config
"""


@pytest.fixture
def run(package, tmp_path):
    """The folder of a run whose config names an own part."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / loading.CONFIG).write_text(stored("data.name", OWN))
    return folder


def test_a_run_is_loaded_where_its_parts_are_trusted(run, package, tmp_path):
    with pytest.raises(ConfigError, match=r"config.data.name names .*--trust=own_package "):
        loading.load("xar_digits", workdir=run)
    assert not package.exists()
    with pytest.raises(ConfigError, match="has no checkpoint yet"):
        loading.load("xar_digits", workdir=run, trust=["own_package"])
    assert package.exists()
    file = tmp_path / "own.py"
    file.write_text(FILE)
    with pytest.raises(ConfigError, match="has no checkpoint yet"):
        loading.load(str(file), workdir=run)


def test_an_export_is_loaded_where_its_parts_are_trusted(run, package):
    (run / loading.EXPORT).write_text(json.dumps({"files": {}, "step": 0}))
    with pytest.raises(ConfigError, match="--trust=own_package "):
        loading.load(run)
    assert not package.exists()
    with pytest.raises((ConfigError, OSError), match=r"model\.safetensors"):
        loading.load(run, trust=["own_package"])


def test_a_run_goes_on_by_a_config_that_names_its_parts(run, package, monkeypatch):
    monkeypatch.setattr(checkpoint, "exist", lambda folder: True)
    monkeypatch.setattr(checkpoint, "converted", lambda folder: False)
    with pytest.raises(ConfigError, match="--trust=own_package "):
        training._remember(load("xar_digits"), run)
    assert not package.exists()
    training._remember(override(load("xar_digits"), [f"data={OWN}"]), run)


@pytest.mark.parametrize(
    "autoencoder", [{"name": OWN}, {"name": "kl", "width": {"name": OWN}}], ids=["name", "inside"]
)
def test_a_cache_of_latents_imports_nothing(package, autoencoder):
    with pytest.raises(ConfigError, match="do not fit this config"):
        setup._require_same_latents(load("xar_b"), {"autoencoder": autoencoder})
    assert not package.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config=xar_digits"], "--trust=own_package "),
        (["--config=xar_digits", "--trust=other,own"], "--trust=own_package "),
        (["--config=xar_digits", "--trust=other,own_package"], "has no checkpoint yet"),
        (["--config={file}"], "has no checkpoint yet"),
        (["--config=xar_digits", f"--config.data={OWN}"], "has no checkpoint yet"),
    ],
)
def test_the_command_line_says_whom_it_trusts(run, package, tmp_path, capsys, words, said):
    file = tmp_path / "own.py"
    file.write_text(FILE)
    words = [word.format(file=file) for word in words]
    with pytest.raises(SystemExit) as stopped:
        main.main([*words, "--mode=sample", f"--workdir={run}"])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
    assert package.exists() == (said == "has no checkpoint yet")


def test_an_own_part_is_read_as_what_it_is(package):
    config = override(load("xar_digits"), [f"data={OWN}(size=8)"])
    assert config.data.size == 8 and config.data.split == "train"
    assert Digits(**{k: v for k, v in config.data.items() if k != "name"}).shape == (8, 8, 1)
