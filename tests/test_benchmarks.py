import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from benchmarks import (
    floors,
    host,
    machine,
    measure,
    peer,
    profile,
    programs,
    run,
    scaling,
    sides,
    table,
)
from benchmarks.ceilings import Ceilings
from benchmarks.pipe import ROOT, BenchmarkError, Worker
from benchmarks.sides import Setting, Side
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


def test_the_interval_of_a_median_is_as_wide_as_its_coverage_asks():
    def interval(count, coverage=0.95):
        found = measure.Rounds(tuple(map(float, range(count)))).interval(coverage)
        return found["low"], found["high"], pytest.approx(found["coverage"], abs=5e-4)

    # By the tables of the binomial distribution: n = 9, 20 and 5, which is too few for 95 %.
    assert interval(9) == (1, 7, 0.9609)
    assert interval(20) == (5, 14, 0.9586)
    assert interval(5) == (0, 4, 0.9375)
    assert interval(1) == (0, 0, 0.0)
    assert interval(20, 0.49) == (8, 11, 0.4966)


def test_an_interval_holds_the_median_as_often_as_it_says():
    draws = jax.random.exponential(jax.random.key(0), (2000, 9)).tolist()
    found = [measure.Rounds(tuple(values)).interval() for values in draws]
    held = sum(one["low"] <= 0.6931 <= one["high"] for one in found) / len(found)
    assert held == pytest.approx(found[0]["coverage"], abs=0.015)


def test_other_work_is_what_was_not_used_here(monkeypatch):
    seconds = iter([100.0, 103.0, 103.0])
    monkeypatch.setattr(machine, "_busy", lambda: next(seconds))
    monkeypatch.setattr(machine.time, "perf_counter", iter([0.0, 2.0, 2.0]).__next__)
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 2)
    share = machine.others()
    assert share(1.0) == 0.5  # three seconds of two processors in two seconds, one of them ours
    assert share(4.0) == 0.0


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
import os, sys, threading, time
from benchmarks.pipe import serve

def spin():
    while True:
        pass

if "spin" in sys.argv:
    threading.Thread(target=spin, daemon=True).start()

def prepare(**arguments):
    print("noise that is no answer")
    return {"seen": sorted(arguments), "device": os.environ.get("DEVICE", "cpu")}

def run(count):
    time.sleep(0.001 * count)
    return {"seconds": 0.5 * count * float(os.environ.get("SLOWNESS", "1"))}

def fail():
    raise ValueError("no such thing")

serve({
    "prepare": prepare,
    "run": run,
    "run_released": lambda count: {"seconds": 1.0 * count},
    "fail": fail,
    "device_peak": lambda: {"peak": None},
})
"""


@pytest.fixture
def stub_file(tmp_path):
    file = tmp_path / "stub.py"
    file.write_text(STUB)
    return str(file)


@pytest.fixture
def stub(stub_file):
    with Worker("the stub", [sys.executable, stub_file], {}) as worker:
        yield worker


def test_a_worker_answers_line_by_line(stub):
    seen = {"seen": ["batch", "what"], "device": "cpu"}
    assert stub.ask("prepare", what="train", batch=2) == seen
    assert stub.ask("run", count=3) == {"seconds": 1.5}
    peaks = peer.peaks(stub)
    assert peaks["whole"] > 1 << 20 and peaks["device"] is None
    with pytest.raises(BenchmarkError, match="the stub cannot fail: ValueError: no such thing"):
        stub.ask("fail")
    assert stub.ask("run", count=1) == {"seconds": 0.5}


def test_both_sides_take_turns(stub):
    times = sides.alternate([(stub, "run"), (stub, "run_released")], 3)
    assert [one.values for one in times] == [(0.5,) * 3, (1.0,) * 3]


def test_a_worker_that_waits_takes_no_processor_time(stub, stub_file):
    with Worker("the spinner", [sys.executable, stub_file, "spin"], {}) as spinner:
        spinner.ask("run", count=1000)
        before = spinner.ask("processor")
        stub.ask("run", count=1000)
        after = spinner.ask("processor")
        assert before["whole"] > 0.05  # it does spin, when it is let
        assert after["waiting"] - before["waiting"] < 0.05
        assert after["whole"] - before["whole"] < 0.05


def test_a_worker_that_dies_while_it_is_stopped_is_told(stub):
    stub.ask("run", count=1)
    os.kill(stub.pid, signal.SIGKILL)
    with pytest.raises(BenchmarkError, match="the stub cannot run: it ended with code -9"):
        stub.ask("run", count=1)


PARENT = """
import sys
from benchmarks.pipe import Worker

command = [sys.executable, sys.argv[1], "spin"]
with Worker("one", command, {}) as one, Worker("two", command, {}) as two:
    one.ask("run", count=1)
    two.ask("run", count=1)
    print(one.pid, two.pid, flush=True)
    two.ask("run", count=100_000)
"""


def _state(pid):
    """Returns the state of a process as Linux has it: T, it is stopped; Z or none, it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the states of Linux")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_no_worker_outlives_its_parent(tmp_path, stub_file, number):
    file = tmp_path / "parent.py"
    file.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(file), stub_file],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert parent.stdout is not None
        pids = parent.stdout.readline().split()
        assert len(pids) == 2 and _state(int(pids[0])) == "T"
        parent.send_signal(number)
        parent.wait(20)
    finally:
        parent.kill()
        parent.communicate()
    limit = time.monotonic() + 20
    while any(_state(int(pid)) not in (None, "Z") for pid in pids):
        assert time.monotonic() < limit, f"signal {number} leaves a worker behind"
        time.sleep(0.05)


def test_every_policy_is_tried_where_there_are_threads_to_wait_for():
    assert sides.of_torch(1) == sides.of_jax(1) == [Setting(1)]
    torch, jax_ = sides.of_torch(2), sides.of_jax(2)
    assert torch[0] == jax_[0] == Setting(2) and torch[-1] == jax_[-1] == Setting(1)
    assert [s.environment for s in torch[:-1]] == list(sides.POLICIES)
    assert {s.threads for s in sides.of_torch(16)} == {1, 8, 16}


@pytest.fixture
def side(stub_file):
    def make(*settings):
        return Side("the stub", [sys.executable, stub_file], {"what": "train"}, settings)

    return make


def test_a_side_has_its_fastest_setting(side):
    settings = [Setting(2, {"SLOWNESS": value}) for value in "9123"]
    tried = {"SLOWNESS=9": 4.5, "SLOWNESS=1": 0.5, "SLOWNESS=2": 1.0, "SLOWNESS=3": 1.5}
    expected = {f"2 threads, {words}": time for words, time in tried.items()}
    assert side(*settings).search() == (settings[1], expected)


def test_nothing_is_searched_on_an_accelerator(side):
    settings = [Setting(2, {"DEVICE": "a GPU"}), Setting(1, {"SLOWNESS": "0.1"})]
    assert side(*settings).search() == (settings[0], {})


def test_a_comparison_has_both_loops_and_how_it_was_made(side):
    pair, settings = (side(), side()), (Setting(1), Setting(2, {"SLOWNESS": "1.5"}))
    report = peer.measured(pair, settings, peer.LOOPS["train"], 6)
    assert report["ratio"]["median"] == report["ratio"]["low"] == 1.5
    assert report["released"]["ratio"]["median"] == 2.0
    assert report["ratio"]["coverage"] == 1 - 2 / 2**6
    assert report["ours"]["waiting"] < 0.1
    for name in ("ours", "peer"):
        report[name] |= {"setting": "1 thread", "tried": {"1 thread": 0.5}}
    what = {"config": "xar_b", "fields": [], "what": "train", "batch": 4, "compiled": False}
    lines = table.peers([{**what, **report}]).splitlines()
    cells = [cell.strip() for cell in lines[2].split("|")]
    assert cells[4:10] == ["6", "500 ms", "750 ms", "1.5 (1.5 to 1.5)", "1 s", "2 (2 to 2)"]
    assert "interval of 96.9%; jaxar with 1 thread (tried: 1 thread: 500 ms)" in lines[-1]
    only = peer.measured(pair, settings, peer.LOOPS["sample"], 1)
    assert only["released"] is None


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
