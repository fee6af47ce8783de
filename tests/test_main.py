"""The command line: what it says, how fast, and with which exit code."""

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxar import checkpoint, main
from jaxar.config import ConfigError
from jaxar.runs import reconstruct, setup, verbs
from jaxar.runs.model import Model
from jaxar.runs.verbs import VERBS
from tests.shrink import arrays, system_and_params

ROOT = Path(__file__).parents[1]
DIGITS = "--config=configs/xar_digits.py"
SMALL = [
    DIGITS,
    "--config.steps=40",
    "--config.optimizer.warmup_steps=4",
    "--config.model.width=16",
    "--config.model.depth=(1,1)",
    "--config.model.heads=2",
    "--config.model.dropout=0.1",
    "--config.batch_size=8",
    "--config.sample.steps=2",
    "--config.sample.every=0",
    "--config.log_every=5",
    "--config.checkpoint.every=5",
    "--config.evaluation.per_class=5",
]


def command(*arguments):
    return [sys.executable, "-m", "jaxar.main", *arguments]


def call(*arguments):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    return subprocess.run(
        command(*arguments), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def test_help_is_fast_and_imports_no_jax():
    began = time.monotonic()
    done = call("--help")
    assert done.returncode == 0 and "--config" in done.stdout
    assert time.monotonic() - began < 2


def test_the_package_is_the_command_line_and_a_verb_explains_its_own_flags():
    done = subprocess.run(
        [sys.executable, "-m", "jaxar", "edit", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--mask" in done.stdout and "--config" in done.stdout
    assert "--network" not in done.stdout and "--mode" not in done.stdout


def given(*names):
    """Returns words that give flags a value."""
    return [f"--{name}=1" for name in names]


def needed(verb):
    return [need.split(" or ")[0] for need in VERBS[verb].needs]


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_a_word_or_a_mode(verb):
    words = [*given(*needed(verb)), "--config.steps=3", "--tokenizer=x"]
    spelled = main.read([verb, *words])
    name, flags, overrides = main.read([*words, f"--mode={verb}"])
    assert spelled == (name, dataclasses.replace(flags, mode=None), overrides)
    assert name == verb and overrides == ["steps=3", "autoencoder.weights='x'"]


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_takes_its_flags_and_refuses_those_of_others(verb):
    row, needs = VERBS[verb], needed(verb)
    _, flags, _ = main.read([verb, *given(*{*needs, *row.flags})])
    assert all(getattr(flags, name) is not None for name in row.flags)
    for name in {name for other in VERBS.values() for name in other.flags} - {*row.flags}:
        with pytest.raises(ConfigError) as error:
            main.read([verb, *given(*needs, name)])
        text = str(error.value)
        assert text.startswith(f"--{name} belongs to --mode=") and text.endswith(f"--mode={verb}.")
        assert all(f"--mode={other}" in text for other in verbs.users(name))
    for name in needs:
        with pytest.raises(ConfigError, match=f"--mode={verb} needs --.*{name}"):
            main.read([verb, *given(*(other for other in needs if other != name))])


@pytest.mark.parametrize("verb", VERBS)
def test_the_function_of_a_verb_is_there(verb):
    module, function = VERBS[verb].run.split(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["smaple", "--config=x"], "no verb 'smaple'.*sample"),
        (["sample", "--mode=edit", "--config=x"], "once: sample or --mode=edit"),
        ([], "--mode=train needs --config"),
    ],
)
def test_verbs_that_are_none(words, message):
    with pytest.raises(ConfigError, match=message):
        main.read(words)


def test_the_first_word_is_no_value_of_a_field():
    _, _, overrides = main.read(["--config.steps", "3", "--config=x"])
    assert overrides == ["steps=3"]


@pytest.mark.parametrize(
    ("name", "verb", "text"),
    [
        ("kl_glyphs", "sample", "kl_glyphs cannot sample; it can reconstruct."),
        ("xar_digits", "reconstruct", "xar_digits cannot reconstruct; it can sample."),
    ],
)
def test_a_verb_that_a_model_cannot_do_is_refused(name, verb, text, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main.main([verb, f"--config={name}", f"--workdir={tmp_path}"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"jaxar: {text}\n"


def test_reconstructions_stand_below_their_examples(tmp_path):
    config, system, params = system_and_params(
        "kl_glyphs", "data_shape=(8,8,1)", "model.multipliers=(1,)", "model.encoder_attention=()"
    )
    model = Model(config, system, params, setup.prepare(config).mesh)
    source = arrays(config)
    images = np.stack([source.read(i, np.random.default_rng(0))["data"] for i in range(4)])
    made = model.reconstruct(images)
    assert made.shape == images.shape and np.abs(made).max() <= 1
    rows = reconstruct._interleaved(images, made, 2)
    expected = np.concatenate([images[:2], made[:2], images[2:], made[2:]])
    np.testing.assert_array_equal(rows, expected)
    reconstruct.draw({"": model}, source, tmp_path / "a.png", seed=1)
    reconstruct.draw({"": model}, source, tmp_path / "b.png", seed=1)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_importing_the_package_imports_no_jax():
    code = "import sys, jaxar; assert 'jax' not in sys.modules; print(jaxar.__all__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.modle.width=3"], ["modle.width", "model.width"]),
        (["--config.optimizer.base_learning_rate=-1"], ["base_learning_rate", "above 0"]),
        (["--config.plan.height=3"], ["cell", "does not divide", "4 x 4"]),
        (["--config.plan=pyramid"], ["pyramid", "subsample"]),
        (["--config.plan=cell(hight=2,width=2)"], ["hight", "height"]),
        (["--config.tokenizer.height=5"], ["Patches", "16 x 16"]),
        (["--config.mesh.data=64"], ["64", "devices"]),
        (["--config.batch_size=abc"], ["batch_size", "abc"]),
        (["--config.steps=0"], ["steps", "at least 1"]),
        (["--config.model.heads=5"], ["heads", "96"]),
        (["--config.model.heads=48"], ["head dimension", "multiple of 4"]),
        (["--config.context=fuzzy"], ["context", "noisy"]),
        (["--config.sample.solver=rk45"], ["rk45", "euler"]),
        (["--config.data_shape=(16,16,3)"], ["(16, 16, 1)", "data_shape"]),
        (["--config.num_classes=5"], ["10 classes", "num_classes"]),
        (["--mode=sample"], ["no trained", "xar_digits"]),
        (["--frobnicate"], ["frobnicate", "--help"]),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(arguments, words, tmp_path):
    done = call(DIGITS, f"--workdir={tmp_path / 'run'}", *arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert all(word in line for word in words), line
    assert "compile" not in done.stdout


def test_batch_must_divide_among_devices():
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=3",
    }
    done = subprocess.run(
        command(DIGITS, "--config.mesh.data=-1", "--dry_run"),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "30 or 33" in done.stderr


@pytest.mark.parametrize(
    ("name", "count"),
    [("xar_b", "172,638,224"), ("xar_l", "608,397,968"), ("xar_h", "1,186,024,096")],
)
def test_dry_run_prints_the_parameters_of_the_paper(name, count):
    done = call(f"--config=configs/{name}.py", "--dry_run")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("parameters ")]
    assert line.split()[1] == count
    assert "encoder/blocks/attention/qkv/kernel" in done.stdout


def test_print_config_shows_every_value():
    done = call("--config=xar_b", "--print_config", "--config.batch_size=1e3")
    assert done.returncode == 0
    lines = {line.split("=")[0].strip(): line for line in done.stdout.splitlines()}
    assert lines["batch_size"].endswith("= 1000")
    assert {"mesh.data", "mesh.fsdp", "mesh.tensor", "plan.height", "context.name"} <= lines.keys()


def test_a_killed_run_goes_on_and_ends_with_the_same_bits(tmp_path):
    """SIGKILL at random moments, SIGTERM once; the end equals an uninterrupted run."""
    done = call(*SMALL, f"--workdir={tmp_path / 'once'}")
    assert done.returncode == 0, done.stderr
    for stage in ("data:", "devices:", "model:", "compile:", "train:", "result:"):
        assert stage in done.stdout
    result = json.loads((tmp_path / "once" / "result.json").read_text())
    assert result["samples"] == 50 and 0 <= result["recognised"] <= 1
    assert (tmp_path / "once" / "samples.png").exists()
    assert (tmp_path / "once" / "loss.png").exists()

    workdir = tmp_path / "killed"
    rng = np.random.default_rng(int(time.time()))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONUNBUFFERED": "1"}
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen(
            command(*SMALL, f"--workdir={workdir}"),
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for line in process.stdout:
            if line.startswith("train:"):
                time.sleep(float(rng.uniform(0, 0.05)))
                break
        process.send_signal(number)
        process.stdout.read()
        code = process.wait()
        assert code in {signal.SIGKILL: (-9, 0), signal.SIGTERM: (42, 0)}[number]
    done = call(*SMALL, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr

    states = []
    for folder in (tmp_path / "once", workdir):
        store = checkpoint.Checkpoints(folder)
        states.append(store._manager.restore(40).state)
        store.close()
    for a, b in zip(jax.tree.leaves(states[0]), jax.tree.leaves(states[1]), strict=True):
        np.testing.assert_array_equal(a, b)
    pictures = [(d / "samples.png").read_bytes() for d in (tmp_path / "once", workdir)]
    assert pictures[0] == pictures[1]


def test_public_functions_stay_functions():
    """A folder named as a public function would take its place at the first import."""
    code = (
        "import jaxar, jaxar.runs\n"
        "for name in jaxar.__all__ * 2:\n"
        "    assert callable(getattr(jaxar, name)), name\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
