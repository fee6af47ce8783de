"""Several processes, for real: the same run as one, whatever dies, hangs or is told to stop."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from jaxar import checkpoint
from jaxar.config import ConfigError
from jaxar.parallel import distributed
from jaxar.training.progress import read_history
from tests.released import write_tiny

TINY = (
    "--config=xar_digits",
    "--config.model.width=16",
    "--config.model.heads=2",
    "--config.model.depth=(1,1)",
    "--config.model.dropout=0.1",
    "--config.model.attention_dropout=0.1",
    "--config.batch_size=16",
    "--config.steps=50",
    "--config.optimizer.warmup_steps=5",
    "--config.log_every=1",
    "--config.sample.every=0",
    "--config.sample.steps=2",
    "--config.sample.classes=2",
    "--config.sample.per_class=4",
    "--config.evaluation=none",
    "--config.mesh.data=4",
    "--config.mesh.fsdp=2",
)
"""The command line's own program, small."""


TOY, MAIN = ("-m", "tests.toy"), ("-m", "jaxar.main")

SMALL_SHARDS = """
import functools
from jaxar import main
from jaxar.runs import encode as encoding
encoding.encode = functools.partial(encoding.encode, shard_size=3)
main.main()
"""
"""The command line, with few latents in a file."""


class Job:
    """A program in some processes, each with some simulated devices."""

    def __init__(self, *arguments, program=TOY, processes=1, devices=4, patience=300):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = {
            **os.environ,
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }
        command = [sys.executable, *program, *map(str, arguments), f"--patience={patience}"]
        joining = [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}"]
        streams: dict = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.parts = []
        for number in range(processes):
            own = [*joining, f"--process_id={number}"] if processes > 1 else []
            self.parts.append(subprocess.Popen([*command, *own], env=environment, **streams))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for part in self.parts:
            part.kill()
            part.wait()

    def wait_for_step(self, workdir, step, seconds=240):
        """Returns when a run has logged a step."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if any(record["step"] >= step for record in read_history(workdir)):
                return
            assert all(part.poll() is None for part in self.parts), self.ends(1)
            time.sleep(0.05)
        raise AssertionError(f"step {step} did not come")

    def ends(self, seconds=300):
        """Returns exit code, output and errors of every process."""
        found = []
        for part in self.parts:
            out, errors = part.communicate(timeout=seconds)
            found.append((part.returncode, out, errors))
        return found


def run(*arguments, **options):
    """Returns what the processes printed, after all went well."""
    with Job(*arguments, **options) as job:
        ends = job.ends()
    assert all(code == 0 for code, _, _ in ends), ends
    return ends


def losses(workdir):
    return [record["loss"] for record in read_history(workdir)]


def hashes(ends, what):
    """Returns the hashes that each process told of batches or states, which must all agree."""
    found = [
        [line.split()[-1] for line in out.splitlines() if line.startswith(what + " ")]
        for _, out, _ in ends
    ]
    assert all(part == found[0] for part in found), found
    return found[0]


# -------------------------------------------------------------------------------- who joins whom

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize(
    ("environment", "given", "expected"),
    [
        ({}, {}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, {}, None),  # a shell of salloc, not of srun
        ({**SLURM, "SLURM_NTASKS": "1"}, {}, None),
        (SLURM, {}, distributed.Launch("slurm")),
        (
            {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_GPUS_ON_NODE": "4"},
            {},
            distributed.Launch("slurm", devices=(0, 1, 2, 3)),
        ),
        (
            SLURM,
            {"coordinator": "n1:99"},
            distributed.Launch("coordinator", "n1:99", 2, 1),
        ),
        (
            {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1;tcp://10.0.0.1:1"},
            {},
            distributed.Launch("mpi"),
        ),
        (
            {
                "OMPI_COMM_WORLD_SIZE": "8",
                "OMPI_COMM_WORLD_RANK": "5",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
                "OMPI_COMM_WORLD_LOCAL_RANK": "1",
                "JAX_COORDINATOR_ADDRESS": "a:1",
            },
            {},
            distributed.Launch("coordinator", "a:1", 8, 5, (1,)),
        ),
        (
            {
                "JAX_COORDINATOR_ADDRESS": "job-0:1",
                "JAX_NUM_PROCESSES": "4",
                "JOB_COMPLETION_INDEX": "3",
            },
            {},
            distributed.Launch("coordinator", "job-0:1", 4, 3),
        ),
        ({}, {"coordinator": "a:1", "processes": 2, "process": 0}, ("a:1", 2, 0)),
        ({}, {"tpu": True}, distributed.Launch("tpu")),
    ],
)
def test_who_joins_whom_follows_from_flags_and_environment(environment, given, expected):
    found = distributed.launch(environment, **given)
    assert (found[1:4] if isinstance(expected, tuple) and len(expected) == 3 else found) == expected


@pytest.mark.parametrize(
    ("environment", "given", "message"),
    [
        ({}, {"processes": 2}, "need --coordinator"),
        ({}, {"coordinator": "a:1"}, "--processes and --process_id"),
        ({}, {"coordinator": "a:1", "processes": 2, "process": 2}, "from 0 on, not 2 and 2"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, {}, "give --coordinator"),
    ],
)
def test_half_a_launch_is_refused(environment, given, message):
    with pytest.raises(ConfigError, match=message):
        distributed.launch(environment, **given)


# -------------------------------------------------------------------------------- ending


def test_the_watchdog_ends_what_stands_still():
    program = (
        "import time\nfrom jaxar.parallel.distributed import Watchdog\n"
        "with Watchdog('training', seconds=0.4) as dog:\n"
        "    for i in range(5): dog.beat(f'step {i}'); time.sleep(0.2)\n"
        "    with dog.slow(): time.sleep(1.2)\n"
        "    dog.beat('step 5'); print('there', flush=True); time.sleep(60)\n"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == distributed.STALLED and "there" in done.stdout
    assert "stalled: training has not moved" in done.stderr and "after step 5" in done.stderr
    assert "File" in done.stderr, "where it stood is shown"
    assert time.monotonic() - began < 50


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_told_to_stop_all_save_the_same_step_and_one_goes_on(tmp_path, victim):
    fields = ("steps=4000", "checkpoint.every=10000")
    with Job(tmp_path, *fields, "--pause=0.01", processes=2, devices=2) as job:
        job.wait_for_step(tmp_path, 5)
        job.parts[victim].send_signal(signal.SIGTERM)
        began = time.monotonic()
        ends = job.ends(60)
    print(f"process {victim} told: all ended after {time.monotonic() - began:.1f} s")
    assert [code for code, _, _ in ends] == [distributed.INTERRUPTED] * 2, ends
    (step,) = checkpoint.Checkpoints(tmp_path, read_only=True).steps()
    assert f"step {step:,} is saved" in ends[0][1] and 5 < step < 4000
    assert "train:" in ends[0][1] and "train:" not in ends[1][1], "one process speaks"
    assert [record["step"] for record in read_history(tmp_path)] == list(range(1, step + 1))
    with Job(tmp_path, *fields, devices=4) as job:
        job.wait_for_step(tmp_path, step + 2)
        job.parts[0].send_signal(signal.SIGTERM)
        ((code, out, _),) = job.ends(60)
    assert code == distributed.INTERRUPTED and f"from step {step:,}" in out


@pytest.mark.parametrize(
    ("sent", "victim"),
    [
        (signal.SIGKILL, 1),
        pytest.param(signal.SIGKILL, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, 1, marks=pytest.mark.slow),
    ],
)
def test_a_process_that_dies_or_is_frozen_ends_the_job(tmp_path, sent, victim):
    with Job(tmp_path, "steps=100000", "--pause=0.005", processes=2, devices=2, patience=8) as job:
        job.wait_for_step(tmp_path, 5)
        until = time.monotonic() + 60
        while not checkpoint.exist(tmp_path) and time.monotonic() < until:
            time.sleep(0.05)  # it is written in the background
        job.parts[victim].send_signal(sent)
        began = time.monotonic()
        _, errors = job.parts[1 - victim].communicate(timeout=90)
        seconds, code = time.monotonic() - began, job.parts[1 - victim].returncode
    print(f"{sent.name} to {victim}: the other ended by {code} after {seconds:.1f} s\n{errors}")
    assert code not in (0, distributed.INTERRUPTED) and errors
    assert seconds < 8 + 30
    newest = checkpoint.Checkpoints(tmp_path, read_only=True).latest()
    (end,) = run(tmp_path, f"steps={newest + 2}", devices=4)
    assert f"from step {newest:,}" in end[1]


@pytest.mark.slow
def test_a_process_that_lives_and_hangs_ends_the_job(tmp_path):
    with Job(tmp_path, "steps=1000", "--hangs=1", processes=2, devices=2, patience=8) as job:
        ends = job.ends(120)
    assert all(code not in (0, distributed.INTERRUPTED) for code, _, _ in ends), ends
    assert any(
        code == distributed.STALLED and "stalled: training has not moved" in errors
        for code, _, errors in ends
    ), ends


@pytest.mark.slow
def test_an_error_in_one_process_ends_all(tmp_path):
    with Job(tmp_path, "steps=1000", "--fails=1", processes=2, devices=2, patience=8) as job:
        ends = job.ends(120)
    assert ends[1][0] == 1 and "a mistake" in ends[1][2] and "process 1 ends" in ends[1][2]
    assert ends[0][0] not in (0, distributed.INTERRUPTED), ends


@pytest.mark.slow
def test_processes_that_do_not_come_are_not_waited_for_for_ever(tmp_path):
    with Job(tmp_path, processes=2, devices=2, patience=8) as job:
        job.parts[1].kill()
        began = time.monotonic()
        _, errors = job.parts[0].communicate(timeout=120)
        seconds = time.monotonic() - began
    assert job.parts[0].returncode not in (0, None) and seconds < 60, errors


# -------------------------------------------------------------------------------- the same run


def test_two_processes_are_one_and_die_and_go_on_as_one(tmp_path):
    """The same batches and losses as one process; what one restores is what two have saved."""
    one = run(tmp_path / "one", devices=4)
    with Job(tmp_path / "two", "--dies_at=4", processes=2, devices=2) as job:
        killed = job.ends()
    assert [code for code, _, _ in killed] == [9, 9]
    later = run(tmp_path / "two", devices=4)
    (saved,) = hashes(killed, "saved 4")
    assert hashes(later, "restored 4") == [saved]
    assert hashes(killed, "batch") + hashes(later, "batch") == hashes(one, "batch")
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-6)


@pytest.mark.slow
def test_any_mesh_and_any_number_of_processes_go_on(tmp_path):
    """2 processes, 4, 1, 2, each on another mesh: bits pass on; the batches are those of one."""
    one = run(tmp_path / "one", "checkpoint.every=2", devices=4)
    stages = [
        (2, ("mesh.data=2", "mesh.fsdp=2")),
        (4, ("mesh.data=1", "mesh.fsdp=4")),
        (1, ("mesh.data=1", "mesh.fsdp=2", "mesh.tensor=2")),
        (2, ("mesh.slices=2", "mesh.data=2", "mesh.fsdp=1")),
    ]
    batches, before = [], None
    for number, (processes, mesh) in enumerate(stages):
        step = 2 * number + 2
        arguments = (tmp_path / "many", "checkpoint.every=2", *mesh, f"--dies_at={step}")
        with Job(*arguments, processes=processes, devices=4 // processes) as job:
            ends = job.ends()
        assert {code for code, _, _ in ends} == {9}, ends
        if before:
            assert hashes(ends, f"restored {step - 2}") == before
        before = hashes(ends, f"saved {step}")
        batches += hashes(ends, "batch")
    assert batches == hashes(one, "batch")
    np.testing.assert_allclose(losses(tmp_path / "many"), losses(tmp_path / "one"), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_fifty_steps_of_xar_are_those_of_one_process(tmp_path, processes):
    """The command line itself, with dropout: losses, pictures, and what each process says."""
    options: dict = dict(program=MAIN)
    run(*TINY, f"--workdir={tmp_path / 'one'}", devices=8, **options)
    many = f"--workdir={tmp_path / 'many'}"
    ends = run(*TINY, many, processes=processes, devices=8 // processes, **options)
    assert f"8 of 8 cpu in {processes} processes" in ends[0][1]
    assert all("train:" not in out for _, out, _ in ends[1:])
    found, expected = losses(tmp_path / "many"), losses(tmp_path / "one")
    print(f"{processes}: largest difference {max(abs(np.subtract(found, expected))):.2e}")
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    names = [
        sorted(p.name for p in (tmp_path / d).iterdir() if p.is_file()) for d in ("one", "many")
    ]
    assert names[0] == names[1] and "samples.png" in names[0]


@pytest.mark.slow
def test_samples_are_drawn_and_judged_by_many(tmp_path):
    """Both processes write images, one the rest; the figures are those of one process."""
    options: dict = dict(program=MAIN)
    train = [word for word in TINY if "steps=50" not in word] + ["--config.steps=6"]
    run(*train, f"--workdir={tmp_path / 'run'}", devices=8, **options)
    judged = "fidelity(samples=40,network='digits',reference='data',batch_size=16)"
    figures = []
    for processes, mesh in ((1, "--config.mesh.data=2"), (2, "--config.mesh.data=4")):
        output = tmp_path / f"by{processes}"
        arguments = ["--mode=evaluate", f"--workdir={tmp_path / 'run'}", f"--output={output}"]
        arguments += [
            "--config=xar_digits",
            f"--config.evaluation={judged}",
            mesh,
            "--config.mesh.fsdp=2",
        ]
        run(*arguments, processes=processes, devices=8 // processes, **options)
        assert len(list((output / "images").glob("*.png"))) == 40
        with np.load(output / "images.npz") as arrays:
            images = arrays["arr_0"].astype(int)
        found = json.loads((output / "result.json").read_text())
        figures.append((images, found["figures"]))
    assert np.abs(figures[0][0] - figures[1][0]).max() <= 1
    name = "frechet_distance_digits"
    assert figures[1][1][name] == pytest.approx(figures[0][1][name], rel=1e-2)


@pytest.mark.slow
def test_latents_are_encoded_by_many(tmp_path):
    tokenizer = write_tiny(tmp_path)[1]
    rng = np.random.default_rng(0)
    for i in range(10):
        path = tmp_path / "pictures" / f"class{i % 3}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(path)
    fields = ["autoencoder.width=32", "data_shape=(2,2,32)", "plan=token", "num_classes=3"]
    words = [*(f"--config.{field}" for field in fields), "--config=xar_b", "--mode=encode"]
    words += [f"--source={tmp_path / 'pictures'}", f"--tokenizer={tokenizer}"]
    words += ["--config.mesh.data=2"]
    for processes in (1, 2):
        output = f"--output={tmp_path / f'by{processes}'}"
        run(
            *words,
            output,
            program=("-c", SMALL_SHARDS),
            processes=processes,
            devices=2 // processes,
        )
    one, two = [sorted((tmp_path / f"by{p}").iterdir()) for p in (1, 2)]
    assert [p.name for p in one] == [p.name for p in two] and len(one) == 4 + 2
    for first, second in zip(one, two, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name
