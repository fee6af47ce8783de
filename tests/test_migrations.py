"""What older versions stored, and what people still write, is read under the names of now."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

import jaxar
from jaxar import checkpoint, completion, main, migrations, tree
from jaxar import config as configs
from jaxar.config import ConfigError
from jaxar.files import sha256
from jaxar.migrations import Added, Field, Parameter, State, Value
from jaxar.parallel import sharding
from jaxar.runs import load as loading
from jaxar.runs import setup
from jaxar.runs import train as training
from jaxar.training.step import training_of
from tests.stored.make import unpack

OLD = """
from jaxar.config import ConfigDict, spec

def get_config():
    config = ConfigDict()
    config.name = "old"
    config.label_dropout = 0.1
    config.system = "next_x"
    config.flow = ConfigDict(dict(path=spec("linear"), mu=0.0))
    config.model = spec("xar", width=64, drop=0.2)
    config.plan = spec("cell", height=8, width=8)
    return config
"""

TABLE = (
    (
        Field("label_dropout", "condition.dropout"),
        Field("flow.mu", "mean"),
        Value("model.name", "xar", "cells"),
        Added("condition.kind", "label"),
    ),
    (
        Field("flow", "objective.flow"),
        Field("system", "system.name"),
        Field("model.drop", "model.dropout", when=("model.name", "cells")),
        Field("plan.height", "plan.rows", when=("plan.name", "cell", "subsample")),
        Value("plan.name", "cell", "block"),
        Value("system.name", "next_x", "generation"),
        Added("model.order", (0, 1), when=("model.name", "cells")),
        Added("plan.order", "raster", when=("plan.name", "token")),
        Added("teacher", {"name": "none"}),
    ),
)

NOW = {
    "name": "old",
    "system": {"name": "generation"},
    "model": {"name": "cells", "width": 64, "dropout": 0.2, "order": (0, 1)},
    "plan": {"name": "block", "width": 8, "rows": 8},
    "condition": {"dropout": 0.1, "kind": "label"},
    "mean": 0.0,
    "objective": {"flow": {"path": {"name": "linear"}}},
    "teacher": {"name": "none"},
}


def use(monkeypatch, *table):
    """The table of migrations is another one."""
    monkeypatch.setattr(migrations, "MIGRATIONS", table)
    monkeypatch.setattr(migrations, "FORMAT", len(table))


@pytest.fixture
def unread(monkeypatch):
    """Fields and parts need not be those of today: nothing completes a config, or checks it."""
    monkeypatch.setattr(completion, "complete", lambda tree: tree)
    monkeypatch.setattr(completion, "check", lambda tree: None)
    monkeypatch.setattr(completion, "sampling", lambda tree: frozenset())
    monkeypatch.setattr(configs, "_without_old", lambda tree, was: tree)


@pytest.fixture
def old(tmp_path, unread):
    """A config file of the first version."""
    path = tmp_path / "old.py"
    path.write_text(OLD)
    return str(path)


@pytest.fixture
def now(old, monkeypatch):
    """The same, read two versions later."""
    use(monkeypatch, *TABLE)
    return configs.load(old)


# Configs.


def test_a_persons_old_config_is_read(now):
    assert now.to_dict() == NOW and now.is_locked and now.condition.is_locked


def test_a_stored_config_is_read_from_every_format(old, monkeypatch):
    texts = []
    for format_ in range(3):
        use(monkeypatch, *TABLE[:format_])
        texts.append(configs.to_json(configs.load(old)))
        assert json.loads(texts[-1])["format"] == format_
    unsaid = json.loads(texts[0])
    del unsaid["format"]
    for text in (*texts, json.dumps(unsaid)):
        assert configs.from_json(text).to_dict() == NOW
        assert not configs.differences(configs.from_json(text), configs.load(old))


def test_only_what_a_later_format_changed_is_changed(monkeypatch, unread):
    """A name may mean something else in a format that did not have it before."""
    use(monkeypatch, (Field("a", "b"),), (Field("b", "c"),))
    for format_, name in ((0, "a"), (1, "b"), (2, "c")):
        stored = json.dumps({"format": format_, name: 1})
        assert configs.from_json(stored).to_dict() == {"c": 1}


def test_nothing_is_changed_twice(now):
    assert configs.from_json(configs.to_json(now)) == now
    assert migrations.migrated(now.to_dict()) == NOW


@pytest.mark.parametrize(
    ("word", "field", "value"),
    [
        ("label_dropout=0.2", "condition.dropout", 0.2),
        ("--config.label_dropout=1", "condition.dropout", 1.0),
        ("condition.dropout=0.2", "condition.dropout", 0.2),
        ("flow.mu=1", "mean", 1.0),
        ("flow.path.name=cosine", "objective.flow.path.name", "cosine"),
        ("flow.path=cosine(power=2)", "objective.flow.path.power", 2),
        ("model.drop=0.3", "model.dropout", 0.3),
        ("model.name=xar", "model.name", "cells"),
        ("model=xar(width=3, drop=0.5)", "model.dropout", 0.5),
        ("model=xar(width=3)", "model.name", "cells"),
        ("plan=cell(height=4, width=4)", "plan.rows", 4),
        ("plan=token(height=4)", "plan.height", 4),
    ],
)
def test_old_names_are_understood_on_the_command_line(now, word, field, value):
    result = configs.override(now, [word])
    for name in field.split("."):
        result = result[name]
    assert result == value and type(result) is type(value)


def test_later_words_win_whichever_name_they_use(now):
    words = ["label_dropout=0.2", "condition.dropout=0.3"]
    assert configs.override(now, words).condition.dropout == 0.3
    assert configs.override(now, words[::-1]).condition.dropout == 0.2


def test_a_part_of_today_gets_no_value_of_then(now):
    assert "order" not in configs.override(now, ["plan=token"]).plan


def test_an_unknown_name_is_refused_as_it_was_written(now):
    with pytest.raises(ConfigError, match="config has no field 'label_dropuot'"):
        configs.override(now, ["label_dropuot=0.2"])
    with pytest.raises(ConfigError, match=r"config has no field 'flow\.nu'"):
        configs.override(now, ["flow.nu=0.2"])


def test_a_config_that_starts_from_another_may_set_an_old_name(now, old, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from jaxar.config import load\n"
        f"def get_config():\n    c = load({old!r}).unlock()\n    c.label_dropout = 0.7\n"
        "    return c\n"
    )
    assert configs.load(str(path)).condition.to_dict() == {"dropout": 0.7, "kind": "label"}


def test_the_command_line_takes_old_names(old, monkeypatch, capsys):
    use(monkeypatch, TABLE[0])
    main.main([f"--config={old}", "--config.label_dropout=0.25", "--print_config"])
    assert "condition.dropout" in (text := capsys.readouterr().out) and "= 0.25" in text


def test_a_newer_format_is_refused_in_a_sentence(tmp_path):
    text = json.dumps({"format": migrations.FORMAT + 1, "name": "x"})
    with pytest.raises(ConfigError) as caught:
        configs.from_json(text, tmp_path / "config.json")
    assert str(caught.value) == (
        f"{tmp_path / 'config.json'} has format 2, but this version of jaxar knows 0 to 1: update "
        "jaxar."
    )


# Parameters, averages and moments.


PATHS = (
    (Parameter("^classes/table$", "label/table"),),
    (
        Parameter("(^|/)up/", r"\1wide/"),
        State("^optimizer/2/", "optimizer/3/"),  # another part of the optimiser came before
        State("^optimizer/1/", "optimizer/2/"),
    ),
)


def test_paths_of_a_state_and_of_its_moments(monkeypatch):
    use(monkeypatch, *PATHS)
    params = ("classes/table", "blocks/up/kernel", "up/bias", "upper")
    places = ("params", "ema", "optimizer/1/mu", "optimizer/1/nu")
    stored = ["step", "optimizer/3/count", *(f"{a}/{b}" for a in places for b in params)]
    names = migrations.state(stored, 0)
    assert names["step"] == "step" and names["optimizer/3/count"] == "optimizer/3/count"
    assert names["params/classes/table"] == "params/label/table"
    assert names["ema/blocks/up/kernel"] == "ema/blocks/wide/kernel"
    assert names["optimizer/1/mu/up/bias"] == "optimizer/2/mu/wide/bias"
    assert names["optimizer/1/nu/classes/table"] == "optimizer/2/nu/label/table"
    assert names["optimizer/1/nu/upper"] == "optimizer/2/nu/upper"
    since = migrations.state(stored, 1)
    assert since["params/classes/table"] == "params/classes/table"
    assert all(path == name for path, name in migrations.state(stored, 2).items())


def test_two_leaves_never_get_one_path(monkeypatch):
    use(monkeypatch, (Parameter("^a$", "b"),))
    with pytest.raises(ValueError, match="get one path"):
        migrations.state(["params/a", "params/b"], 0)


def state_of(params, *before):
    """A training state, its optimiser preceded by some that hold nothing."""
    optimizer = optax.chain(*before, optax.scale_by_adam(), optax.scale_by_schedule(lambda _: 1.0))
    state = {"params": params, "ema": jax.tree.map(lambda x: x + 1, params)}
    moments = optimizer.init(params)
    numbers = iter(range(100))
    moments = jax.tree.map(lambda x: x + next(numbers), moments)
    return {"step": jnp.int32(7), **state, "optimizer": moments}


@pytest.mark.parametrize("part", [None, "ema"])
def test_a_checkpoint_is_restored_under_the_names_of_now(part, tmp_path, monkeypatch):
    params = {"classes": {"table": jnp.ones((2, 3))}, "b": {"up": {"bias": jnp.arange(3.0)}}}
    before = state_of(params, optax.clip(1.0))
    use(monkeypatch)
    store = checkpoint.Checkpoints(tmp_path)
    store.save(7, before, {"data": "x"})
    store.wait()
    use(monkeypatch, *PATHS)
    renamed = {"label": params["classes"], "b": {"wide": params["b"]["up"]}}
    after = state_of(renamed, optax.clip(1.0), optax.identity())
    wanted = after if part is None else after[part]
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    places = jax.tree.map(lambda _: place, wanted)
    found = store.restore(7, checkpoint.placed(wanted, places), part=part)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    there = tree.paths(before if part is None else {part: before[part]})
    here = tree.paths(found if part is None else {part: found})
    for path, name in store.names(7).items():
        if path in there:
            np.testing.assert_array_equal(here.pop(name), there[path], name)
    assert not here and store.record(7) == {"data": "x"}
    with pytest.raises(ConfigError, match=r"classes/table is missing"):
        wanted = before if part is None else before[part]
        store.restore(7, wanted, part=part)
    store.close()


def test_a_checkpoint_of_a_newer_version_is_refused(tmp_path, monkeypatch):
    use(monkeypatch, (), (), ())
    store = checkpoint.Checkpoints(tmp_path)
    store.save(1, {"params": {"a": jnp.ones(2)}}, {})
    store.wait()
    monkeypatch.undo()
    for read in (store.record, store.names):
        with pytest.raises(ConfigError, match=r"checkpoints/1 has format 3, .*: update jaxar"):
            read(1)
    store.close()


# Runs, exports and caches, as an older version would have written them.


RENAMED = (
    Field("dropped", "label_dropout"),
    Field("autoencoder.size", "autoencoder.width"),
    Parameter("(^|/)analysis/", r"\1encoder/"),
    Parameter("(^|/)words/", r"\1classes/"),
)
FORMER = {"encoder": "analysis", "classes": "words"}


def aged(node):
    """A tree with the names that `RENAMED` has replaced."""
    if isinstance(node, dict):
        return {FORMER.get(key, key): aged(value) for key, value in node.items()}
    return [aged(item) for item in node] if isinstance(node, list | tuple) else node


def age_config(path):
    """A config.json with the fields of then."""
    config = json.loads(path.read_text())
    config["dropped"] = config.pop("label_dropout")
    config["autoencoder"]["size"] = config["autoencoder"].pop("width")
    path.write_text(json.dumps(config))


def age_run(folder):
    """A run whose checkpoint has the paths of then."""
    store = checkpoint.Checkpoints(folder, read_only=True)
    step = store.latest()
    state, record = aged(store._manager.restore(step).state), store.record(step)
    store.close()
    shutil.rmtree(folder / checkpoint.FOLDER)
    store = checkpoint.Checkpoints(folder)
    store.save(step, state, record)
    store.close()
    return state


@pytest.fixture
def older(tmp_path, monkeypatch):
    """A working directory in which a version with other names has trained VAR and its tokenizer."""
    unpack("v0", tmp_path)
    monkeypatch.chdir(tmp_path)
    model = jaxar.load("var_digits")
    use(monkeypatch)
    age_config(tmp_path / "runs/var_digits/config.json")
    age_run(tmp_path / "runs/var_digits")
    tokenizer = age_run(tmp_path / "runs/vq_digits")["ema"]["autoencoder"]
    manifest = tmp_path / "runs/digit_features/manifest.json"
    facts = json.loads(manifest.read_text())
    facts["autoencoder"]["size"] = facts["autoencoder"].pop("width")
    facts["autoencoder_weights"]["parameters_sha256"] = tree.digest(tokenizer)
    manifest.write_text(json.dumps(facts))
    use(monkeypatch, RENAMED)
    return model


def test_a_run_its_tokenizer_and_its_cache_are_read_under_the_names_of_now(older, monkeypatch):
    model = jaxar.load("var_digits", overrides=["dropped=0.1"])
    assert model.config == older.config
    for here, there in ((model, older), (model.autoencoder, older.autoencoder)):
        jax.tree.map(np.testing.assert_array_equal, here.params, there.params)
    manifest = setup.open_source(model.config).manifest
    training._require_same_weights(model.config, model.autoencoder, manifest)
    manifest["autoencoder_weights"]["parameters_sha256"] = "0" * 64
    with pytest.raises(ConfigError, match="encode the images with these weights"):
        training._require_same_weights(model.config, model.autoencoder, manifest)


def test_a_run_goes_on_under_the_names_of_now(older):
    ready = setup.prepare(older.config)
    shapes = jax.eval_shape(training_of(older.config, ready.system).init, jax.random.key(0))
    places = sharding.shardings(shapes, ready.mesh)
    store = checkpoint.Checkpoints("runs/var_digits")
    step = store.latest()
    state = store.restore(step, checkpoint.placed(shapes, places))
    jax.tree.map(np.testing.assert_array_equal, state.ema, older.params)
    here, there = tree.paths(state), tree.paths(store._manager.restore(step).state)
    assert "optimizer/1/mu/backbone/words/table" in there
    for path, name in store.names(step).items():
        np.testing.assert_array_equal(here.pop(name), there[path], name)
    assert not here and int(state.step) == step
    store.save(step + 1, state, {})
    store.wait()
    assert all(path == name for path, name in store.names(step + 1).items())
    store.close()


def test_an_export_is_read_under_the_names_of_now(older):
    folder = Path("exports/var_digits")
    facts = json.loads((folder / loading.EXPORT).read_text())
    for name in facts["files"]:
        nested = aged(tree.nest(load_file(folder / name)))
        save_file(tree.paths(nested), folder / name)
        facts["files"][name] = sha256(folder / name)
    (folder / loading.EXPORT).write_text(json.dumps(facts))
    age_config(folder / loading.CONFIG)
    model = jaxar.load(folder)
    for here, there in ((model, older), (model.autoencoder, older.autoencoder)):
        jax.tree.map(np.testing.assert_array_equal, here.params, there.params)
    (folder / loading.EXPORT).write_text(json.dumps({**facts, "format": 2}))
    with pytest.raises(ConfigError, match=r"export\.json has format 2, .*: update jaxar"):
        jaxar.load(folder)
    again = jaxar.export(model, "exports/again")
    assert json.loads((again / loading.EXPORT).read_text())["format"] == migrations.FORMAT
    assert {*load_file(again / loading.MODEL)} == {*tree.paths(older.params)}
