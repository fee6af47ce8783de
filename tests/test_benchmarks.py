import json
import sys

import jax
import pytest

from benchmarks import floors, host, measure, peer, profile, programs, run, scaling, table
from benchmarks.ceilings import Ceilings
from benchmarks.pipe import BenchmarkError, Worker
from jaxar import config as configs
from jaxar.assembly import build_system
from jaxar.parallel import sharding
from jaxar.runs.model import Model
from launch.programs import count_operations
from tests.shrink import shrunk

TINY = (*host.TINY, "sample.steps=3")  # one training step is compiled for all tests
KNOWN = {  # counted on paper: GFLOP of an image's training, TFLOP of its sampling
    "xar_b": (182, 4.36),
    "xar_l": (641, 19.1),
    "xar_h": (1245, 37.0),
}


def flags(*words):
    return run.parser().parse_args(words)


# Floors.


@pytest.mark.parametrize("name", KNOWN)
def test_floors_are_those_of_the_design(name):
    config, (train, sample) = configs.load(name), KNOWN[name]
    assert floors.least(config, "train") / 1e9 == pytest.approx(train, rel=0.02)
    assert floors.least(config, "sample") / 1e12 == pytest.approx(sample, rel=0.02)


def test_a_floor_counted_by_hand():
    # 16 tokens of 16 channels in 4 cells of 4; width 16, two layers; MLP of int(2/3 x 4 x 16) = 42.
    config = configs.override(configs.load("xar_digits"), TINY)
    block = 2 * (16 * 48 + 16 * 16 + 3 * 16 * 42)
    embed, between, predict = 2 * 16 * 16, 2 * 16 * 16, 2 * 16 * 16
    token = 2 * block + between
    attention = 2 * 4 * 16
    modulation, first, second = 2 * (2 * 16 * 6 * 16), 2 * 256 * 16, 2 * 16 * 16
    pairs = 16 * (1 + 2 + 3 + 4)
    forward = 16 * (embed + token + predict) + pairs * attention
    forward += 4 * (modulation + first + second)
    assert floors.least(config, "train") == 3 * forward - 16 * embed - 4 * first
    # 3 evaluations; two rows but in the first cell, with the same tokens; cells 1 to 3 are encoded
    # again in two rows, without a prediction. There the time is 0, and so are half its sinusoids.
    evaluations, rows, again = (3, 3, 3, 3), (3, 6, 6, 6), (1, 1, 1, 0)
    cells = sum(
        4 * (e + a) * embed + (r + 2 * a) * (4 * token + 16 * (i + 1) * attention) + 4 * r * predict
        for i, (e, r, a) in enumerate(zip(evaluations, rows, again, strict=True))
    )
    times = 3 * (first + second) + first / 2 + second
    assert floors.least(config, "sample") == cells + times + 2 * (3 + 1) * modulation


@pytest.mark.parametrize("name", ["xar_b", "flowar_s", "flowar_l", "mar_b"])
def test_no_program_does_less_than_its_floor(name):
    config = shrunk(name, "batch_size=1")
    system = build_system(config)
    params = jax.eval_shape(system.init, jax.random.key(0))
    batch = {
        "data": jax.ShapeDtypeStruct((1, *config.data_shape), "float32"),
        "condition": jax.ShapeDtypeStruct((1,), "int32"),
        "step": jax.ShapeDtypeStruct((), "int32"),
    }

    def loss(params, batch):
        return system.loss(params, {}, batch, jax.random.key(0))[0]

    done = count_operations(jax.make_jaxpr(jax.grad(loss))(params, batch))
    least = floors.least(config, "train")
    assert least is not None and 0 < least <= done


def test_an_autoencoder_is_trained_and_does_not_sample():
    config = configs.load("kl_glyphs")
    assert floors.least(config, "sample") is None
    image, kernel = 32 * 32, 3 * 3 * 16 * 16  # one convolution of the finest level, and all others
    assert floors.least(config, "train") > 3 * 2 * image * kernel


# Programs.


@pytest.fixture(scope="module")
def config():
    return configs.override(configs.load("xar_digits"), TINY)


def test_train_sample_and_evaluate_compile_once_each(config):
    for what in ("train", "sample"):
        program = programs.make(config, what)
        program.run(1)
        with host.compilations() as compiled:
            program.run(3)
            assert compiled() == 0, what
    system = build_system(config)
    model = Model(config, system, system.init(jax.random.key(0)), sharding.make_mesh(config.mesh))
    model.sample([1])
    with host.compilations() as compiled:
        for seed in range(1, 4):  # as an evaluation draws batch after batch
            model.sample([3], seed=seed, first=seed)
        assert compiled() == 0


def test_a_program_goes_on_with_its_state(config):
    program = programs.make(config, "train")
    first = jax.device_get(program.dispatch(1)["gradient_norm"])
    second = jax.device_get(program.dispatch(1)["gradient_norm"])
    assert first != second
    assert program.operations >= floors.least(config, "train")


def test_host_overhead_is_counted_for_the_arrays_of_a_step():
    found = host.overhead(steps=5)
    assert found["thread"] > 0 and found["wall"] > 0 and found["arrays"] > 100
    assert 0 < found["least"] < 10 * found["thread"]


# Measuring.


def test_rounds_are_as_long_as_asked():
    assert measure.runs_a_round(0.2, least=0.5) == 3
    assert measure.runs_a_round(2.0, least=0.5) == 1
    counts = []
    rounds = measure.seconds(counts.append, 3, least=0.0)
    assert len(rounds.values) == 3 and counts == [1] * 5
    assert rounds.least <= rounds.median <= rounds.most


def test_ratios_are_taken_round_by_round():
    assert measure.ratios([2.0, 6.0, 2.0], [1.0, 2.0, 2.0]).facts() == {
        "median": 2.0,
        "least": 1.0,
        "most": 3.0,
    }


def test_kinds_take_turns():
    order = []
    runs = [lambda count, kind=kind: order.append((kind, count)) for kind in "ab"]
    both = measure.in_turns(runs, 2, least=0.0)
    assert [kind for kind, _ in order] == list("aabb" + "abab")
    assert [len(one.values) for one in both] == [2, 2]


def test_growth_is_fitted():
    assert scaling.exponent([1, 2, 4], [3.0, 6.0, 12.0]) == pytest.approx(1)
    assert scaling.exponent([1, 2, 4], [1.0, 4.0, 16.0]) == pytest.approx(2)


# Tables and profiles.


def test_tables_are_markdown():
    lines = table.render(("config", "what", "time"), [["xar_b", "train", "1 s"]]).splitlines()
    assert lines == [
        "| config | what  | time |",
        "|--------|-------|-----:|",
        "| xar_b  | train |  1 s |",
    ]


@pytest.mark.parametrize(
    "value, text", [(1.25e12, "1.25 T"), (999.0, "999 "), (2.5e9, "2.5 G"), (None, "-")]
)
def test_numbers_are_short(value, text):
    assert table.number(value) == text


def test_times_have_their_spread():
    assert table.spread({"median": 0.0123, "least": 0.012, "most": 0.02}) == "12.3 ms (12 to 20)"
    assert table.spread({"median": 2.0, "least": 2.0, "most": 2.0}) == "2 s"
    assert table.spread(None) == "-"


HLO = """
  %dot.1 = f32[2,2]{1,0} dot(%a, %b), metadata={op_name="jit(step)/jvp()/while/body/dot_general"}
  %add_fusion = f32[2]{0} fusion(%c), metadata={op_name="jit(f)/transpose(jvp())/jit(_where)/add"}
  %while.1 = (s32[], f32[2]{0}) while(%t), condition=%c, body=%b, metadata={op_name="jit(f)/while"}
  ROOT %copy.2 = f32[2]{0} copy(%d)
"""


def test_a_profile_sums_operations_by_their_source():
    known = profile.sources(HLO)
    assert known["dot.1"].part == "dot_general, forward"
    assert known["add_fusion"].part == "add in _where, backward"
    assert known["copy.2"].part == "copy"
    spans = [("dot.1", 0.5), ("dot.1", 0.25), ("add_fusion", 0.25), ("while.1", 9.0)]
    text = profile.summary(spans, known)
    assert "75.0%     0.7500        2  dot_general, forward" in text
    assert "while" not in text.splitlines()[1]
    assert profile.summary([], known) == "the trace has no operations of a device"


# The command line.


def test_the_command_line_measures_and_writes(tmp_path, capsys, monkeypatch):
    from benchmarks import ceilings, rows

    rates = Ceilings("cpu", {"float32": 1e11, "bfloat16": 1e11}, 1e10)
    monkeypatch.setattr(ceilings, "measure", lambda rounds: rates)
    monkeypatch.setattr(
        rows, "seconds", lambda run, rounds: measure.seconds(run, rounds, least=0.0)
    )
    file = tmp_path / "report.json"
    run.main(
        [
            *("--config=xar_digits", "--batch=1", "--rounds=2", f"--json={file}"),
            f"--profile={tmp_path}",
            *(f"--config.{field}" for field in TINY),
        ]
    )
    found = json.loads(file.read_text())
    assert [report["what"] for report in found["programs"]] == ["train", "sample"]
    for report in found["programs"]:
        assert report["batch"] == 1 and report["compiled_again"] == 0
        assert len(report["rounds"]) == 2 and report["memory"]["bytes"] > 0
        assert 0 < report["least"] <= report["done"] * 1.01
        assert report["mfu"] == pytest.approx(report["least"] / report["time"]["median"] / 1e11)
        assert "dot_general" in report["profile"]
    text = capsys.readouterr().out
    assert "| xar_digits width=16 depth=(1,1)" in text
    assert "programs compiled after the first run: 0" in text
    assert (tmp_path / "xar_digits_train" / "operations.txt").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        (["--config=xar_digits", "--what=draw"], "--what has no 'draw': choose from train"),
        ([], "--config is missing"),
        (["--config=xar_digits", "--rounds=0"], "--rounds must be 1 or more, not 0"),
        (["--config=xar_digits", "--batch=0"], "--batch must be 1 or more, not 0"),
        (["--config=xar_digits", "--compile"], "--compile is of the official code"),
        (["--config=xar_digits", "--peer=a", "--topology=v5e:2x2"], "give one of them"),
        (["--config=xar_digits", "--peer=/nowhere"], "holds no models/xar.py"),
        (["--config=xar_digits", "--peer=a", "--what=input"], "goes with neither"),
        (["--config=xar_digits", "--topology=v5e:2x2", "--profile=a"], "--profile goes with"),
        (["--config=xar_digits", "--config.model.width=x"], "model.width must be"),
        (["--config=xar_digits", "--what=input"], "reads digits, not cached latents"),
        (["--config=var_digits", "--what=scaling"], "needs cells and solver steps"),
        (["--config=xar_digits", "--topology=v9:2x2"], "there is no chip 'v9'"),
    ],
)
def test_bad_input_is_said_in_one_sentence(words, said, capsys, monkeypatch):
    import launch.compile

    monkeypatch.setattr(launch.compile, "environment", lambda: None)
    with pytest.raises(SystemExit) as error:
        run.main(words)
    assert error.value.code == 2
    assert said in capsys.readouterr().err


# The official code.


def test_the_official_model_has_the_sizes_of_the_config():
    found = peer.sizes(configs.override(configs.load("xar_digits"), ["batch_size=8"]))
    assert (found["side"], found["width"], found["depth"], found["channels"]) == (4, 96, [2, 2], 16)
    assert (found["steps"], found["guidance"], found["ema"]) == (20, 1.5, 0.99)


@pytest.mark.parametrize(
    "name, words, said",
    [
        ("var_digits", [], "noisy xAR alone"),
        ("xar_digits_token", [], "2 x 2 cells alone"),
        ("xar_digits", ["batch_size=1"], "batches of 2 or more"),
        ("xar_digits", ["sample.solver=heun"], "euler_maruyama alone"),
    ],
)
def test_what_the_official_code_cannot_do_is_said(name, words, said):
    with pytest.raises(BenchmarkError, match=said):
        peer.sizes(configs.override(configs.load(name), words))


STUB = """
import sys, time
from benchmarks.pipe import serve

def prepare(**arguments):
    print("noise that is no answer")
    return {"seen": sorted(arguments)}

def run(count):
    time.sleep(0.001 * count)
    return {"seconds": 0.5 * count}

def fail():
    raise ValueError("no such thing")

serve({"prepare": prepare, "run": run, "fail": fail, "device_peak": lambda: {"peak": None}})
"""


@pytest.fixture
def stub(tmp_path):
    file = tmp_path / "stub.py"
    file.write_text(STUB)
    with Worker("the stub", [sys.executable, str(file)], {}) as worker:
        yield worker


def test_a_worker_answers_line_by_line(stub):
    assert stub.ask("prepare", what="train", batch=2) == {"seen": ["batch", "what"]}
    assert stub.ask("run", count=3) == {"seconds": 1.5}
    peaks = peer.peaks(stub)
    assert peaks["whole"] > 1 << 20 and peaks["device"] is None
    with pytest.raises(BenchmarkError, match="the stub cannot fail: ValueError: no such thing"):
        stub.ask("fail")
    assert stub.ask("run", count=1) == {"seconds": 0.5}


def test_both_sides_take_turns(stub):
    ours, theirs = peer.alternate((stub, stub), 3)
    assert ours.values == theirs.values == (0.5, 0.5, 0.5)


def test_the_last_words_of_a_worker_are_told(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("import sys; sys.exit('no PyTorch here')")
    with (
        Worker("the official code", [sys.executable, str(file)], {}) as worker,
        pytest.raises(BenchmarkError, match="ended with code 1: no PyTorch here"),
    ):
        worker.ask("prepare")
    with pytest.raises(BenchmarkError, match="does not start"):
        Worker("nothing", ["/nowhere/python"], {})


CHECKOUT = {
    "models/xar.py": """
        import torchvision.transforms as transforms
        from . import sampler, rope
        class Attention:
            def __init__(self): self.side = 16
            def forward(self): return -64
        class Block:
            def forward(self): return 64
        class xAR:
            def unclusterify(self): return (8, 16, True)
            def sample_tokens(self): return 64
        DEFAULT = 64
        """,
    "models/rope.py": """
        class VisionRotaryEmbeddingFast:
            def __init__(self): self.length = 256
        """,
    "models/sampler.py": "def euler_maruyama_sampler(): return -64",
    "util/misc.py": "KNOWN = 1",
    "engine_xar.py": "import cv2, torch_fidelity",
}


def _checkout(folder, **changed):
    import textwrap

    for name, text in {**CHECKOUT, **changed}.items():
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(textwrap.dedent(text))
    return folder


@pytest.fixture
def own_imports(monkeypatch):
    """Modules and finders of a fake checkout go away after a test."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize("side, cell", [(16, 64), (4, 4)])
def test_a_checkout_is_read_for_a_grid(tmp_path, own_imports, side, cell):
    from benchmarks import peer_modules

    modules = peer_modules.load(str(_checkout(tmp_path)), side)
    xar = modules["models.xar"]
    assert xar.Attention().side == side and xar.Attention().forward() == -cell
    assert xar.xAR().unclusterify() == (side // 2, side, True)
    assert xar.DEFAULT == 64 and xar.sampler.euler_maruyama_sampler() == -cell
    assert xar.rope.VisionRotaryEmbeddingFast().length == side * side
    assert xar.transforms.InterpolationMode.NEAREST == "NEAREST"


def test_another_code_than_the_official_is_refused(tmp_path, own_imports):
    from benchmarks import peer_modules

    folder = _checkout(tmp_path, **{"models/sampler.py": "def euler_maruyama_sampler(): return 1"})
    with pytest.raises(ImportError, match="not the code that is known here"):
        peer_modules.load(str(folder), 4)
