"""Starting jobs: the local runner for real, scripts of clusters with stand-ins for their tools."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from launch.local import environments

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))

SUM = """
import jax, jax.numpy as jnp, os
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(
    os.environ["JAX_COORDINATOR_ADDRESS"], int(os.environ["JAX_NUM_PROCESSES"]),
    int(os.environ["JAX_PROCESS_ID"]))
from jax.experimental import multihost_utils
total = multihost_utils.process_allgather(jnp.asarray([jax.process_index() + 1])).sum()
print("devices", jax.device_count(), "sum", int(total))
"""
FAIL = """
import os, sys, time
sys.exit(7) if os.environ["JAX_PROCESS_ID"] == "1" else time.sleep(60)
"""
SAVE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))
print("ready")
time.sleep(60)
"""


def local(*flags, code):
    return [sys.executable, "-m", "launch.local", *flags, "--", sys.executable, "-c", code]


def run(command, **more):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, **more)


def test_processes_find_each_other():
    done = run(local("--processes=2", "--devices=2", code=SUM))
    assert done.returncode == 0, done.stdout
    for number in (0, 1):
        assert f"[{number}] devices 4 sum 3" in done.stdout


def test_when_one_dies_all_end_with_its_code():
    began = time.monotonic()
    done = run(local("--processes=3", "--grace=0.5", code=FAIL))
    assert done.returncode == 7
    assert time.monotonic() - began < 20
    assert "process 1 ended with code 7" in done.stdout and "[0, 2] did not end" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_being_told_to_stop_is_passed_on(number):
    command = local("--processes=2", code=SAVE)
    job = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    ready = [job.stdout.readline() for _ in range(2)]
    assert all("ready" in line for line in ready)
    job.send_signal(number)
    job.stdout.read()
    assert job.wait(timeout=30) == 42


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "nothing to run"),
        (["--processes=0", "--", "true"], "1 or more"),
        (["--devices=2", "--gpus", "--", "true"], "leave them out"),
        (["--", "no-such-program"], "cannot run no-such-program"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(flags, words):
    done = run([sys.executable, "-m", "launch.local", *flags])
    assert done.returncode == 2
    assert words in done.stderr.strip().splitlines()[-1]


def test_every_process_has_its_own_place():
    found = environments({"XLA_FLAGS": "--x"}, processes=2, devices=4, gpus=False, port=1234)
    assert [one["JAX_PROCESS_ID"] for one in found] == ["0", "1"]
    assert {one["JAX_COORDINATOR_ADDRESS"] for one in found} == {"127.0.0.1:1234"}
    assert found[0]["XLA_FLAGS"] == "--x --xla_force_host_platform_device_count=4"
    found = environments({}, processes=2, devices=None, gpus=True, port=1)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in found] == ["0", "1"]
    assert "JAX_PLATFORMS" not in found[0]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script):
    assert os.access(script, os.X_OK)
    assert run(["bash", "-n", str(script)]).returncode == 0
    places = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    if checker := shutil.which("shellcheck", path=places):
        done = run([checker, str(script)])
        assert done.returncode == 0, done.stdout


def stand_ins(folder, **tools):
    """Writes tools that note how they were called; each is the body of a shell script."""
    folder.mkdir()
    for name, body in tools.items():
        path = folder / name
        path.write_text(f'#!/bin/bash\necho {name} "$@" >> {folder}/calls\n{body}\n')
        path.chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path}, folder / "calls"


@pytest.mark.parametrize("code", [0, 2, 7])
def test_a_pod_starts_again_after_what_can_go_on(tmp_path, code):
    """Twice preempted, then done or broken: it goes on after the former and stops at the latter."""
    count = f"n=$(grep -c ssh {tmp_path}/tools/calls); [[ $n -lt 3 ]] && exit 42; exit {code}"
    environment, calls = stand_ins(tmp_path / "tools", gcloud=count)
    done = run(
        [str(ROOT / "launch/tpu_vm.sh"), "run", "pod", "zone-a", "--config=xar_h", "--x=a b"],
        env={**environment, "PAUSE": "0"},
    )
    assert done.returncode == code, done.stderr
    lines = calls.read_text().splitlines()
    assert len(lines) == 3
    for line in lines:
        assert "tpu-vm ssh pod --worker=all" in line and "--zone=zone-a" in line
        assert r"jaxar.main --config=xar_h --x=a\ b" in line


def test_a_pod_does_not_start_again_for_ever(tmp_path):
    environment, calls = stand_ins(tmp_path / "tools", gcloud="exit 43")
    done = run(
        [str(ROOT / "launch/tpu_vm.sh"), "run", "pod", "zone-a", "--config=xar_h"],
        env={**environment, "PAUSE": "0", "RESTARTS": "2"},
    )
    assert done.returncode == 43
    assert len(calls.read_text().splitlines()) == 3


def test_the_pod_script_says_how_it_is_used():
    done = run([str(ROOT / "launch/tpu_vm.sh")])
    assert done.returncode == 2
    assert "launch/tpu_vm.sh create NAME ZONE" in done.stdout


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (2, False), (42, True), (137, True)])
def test_a_slurm_job_goes_back_into_the_queue(tmp_path, code, requeued):
    environment, calls = stand_ins(tmp_path / "tools", srun=f"exit {code}", scontrol="")
    environment |= {"SLURM_JOB_ID": "17", "SLURM_SUBMIT_DIR": str(ROOT)}
    done = run([str(ROOT / "launch/slurm.sh"), "--config=xar_b"], env=environment)
    assert done.returncode == code
    text = calls.read_text()
    assert "jaxar.main --config=xar_b" in text
    assert ("scontrol requeue 17" in text) == requeued
    environment.pop("SLURM_JOB_ID")
    done = run([str(ROOT / "launch/slurm.sh"), "--config=xar_b"], env=environment)
    assert done.returncode == 2 and "usage: sbatch" in done.stderr


def test_slurm_tells_every_process_before_the_time_is_over():
    """SIGTERM must reach the steps: with "B:" only the script itself would get it."""
    text = (ROOT / "launch/slurm.sh").read_text()
    assert "#SBATCH --signal=TERM@" in text and "#SBATCH --requeue" in text
    assert "--ntasks-per-node=8" in text and "--gpus-per-node=8" in text


def test_the_jobset_is_what_the_cluster_takes():
    jobset = yaml.safe_load((ROOT / "launch/gke_jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert set(jobset["spec"]) == {"failurePolicy", "replicatedJobs"}
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    # One pod a host, all at once, none of them repaired alone: the hosts go on together.
    assert spec["parallelism"] == spec["completions"] and spec["completionMode"] == "Indexed"
    assert spec["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    sizes = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = int(sizes[0]) * int(sizes[1])
    limit = container["resources"]["limits"]["google.com/tpu"]
    assert chips == spec["completions"] * limit
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert rule["onExitCodes"]["values"] == [2] and rule["action"] == "FailJob"
    (policy,) = jobset["spec"]["failurePolicy"]["rules"]
    assert policy["onJobFailureReasons"] == ["PodFailurePolicy"]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}
    assert container["command"] == ["python", "-m", "jaxar.main"]
    assert all(argument.startswith("--") for argument in container["args"])
