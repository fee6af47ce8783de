"""Configs: files, words on a command line, JSON, ranges."""

import pathlib
import subprocess
import sys

import pytest

from jaxar import config as config_lib
from jaxar.config import (
    ConfigDict,
    ConfigError,
    check,
    differences,
    from_json,
    load,
    override,
    render,
    spec,
    to_json,
)

FILE = """
from jaxar.config import ConfigDict, spec

def get_config():
    config = ConfigDict()
    config.steps = 100
    config.name = "tiny"
    config.note = None
    config.plan = spec("cell", height=8, width=8)
    config.data = spec("folder", path="/data", flip=True)
    config.flow = ConfigDict(dict(time=spec("logit_normal", mu=0.0, sigma=1.0)))
    config.model = spec("xar", width=64, depth=(2, 2), dropout=0.1)
    config.scales = ((1, 1), (2, 2))
    config.words = ("a", "b")
    config.optimizer = ConfigDict(dict(base_learning_rate=1e-3, warmup_steps=10))
    config.sample = ConfigDict(dict(every=0))
    config.checkpoint = ConfigDict(dict(every=5))
    config.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1))
    return config
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "tiny.py"
    file.write_text(FILE)
    return str(file)


@pytest.fixture
def config(path):
    return load(path)


def changed(config, *assignments):
    """The value of the field that the last assignment names."""
    return override(config, assignments)[assignments[-1].partition("=")[0]]


# Files.


def test_load_is_locked_and_typed(config):
    assert config.model.width == 64 and config.model.depth == (2, 2)
    with pytest.raises((KeyError, AttributeError)):
        config.model.widht = 3
    with pytest.raises(TypeError):
        config.model.width = "wide"


def test_bare_names_are_looked_for_in_order(path, tmp_path, monkeypatch):
    here, packaged = tmp_path / "run" / "configs", tmp_path / "package"
    here.mkdir(parents=True), packaged.mkdir()
    (packaged / "tiny.py").write_text(FILE)
    monkeypatch.chdir(here.parent)
    monkeypatch.setattr(config_lib, "_FOLDERS", (pathlib.Path("configs"), packaged))
    assert load("tiny").name == "tiny"
    (here / "tiny.py").write_text(FILE.replace('"tiny"', '"nearer"'))
    assert load("tiny").name == "nearer"
    with pytest.raises(ConfigError, match=r"no config 'tinny': did you mean 'tiny'\?"):
        load("tinny")


def test_a_config_can_start_from_another(path, tmp_path):
    file = tmp_path / "wide.py"
    file.write_text(
        "from jaxar.config import load\n"
        f"def get_config():\n    c = load({path!r})\n    c.model.width = 128\n    return c\n"
    )
    assert differences(load(str(file)), load(path)) == ["model.width: 128 here, 64 there"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "no config"),
        ("x = 1", "get_config"),
        ("def get_config():\n    return {}", "must return a ConfigDict"),
        ("def get_config():\n    return 1 / 0", "line 2: ZeroDivisionError"),
        ("def get_config(:", "SyntaxError"),
        ("import a_module_that_is_not_there", "line 1: ModuleNotFoundError"),
        ("from jaxar.config import load\nget_config = lambda: load(__file__)", "RecursionError"),
        ("from jaxar.config import load\nget_config = lambda: load('zzz')", "no config 'zzz'"),
        ("from jaxar.config import spec\nget_config = lambda: spec('a', b=print)", "b must be"),
        ("from jaxar.config import spec\nget_config = lambda: spec('a', b=1e999)", "b must be fin"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, problem):
    file = tmp_path / "bad.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load(str(file))
    assert str(file) in str(error.value) and problem in str(error.value)
    assert len(str(error.value)) < 600


def test_load_leaves_no_module_and_no_cache(path, tmp_path):
    before = set(sys.modules)
    load(path)
    assert set(sys.modules) == before
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.py"]


def test_an_edited_file_is_read_again(path):
    load(path)
    pathlib.Path(path).write_text(FILE.replace("= 100", "= 200"))
    assert load(path).steps == 200


# Words.


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("steps=64", 64),
        ("steps=1e3", 1000),
        ("steps=2_048", 2048),
        ("steps=-3", -3),
        ("model.dropout=1", 1.0),
        ("model.dropout=1e-4", 1e-4),
        ("data.flip=no", False),
        ("data.flip=OFF", False),
        ("data.flip=0", False),
        ("data.flip=False", False),
        ("data.flip=Yes", True),
        ("data.flip=on", True),
        ("data.flip=1", True),
        ("data.flip=true", True),
        ("data.path=/a=b c", "/a=b c"),
        ("data.path='/a b'", "/a b"),
        ('data.path="/a"', "/a"),
        ("data.path='a' + 'b'", "'a' + 'b'"),
        ("data.path=", ""),
        ("data.path=none", "none"),
        ("model.depth=(8, 8)", (8, 8)),
        ("model.depth=8,8", (8, 8)),
        ("model.depth=[8,8,1e1]", (8, 8, 10)),
        ("model.depth=8", (8,)),
        ("model.depth=()", ()),
        ("scales=(1, 2), (3, 4), (5, 6)", ((1, 2), (3, 4), (5, 6))),
        ("words=c,'d e',f-1", ("c", "d e", "f-1")),
        ("note=none", None),
        ("note=3", 3),
        ("note=1e-4", 1e-4),
        ("note=True", True),
        ("note=off", False),
        ("note=(1, 2.5)", (1, 2.5)),
        ("note=some words", "some words"),
        ("plan.height=4", 4),
    ],
)
def test_a_word_is_read_as_the_type_of_its_field(config, assignment, value):
    result = changed(config, assignment)
    assert result == value and type(result) is type(value)


@pytest.mark.parametrize(
    ("assignment", "wanted"),
    [
        ("steps=1.5", "whole number"),
        ("steps=abc", "whole number"),
        ("steps=true", "whole number"),
        ("steps=inf", "whole number"),
        ("steps=", "whole number"),
        ("steps=os.getpid()", "whole number"),
        ("model.dropout=nan", "finite number"),
        ("model.dropout=-inf", "finite number"),
        ("model.dropout=1e999", "finite number"),
        ("model.dropout=a", "finite number"),
        ("data.flip=maybe", "true or false"),
        ("data.flip=2", "true or false"),
        ("model.depth=(8, x)", "whole number"),
        ("model.depth=8, 1.5", "whole number"),
        ("model.depth=(8", "tuple such as"),
        ("model.depth=", "tuple such as"),
        ("note=1e999", "finite"),
    ],
)
def test_a_wrong_word_is_refused_with_field_type_and_text(config, assignment, wanted):
    field, _, text = assignment.partition("=")
    with pytest.raises(ConfigError) as error:
        override(config, [assignment])
    message = str(error.value)
    assert message.startswith(field) and wanted in message
    assert message.endswith((f"not {text!r}.", "not 'x'.", "not '1.5'.", "not inf."))


def test_whatever_is_none_stays_free_for_later_words(config):
    assert changed(config, "note=3", "note=0.5") == 0.5
    assert changed(config, "note=3", "note=none") is None


@pytest.mark.parametrize(
    ("call", "part"),
    [
        ("token", dict(name="token")),
        ("token()", dict(name="token")),
        ("cell(height=4, width=-4)", dict(name="cell", height=4, width=-4)),
        ("scale(sizes=[1,2,4])", dict(name="scale", sizes=(1, 2, 4))),
        (' folder(path="/x", size=256) ', dict(name="folder", path="/x", size=256)),
    ],
)
def test_a_part_is_replaced_whole_by_a_call(config, call, part):
    result = override(config, [f"plan={call}"])
    assert result.plan.to_dict() == part
    assert result.plan.is_locked


def test_later_words_win_also_inside_a_new_part(config):
    result = override(config, ["plan=cell(height=4)", "plan.height=2", "steps=1", "steps=2"])
    assert result.plan.to_dict() == dict(name="cell", height=2) and result.steps == 2


def test_a_float_argument_stays_a_float(config):
    result = override(config, ["flow.time=logit_normal(mu=1, sigma=2)", "flow.time.mu=0.5"])
    with pytest.raises(ConfigError):
        override(config, [f"flow.time=logit_normal(mu=1{'0' * 400})"])
    assert result.flow.time.mu == 0.5 and type(result.flow.time.sigma) is float


@pytest.mark.parametrize(
    "call",
    [
        "cell(4, 4)",
        "cell(4)",
        "cell(height=x)",
        "cell(height=f())",
        "cell(height=4, height=5)",
        "cell(name='token')",
        "cell(**{'height': 4})",
        "a.cell(height=4)",
        "cell(height=4)(width=4)",
        "cell(height=4",
        "",
        "3",
        "None",
        "(" * 5000,
        "__import__('os').system('touch {marker}')",
        "cell(height=open('{marker}', 'w'))",
        "[open('{marker}', 'w')]",
        "x if open('{marker}', 'w') else y",
        "(x := open('{marker}', 'w'))",
    ],
)
def test_anything_but_a_literal_call_is_refused_and_not_run(config, call, tmp_path):
    marker = tmp_path / "marker"
    text = call.replace("{marker}", str(marker))
    with pytest.raises(ConfigError, match=r"^plan must be .* cell\(height=8, width=8\), not "):
        override(config, [f"plan={text}"])
    for field in ("data.flip", "flow", "flow.time"):
        with pytest.raises(ConfigError):
            override(config, [f"{field}={text}"])
    if text != "3":
        for field in ("steps", "model.dropout", "model.depth", "scales"):
            with pytest.raises(ConfigError):
                override(config, [f"{field}={text}"])
    override(config, [f"note={text}", f"data.path={text}"])
    assert not marker.exists()


def test_a_group_is_not_assigned_whole(config):
    with pytest.raises(ConfigError, match=r"optimizer is a group: .* optimizer\.base_learning"):
        override(config, ["optimizer=adam"])


@pytest.mark.parametrize(
    ("key", "advice"),
    [
        ("modle.width", "did you mean 'model.width'?"),
        ("model.widht", "did you mean 'model.width'?"),
        ("optimiser.warmup_steps", "did you mean 'optimizer.warmup_steps'?"),
        ("dropout", "did you mean 'model.dropout'?"),
        ("every", "did you mean 'sample.every' or 'checkpoint.every'?"),
        ("stesp", "did you mean 'steps'?"),
        ("steps.more", "did you mean 'steps'?"),
        ("qqq", "choose from steps, name, note"),
        ("", "choose from steps, name, note"),
    ],
)
def test_an_unknown_field_gets_the_nearest(config, key, advice):
    with pytest.raises(ConfigError) as error:
        override(config, [f"{key}=1"])
    assert str(error.value).startswith(f"config has no field {key!r}: {advice}")


def test_a_word_without_equals_is_shown_the_form(config):
    with pytest.raises(ConfigError, match=r"'--config.steps' has no '=': write field=value"):
        override(config, ["--config.steps"])


def test_the_spelling_of_the_command_line_is_accepted(config):
    assert override(config, ["--config.steps=3", "config.model.width=1"]).steps == 3


def test_override_copies_and_locks(config):
    before = to_json(config)
    result = override(config, ["model.width=1", "plan=token", "mesh.data=2"])
    result.mesh.fsdp = 7
    assert to_json(config) == before
    assert result.is_locked and result.model.is_locked
    assert override(ConfigDict(dict(a=ConfigDict(dict(b=1)))), []).a.is_locked


def test_shared_groups_are_parted(config):
    shared = spec("linear", scale=1)
    result = override(ConfigDict(dict(a=shared, b=shared)), ["a.scale=2"])
    assert (result.a.scale, result.b.scale) == (2, 1)


# Text.


def test_json_round_trip_is_exact(config):
    odd = override(config, ["model.depth=3,", "data.path='a\\n\\u2028\"é'", "model.dropout=1e-45"])
    for one in (config, odd, from_json("{}")):
        text = to_json(one)
        assert from_json(text) == one and to_json(from_json(text)) == text
    assert from_json(to_json(config)).scales == ((1, 1), (2, 2))
    assert type(from_json(to_json(config)).flow.time.mu) is float
    keys = [line.split('"')[1] for line in to_json(config).split("\n") if line[:3] == '  "']
    assert keys == sorted(keys)


@pytest.mark.parametrize(
    "text",
    ["", "[1]", "{", '{"a": NaN}', '{"a.b": 1}', '{"__class__": 1}', '{"a": [{"b": 1}]}'],
)
def test_bad_json_is_refused(text):
    with pytest.raises(ConfigError):
        from_json(text)


def test_render_is_aligned_in_order_of_definition_and_can_be_given_back(config):
    lines = render(config).split("\n")
    assert lines[0].split() == ["steps", "=", "100"]
    assert [line.split()[0] for line in lines[3:6]] == ["plan.name", "plan.height", "plan.width"]
    assert len({line.index(" = ") for line in lines}) == 1
    assert override(config, lines) == config
    other = override(config, ['data.path="it\'s\\\\"', "note=-1.5", "scales=()"])
    assert override(config, render(other).splitlines()) == other


def test_differences(config):
    other = override(config, ["model.width=512", "plan=token", "steps=7"])
    assert differences(config, config) == []
    assert differences(config, other, ignore=["steps"]) == [
        "plan.name: 'cell' here, 'token' there",
        "plan.height: 8 here, absent there",
        "plan.width: 8 here, absent there",
        "model.width: 64 here, 512 there",
    ]
    assert differences(other, config, ignore=("model", "plan.height", "st", "plan.width")) == [
        "steps: 7 here, 100 there",
        "plan.name: 'token' here, 'cell' there",
    ]


# Ranges.


GOOD = {
    "name": "a", "seed": 0, "steps": 1, "batch_size": 1, "num_classes": 1, "workers": 0,
    "context": {"name": "clean"}, "label_dropout": 1,
    "model.width": 1, "model.depth": (1, 1), "model.heads": 1,
    "model.mlp_ratio": 0.1, "model.dropout": 0.0, "model.attention_dropout": 0.9,
    "model.time_scale": 1, "model.dtype": "float32", "model.remat": "none", "model.unroll": 2,
    "optimizer.base_learning_rate": 1e-9, "optimizer.final_learning_rate": 0,
    "optimizer.warmup_steps": 1, "optimizer.decay_fraction": 1, "optimizer.beta1": 0,
    "optimizer.beta2": 0.999, "optimizer.weight_decay": 0, "optimizer.clip_norm": 0.1, "ema": 0,
    "sample.steps": 1, "sample.guidance": 1, "sample.every": 0, "checkpoint.every": 1,
    "checkpoint.keep": 1, "checkpoint.keep_every": 0, "log_every": 1, "mesh.data": -1,
    "mesh.fsdp": 1, "mesh.tensor": 8, "plan.name": "token", "anything.else": -5,
}  # fmt: skip

BAD = {
    "name": ("", 3), "plan.name": ("",), "seed": (-1, 0.5), "steps": (0, 1.0, True),
    "batch_size": (0,), "num_classes": (0,), "context": ("dirty", None, {}), "workers": (-1,),
    "data": (3, "folder", ConfigDict(dict(path="/x"))), "tokenizer": (None,), "plan": (1,),
    "label_dropout": (-0.1, 1.1), "flow.path": ("linear",), "flow.time": (0.0,), "model": ("xar",),
    "model.width": (0, "wide"), "model.depth": ((), (1, 0), 0, (1.0,)), "model.heads": (0,),
    "model.mlp_ratio": (0,), "model.dropout": (1, -0.1), "model.attention_dropout": (1.0,),
    "model.time_scale": (0, True), "model.dtype": ("float16",), "model.remat": (1, True),
    "model.unroll": (0, True),
    "optimizer.base_learning_rate": (0, -1e-3, float("inf")),
    "optimizer.final_learning_rate": (-1e-9,), "optimizer.warmup_steps": (-1,),
    "optimizer.decay_fraction": (1.1,), "optimizer.beta1": (1,), "optimizer.beta2": (1.0,),
    "optimizer.weight_decay": (-1, float("nan")), "optimizer.clip_norm": (0,), "ema": (1, -1),
    "sample.steps": (0,), "sample.guidance": (0.9,), "sample.every": (-1,),
    "checkpoint.every": (0,), "checkpoint.keep": (0,), "checkpoint.keep_every": (-1,),
    "log_every": (0,), "mesh.data": (0, -2), "mesh.fsdp": (0,), "mesh.tensor": (1.5,),
}  # fmt: skip


def tree(values):
    """A config from values by dotted path."""
    config = ConfigDict()
    for key, value in values.items():
        *groups, field = key.split(".")
        group = config
        for name in groups:
            if name not in group:
                group[name] = spec("x") if name in ("model", "plan") else ConfigDict()
            group = group[name]
        with group.ignore_type():
            group[field] = value
    return config


def test_the_edges_of_every_range_pass(config):
    check(tree(GOOD))
    check(config)
    check(ConfigDict())


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in BAD.items() for v in values])
def test_outside_its_range_a_field_is_refused(field, value):
    with pytest.raises(ConfigError) as error:
        check(tree({field: value}))
    assert str(error.value).startswith(f"{field} must be ")
    assert ", not " in str(error.value)


def test_the_message_of_a_range():
    with pytest.raises(ConfigError) as error:
        check(tree({"optimizer.base_learning_rate": -0.001}))
    assert str(error.value) == "optimizer.base_learning_rate must be above 0, not -0.001."


def test_fields_that_must_agree(config):
    with pytest.raises(ConfigError, match="warmup_steps must be at most steps, 5, not 10"):
        check(override(config, ["steps=5"]))
    with pytest.raises(ConfigError, match=r"mesh\.data and mesh\.fsdp cannot all be -1"):
        check(override(config, ["mesh.fsdp=-1"]))


def test_the_import_is_light():
    code = "import sys, jaxar.config; sys.exit(any(m in sys.modules for m in ('jax', 'flax')))"
    root = pathlib.Path(config_lib.__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
