"""Configs: files, words on a command line, JSON, defaults, own parts, ranges."""

import json
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
    files,
    from_json,
    load,
    override,
    own_parts,
    render,
    spec,
    to_json,
    trusting,
)
from jaxar.runs import setup

ROOT = pathlib.Path(config_lib.__file__).parent.parent

FILE = """
from jaxar.config import ConfigDict, spec

def get_config():
    config = ConfigDict()
    config.steps = 100
    config.name = "tiny"
    config.system = "tests.own:everything"
    config.note = None
    config.plan = spec("cell", height=8, width=8)
    config.batch_size = 4
    config.data = spec("folder", path="/data", size=16)
    config.flow = ConfigDict(dict(time=spec("logit_normal")))
    config.model = spec("xar", width=64, depth=(2, 2), heads=2, dropout=0.1)
    config.optimizer = ConfigDict(dict(base_learning_rate=1e-3, warmup_steps=10))
    config.sample = ConfigDict(dict(every=0))
    config.checkpoint = ConfigDict(dict(every=5))
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


def again(text):
    """The config of a JSON text that may name parts of these tests."""
    with trusting(["tests"]):
        return from_json(text)


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


def test_a_bare_name_is_found_in_any_folder_and_a_path_that_moved_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "configs" / "image" / "small"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config_lib, "_FOLDERS", (pathlib.Path("configs"),))
    (folder / "tiny.py").write_text(FILE)
    assert load("tiny").name == "tiny"
    with pytest.raises(ConfigError, match=r"did you mean 'configs/image/small/tiny.py'\?"):
        load("configs/tiny.py")
    (folder / "tiny.v2.py").write_text(FILE.replace('"tiny"', '"second"'))
    assert load("tiny.v2").name == "second"
    for hostile in ("**", "*", "[", "", ".", ".."):
        with pytest.raises(ConfigError, match="There is no config"):
            load(hostile)


def test_configs_share_lines_of_a_file_that_is_no_config(tmp_path, monkeypatch):
    folder = tmp_path / "configs" / "image"
    folder.mkdir(parents=True)
    (tmp_path / "configs" / "common.py").write_text("def named(c, name): c.name = name")
    lines = "from jaxar.config import beside\ncommon = beside(__file__, 'common')\n"
    named = FILE.replace('config.name = "tiny"', 'common.named(config, "shared")')
    (folder / "tiny.py").write_text(lines + named)
    assert load(str(folder / "tiny.py")).name == "shared"
    assert [file.stem for file in files(tmp_path / "configs")] == ["tiny"]
    monkeypatch.setattr(config_lib, "_FOLDERS", (tmp_path / "configs",))
    with pytest.raises(ConfigError, match=r"choose from tiny\."):
        load("zzz")
    with pytest.raises(ConfigError, match=r"no function get_config"):
        load("common")
    (folder / "tiny.py").write_text(lines.replace("'common'", "'shared'") + named)
    with pytest.raises(ConfigError, match=r"There is no shared.py beside"):
        load("tiny")


def test_no_config_of_the_project_repeats_another():
    """What many configs say is said in configs/common.py."""
    lines = {}
    for file in files(ROOT / "configs"):
        code = file.read_text().split("def get_config", 1)[1].splitlines()[1:]
        lines[file.stem] = {line.strip() for line in code if len(line.strip()) > 16}
    for name, own in lines.items():
        for other, theirs in lines.items():
            if name < other:
                assert len(own & theirs) <= max(8, min(len(own), len(theirs)) / 2), (name, other)


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
        ("from jaxar.config import spec\nget_config = lambda: spec('a', b=1)", "lacks 'system'"),
        (FILE.replace("warmup_steps", "warmup_step"), "did you mean 'optimizer.warmup_steps'?"),
        (FILE.replace("config.steps", "config.stepps"), "did you mean 'steps'?"),
        (FILE.replace("dropout", "dropuot"), "did you mean 'model.dropout'?"),
        (FILE.replace("config.checkpoint", "config.chekpoint"), "did you mean 'checkpoint'?"),
        (FILE.replace("base_learning_rate=1e-3, ", ""), "lacks 'optimizer.base_learning_rate'"),
        (FILE.replace("width=64, ", ""), "lacks 'model.width'"),
        (FILE.replace("config.batch_size = 4", ""), "lacks 'batch_size'"),
        (
            FILE.replace('"cell", ', '"cel", '),
            "plan has no choice 'cel': choose one of ['block',",
        ),
        (FILE.replace("dropout=0.1", "dropout='0.1'"), "dropout must be a finite number (float)"),
        (FILE.replace('spec("logit_normal")', "3"), "flow.time must be a part"),
        (FILE.replace("ConfigDict(dict(every=0))", "0"), "sample must be a group of fields"),
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
        ("token", dict(name="token", shuffle=None)),
        ("token()", dict(name="token", shuffle=None)),
        ("cell(height=4, width=-4)", dict(name="cell", height=4, width=-4, shuffle=None)),
        (" scale(sizes=[1,2,4]) ", dict(name="scale", sizes=(1, 2, 4))),
        ("image", dict(name="image")),
    ],
)
def test_a_part_is_replaced_whole_by_a_call(config, call, part):
    result = override(config, [f"plan={call}"])
    assert result.plan.to_dict() == part
    assert result.plan.is_locked


def test_later_words_win_also_inside_a_new_part(config):
    words = ["plan=cell(height=4)", "plan.height=2", "plan.width=3", "steps=10", "steps=20"]
    result = override(config, words)
    assert (result.plan.height, result.plan.width, result.steps) == (2, 3, 20)


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
    with pytest.raises(
        ConfigError, match=r"^plan must be .* cell\(height=8, width=8, shuffle=None\), not "
    ):
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
        ("qqq", "choose from steps, name, system, note"),
        ("", "choose from steps, name, system, note"),
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
    assert override(config, ["--config.steps=30", "config.model.width=1"]).steps == 30


def test_override_copies_and_locks(config):
    before = to_json(config)
    result = override(config, ["model.width=1", "plan=token", "mesh.data=2"])
    result.mesh.fsdp = 7
    assert to_json(config) == before
    assert result.is_locked and result.model.is_locked
    assert override(config.unlock(), []).model.is_locked


def test_shared_parts_are_parted(config):
    shared = spec("shifted", shift=1.0)
    other = ConfigDict({**config.unlock(), "system": "tests.own:pair", "a": shared, "b": shared})
    for field in ("plan", "model", "flow", "note", "scales", "words"):
        del other[field]
    result = override(other, ["a.shift=2"])
    assert (result.a.shift, result.b.shift) == (2, 1)


# Defaults.


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["evaluation=fidelity(samples=50)"], "evaluation.batch_size", 64),
        (
            ["evaluation=fidelity(samples=50)", "evaluation.batch_size=2"],
            "evaluation.batch_size",
            2,
        ),
        (["data.flip=False"], "data.flip", False),
        (["model.unroll=2"], "model.unroll", 2),  # a field of a dataclass among the arguments
        (["memory.accumulate=2"], "memory.moments", "float32"),
        (["flow.path.name=cosine"], "flow.path.name", "cosine"),
        ([], "autoencoder.name", "none"),
        ([], "optimizer.final_weight_decay", None),
        (["optimizer.final_weight_decay=1"], "optimizer.final_weight_decay", 1.0),
    ],
)
def test_what_a_config_does_not_spell_out_is_there(config, words, field, value):
    found = override(config, words)
    for name in field.split("."):
        found = found[name]
    assert found == value and type(found) is type(value)


def test_a_completed_config_is_complete(config):
    assert override(config, []) == config == again(to_json(config))


def test_a_stored_config_of_an_older_run_gets_the_fields_that_came_since(config):
    old = json.loads(to_json(config))
    del old["memory"], old["data"]["flip"], old["model"]["remat"], old["workers"]
    assert again(json.dumps(old)) == config
    old["data"]["flipp"] = True
    with pytest.raises(ConfigError, match=r"no field 'data.flipp': did you mean 'data.flip'\?"):
        again(json.dumps(old))


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["plan=cell(height=4)"], "config lacks 'plan.width', which has no default"),
        (["autoencoder=vq"], "config lacks 'quantizer', which has no default"),
        (["evaluation=fidelity(sample=5)"], "did you mean 'evaluation.samples'?"),
        (["evaluation=fidelity(samples='many')"], "evaluation.samples must be a whole number"),
        (["data.size=x"], "data.size must be a whole number"),
    ],
)
def test_what_cannot_be_completed_is_refused(config, words, problem):
    with pytest.raises(ConfigError) as error:
        override(config, words)
    assert problem in str(error.value)


def test_a_part_says_what_it_needs_of_the_rest():
    vq = ["autoencoder=vq", "quantizer=vector(channels=4)"]
    assert override(load("xar_digits"), vq).quantizer.vocabulary == 4096
    assert "flow" not in load("mar_digits")
    words = ["context=shifted", "head=flow_network(width=8, depth=1, heads=1)"]
    assert override(load("mar_digits"), words).flow.path.name == "linear"


def test_settings_of_sampling_are_those_of_the_parts():
    config = override(load("xar_digits"), ["head=categorical", "sample.top_k=3"])
    assert config.sample.top_k == 3 and "solver" not in config.sample
    assert override(config, ["context=masked"]).sample.iterations == 64
    with pytest.raises(ConfigError, match=r"no field 'sample.solver'"):
        override(config, ["sample.solver=heun"])


# Own parts.


def own(*words):
    return override(load("mar_digits"), ["head=tests.own:Head(width=8, depth=1)", *words])


def test_own_parts_stand_wherever_a_name_does(path):
    config = own("head.steps=7", "sample.amount=2")
    assert own_parts(config) == ("tests.own:Head",)
    assert config.sample.amount == 2.0 and "temperature" not in config.sample
    system, _ = setup.build(config)
    assert system.network.head.diffusion.steps == 7
    assert own_parts(load(path)) == ("tests.own:everything",)


def test_a_part_inside_a_part_is_completed_and_made():
    config = load("xar_digits").unlock()
    config.tokenizer = spec("tests.own:Scaled", inner=spec("patch", height=4))
    config = override(config, ["tokenizer.scale=2"])
    assert config.tokenizer.inner.to_dict() == dict(name="patch", height=4, width=1)
    system, _ = setup.build(config)
    assert system.entities.tokenizer.inner.height == 4
    assert system.entities.tokenizer.scale == 2.0
    with pytest.raises(ConfigError, match=r"did you mean 'tokenizer.inner.height'"):
        override(config, ["tokenizer.inner=patch(heigth=4)"])


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("no_such_package.heads:Gaussian", "No module named 'no_such_package'"),
        ("tests.own:Gaussian", "has no attribute 'Gaussian'"),
        ("tests.own:WORDS", "is no class or function"),
        ("tests.own:Undeclared", "which serves []"),
    ],
)
def test_an_own_part_that_cannot_be_used_is_named(name, problem):
    with pytest.raises(ConfigError) as error:
        setup.build(override(load("flowar_digits"), [f"head={name}"]))
    assert name in str(error.value) and problem in str(error.value)


# Text.


def test_json_round_trip_is_exact(config):
    odd = override(config, ["model.depth=3,", "data.path='a\\n\\u2028\"é'", "model.dropout=1e-45"])
    for one in (config, odd):
        text = to_json(one)
        assert again(text) == one and to_json(again(text)) == text
    assert again(to_json(config)).scales == ((1, 1), (2, 2))
    assert type(again(to_json(config)).flow.time.mu) is float
    keys = [line.split('"')[1] for line in to_json(config).split("\n") if line[:3] == '  "']
    assert keys == sorted(keys)


@pytest.mark.parametrize(
    "text",
    ["", "[1]", "{", "{}", '{"a": NaN}', '{"a.b": 1}', '{"__class__": 1}', '{"a": [{"b": 1}]}'],
)
def test_bad_json_is_refused(text):
    with pytest.raises(ConfigError):
        from_json(text)


def test_render_is_aligned_in_order_of_definition_and_can_be_given_back(config):
    lines = render(config).split("\n")
    assert lines[0].split() == ["steps", "=", "100"]
    assert [line.split()[0] for line in lines[4:7]] == ["plan.name", "plan.height", "plan.width"]
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
    "xar_digits": [
        "name=a", "seed=0", "steps=1", "batch_size=1", "workers=0", "label_dropout=1",
        "model.width=4", "model.depth=(1, 1)", "model.heads=1", "model.mlp_ratio=1",
        "model.dropout=0", "model.attention_dropout=0.9", "model.time_scale=1", "model.unroll=2",
        "optimizer.base_learning_rate=1e-9", "optimizer.final_learning_rate=0",
        "optimizer.warmup_steps=1", "optimizer.warmup_from=1", "optimizer.decay_fraction=1",
        "optimizer.beta1=0", "optimizer.beta2=0.999", "optimizer.weight_decay=0",
        "optimizer.clip_norm=0.1", "ema=0", "sample.steps=2", "sample.guidance=1",
        "sample.every=0", "checkpoint.every=1", "checkpoint.keep=1", "checkpoint.keep_every=0",
        "log_every=1", "mesh.data=-1", "mesh.fsdp=1", "mesh.tensor=8", "num_classes=10",
    ],
    "kl_glyphs": ["loss.kl_weight=0", "loss.adversarial_start=0", "loss.discriminator_width=1"],
}  # fmt: skip

BAD = {
    "xar_digits": {
        "name": ("", 3), "plan.name": ("", 3), "seed": (-1, 0.5, 2**31 - 2),
        "steps": (0, 1.0, True), "batch_size": (0,), "num_classes": (0,), "workers": (-1,),
        "context": ("dirty", None, {}), "tokenizer": (None,), "plan": (1,),
        "data": (3, "folder", ConfigDict(dict(path="/x"))), "label_dropout": (-0.1, 1.1),
        "data_shape": ((0, 16, 1),),
        "flow.path": ("linear",), "flow.time": (0.0,), "flow.time.sigma": (0,), "model": ("xar",),
        "model.width": (0, "wide"), "model.depth": ((1, 0),),
        "model.heads": (0,), "model.mlp_ratio": (0, float("inf")), "model.dropout": (1, -0.1),
        "model.attention_dropout": (1.0,), "model.time_scale": (0,),
        "model.dtype": ("float16",), "model.remat": (1, True), "model.unroll": (0, True),
        "model.attention": ("sparse",), "optimizer": (3,),
        "optimizer.base_learning_rate": (0, -1e-3), "optimizer.decay": ("step",),
        "optimizer.final_learning_rate": (-1e-9,), "optimizer.warmup_steps": (-1,),
        "optimizer.decay_fraction": (1.1,), "optimizer.beta1": (1,), "optimizer.beta2": (1.0,),
        "optimizer.weight_decay": (-1, float("nan")), "optimizer.final_weight_decay": (-1,),
        "optimizer.clip_norm": (0,), "ema": (1, -1), "memory.accumulate": (0,),
        "memory.moments": ("float16",), "memory.offload_ema": (1,),
        "sample.steps": (0,), "sample.guidance": (0.9,), "sample.every": (-1,),
        "sample.per_class": (0,), "sample.solver": ("rk45",), "sample.high": (1.1,),
        "sample.schedule": ("sine",), "evaluation.per_class": (0,), "checkpoint.every": (0,),
        "checkpoint.keep": (0,), "checkpoint.keep_every": (-1,), "log_every": (0,),
        "mesh.data": (0, -2), "mesh.fsdp": (0,), "mesh.tensor": (1.5,),
    },
    "mar_digits": {
        "model.buffer": (0,), "head.width": (0,), "head.depth": (0,), "head.repeats": (0,),
        "context.lowest": (0, 1), "context.deviation": (0,), "sample.iterations": (0,),
        "sample.temperature": (-1,),
    },
    "flowar_digits": {"head.heads": (0,), "head.unroll": (0,), "sample.times": ("even",)},
    "var_digits": {
        "model.drop_path": (1,), "head.init_scale": (-1,),
        "quantizer.vocabulary": (0,), "autoencoder.width": (0,), "sample.top_p": (2,),
    },
    "vq_glyphs": {
        "loss.quantization_weight": (-1,), "loss.level_dropout": (2,), "model.phis": (-1,),
        "loss.discriminator_layers": (0,), "loss.learned_variance": (1,),
        "quantizer.learning": ("rote",), "quantizer.decay": (1,), "model.dtype": ("float16",),
    },
}  # fmt: skip


def with_value(name, field, value):
    """A config in which a setting has a value of any type."""
    config = load(name).unlock()
    *groups, last = field.split(".")
    group = config
    for key in groups:
        group = group[key]
    with group.ignore_type():
        group[last] = value
    return config


@pytest.mark.parametrize("name", GOOD)
def test_the_edges_of_every_range_pass(name):
    config = override(load(name), GOOD[name])
    check(config)
    setup.build(config)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [(name, f, v) for name, fields in BAD.items() for f, values in fields.items() for v in values],
)
def test_outside_its_range_a_field_is_refused(name, field, value):
    with pytest.raises(ConfigError) as error:
        setup.build(with_value(name, field, value))
    text = str(error.value)
    if field.endswith(".name"):
        assert text.startswith(f"config.{field.removesuffix('.name')} has no choice {value!r}")
    else:
        assert text.startswith(f"{field} must be ")
        assert ", not " in text


def test_a_tuple_of_another_form_is_refused():
    """In a process of its own: here annotations are checked, before the rules are."""
    bad = [("data_shape", (16, 16)), ("data_shape", 16)]
    bad += [("model.depth", depth) for depth in ((), 0, (1.5, 1), (1, 1, 1))]
    code = (
        "from jaxar import config as configs; from jaxar.runs import setup\n"
        f"for field, value in {bad}:\n"
        "    config = configs.load('xar_digits').unlock()\n"
        "    group = config.model if '.' in field else config\n"
        "    with group.ignore_type():\n"
        "        group[field.split('.')[-1]] = value\n"
        "    try: setup.build(config)\n"
        "    except configs.ConfigError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        f"{field} must be a tuple of {3 if field == 'data_shape' else 2} whole numbers of at least "
        f"1, not {value!r}."
        for field, value in bad
    ], done.stderr


def test_the_message_of_a_range():
    with pytest.raises(ConfigError) as error:
        check(with_value("xar_digits", "optimizer.base_learning_rate", -0.001))
    assert str(error.value) == "optimizer.base_learning_rate must be above 0, not -0.001."


def test_fields_that_must_agree(config):
    with pytest.raises(ConfigError, match="warmup_steps must be at most steps, 5, not 10"):
        check(override(config, ["steps=5"]))
    with pytest.raises(ConfigError, match=r"mesh\.data and fsdp cannot all be -1"):
        check(override(config, ["mesh.fsdp=-1"]))


def test_the_import_is_light():
    code = "import sys, jaxar.config; sys.exit(any(m in sys.modules for m in ('jax', 'flax')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
