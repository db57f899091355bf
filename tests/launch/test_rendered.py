"""Every command, manifest and script that is rendered, as it was accepted.

`UPDATE_GOLDEN=1 python -m pytest tests/launch/test_rendered.py` writes tests/launch/golden anew;
read the difference before you commit it.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launch import tpu_vm
from launch.accelerators import find_slice, slices
from launch.gke.__main__ import main as gke
from launch.slurm.__main__ import main as slurm

GOLDEN = Path(__file__).parent / "golden"
VM = ("--name=run1", "--zone=us-west4-a", "--project=mine")
CONFIG = (
    "--config",
    "configs/demo.py:stage=2",
    "--config.data.sources.main.path=gs://mine/a b.json",
)
GKE = ("--name=run1", "--image=gcr.io/mine/mgm:1", "--workdir=gs://mine/run1", *CONFIG)
XPK = ("--cluster=c1", "--zone=us-west4-a", "--project=mine")
SLURM = ("--name=run1", "--workdir=/shared/run1", *CONFIG)
SPOT = ("--spot", "--valid-until=6h")
CASES = {
    "tpu_vm_create.sh": (tpu_vm.main, ("create", *VM)),
    "tpu_vm_create_spot.sh": (tpu_vm.main, ("create", *VM, "--accelerator=v5p-128", *SPOT)),
    "tpu_vm_create_multislice.sh": (
        tpu_vm.main,
        ("create", *VM, "--accelerator=v6e-256", "--num-slices=4", "--reserved"),
    ),
    **{
        f"tpu_vm_{name}.sh": (tpu_vm.main, (name, *VM))
        for name in ("status", "push", "setup", "tail", "stop", "delete")
    },
    "tpu_vm_preflight.sh": (tpu_vm.main, ("preflight", *VM, "--bucket=gs://mine", *CONFIG)),
    "tpu_vm_run.sh": (tpu_vm.main, ("run", *VM, "--bucket=gs://mine", "--grace=60", *CONFIG)),
    "jobset.yaml": (gke, ("jobset", *GKE)),
    "jobset_multislice_spot.yaml": (
        gke,
        (
            *("jobset", *GKE, "--accelerator=v5p-64", "--num-slices=2", "--spot", "--queue=q1"),
            *("--service-account=trainer", "--env=WANDB_MODE=offline", "--restarts=7"),
        ),
    ),
    "jobset_reservation.yaml": (
        gke,
        ("jobset", *GKE, "--accelerator=v6e-8", "--reservation=r1", "--grace=60"),
    ),
    "xpk.sh": (gke, ("xpk", *GKE, *XPK)),
    "xpk_multislice_spot.sh": (
        gke,
        ("xpk", *GKE, *XPK, "--num-slices=2", "--spot", "--env=WANDB_MODE=offline"),
    ),
    "slurm_node.sbatch": (slurm, (*SLURM, "--nodes=2", "--prologue=module load cuda")),
    "slurm_gpu.sbatch": (slurm, (*SLURM, "--per=gpu", "--gpus=4", "--partition=p", "--account=a")),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_rendered(name, capsys, monkeypatch):
    monkeypatch.setattr(tpu_vm.tempfile, "gettempdir", lambda: "/tmp")
    main, args = CASES[name]
    assert main(list(args)) == 0
    out, err = capsys.readouterr()
    assert err == "dry run: nothing was done; --execute does it\n"
    if os.environ.get("UPDATE_GOLDEN"):
        (GOLDEN / name).write_text(out)
    assert out == (GOLDEN / name).read_text()


def test_no_golden_file_is_left_over():
    assert {p.name for p in GOLDEN.iterdir()} == set(CASES)


@pytest.mark.parametrize("name", [n for n in CASES if not n.endswith(".yaml")])
def test_the_shell_can_read_it(name):
    """The scripts, and what is said in them to be a command of another shell."""
    text = (GOLDEN / name).read_text()
    commands = (
        [w for line in text.splitlines() for w in shlex.split(line, comments=True)]
        if (name.endswith(".sh"))
        else []
    )
    inner = [w.partition("=")[2] for w in commands if w.startswith("--command=")]
    for script in (text, *inner):
        done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr


def test_a_jobset_has_a_pod_for_each_host():
    run = yaml.safe_load((GOLDEN / "jobset_multislice_spot.yaml").read_text())["spec"]
    (job,) = run["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert (job["replicas"], spec["parallelism"], spec["completions"], chips) == (2, 8, 8, 4)
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "2x4x4"
    # A save comes to its end before the pod is killed.
    grace = int(re.search(r"--grace=(\d+)", " ".join(pod["containers"][0]["command"]))[1])
    assert grace < pod["terminationGracePeriodSeconds"]


@pytest.mark.parametrize(
    "name, topology, chips, hosts",
    [
        ("v5litepod-8", "2x4", 8, 1),
        ("v5litepod-16", "4x4", 16, 4),
        ("v5litepod-256", "16x16", 256, 64),
        ("v5p-8", "2x2x1", 4, 1),
        ("v5p-64", "2x4x4", 32, 8),
        ("v5p-128", "4x4x4", 64, 16),
        ("v6e-1", "1x1", 1, 1),
        ("v6e-256", "16x16", 256, 64),
    ],
)
def test_slices(name, topology, chips, hosts):
    found = find_slice(name)
    assert (found.topology, found.chips, found.hosts) == (topology, chips, hosts)
    assert all(s.hosts * s.chips_per_host == s.chips for s in slices().values())


@pytest.mark.parametrize(
    "main, args, message",
    [
        (tpu_vm.main, ("create", *VM, "--accelerator=v5p-7"), "accelerator 'v5p-7' is unknown"),
        (
            tpu_vm.main,
            ("create", "--name=Run_1", "--zone=z"),
            "--name is 'Run_1', expected at most",
        ),
        (tpu_vm.main, ("create", *VM, "--spot", "--reserved"), "--spot and --reserved were both"),
        (tpu_vm.main, ("run", *VM, "--bucket=/disk", *CONFIG), "--bucket is '/disk', expected gs"),
        (tpu_vm.main, ("run", *VM, "--bucket=gs://b"), "--config is not given"),
        (
            tpu_vm.main,
            ("run", *VM, "--bucket=gs://b", *CONFIG, "--workdir=x"),
            "--workdir was given; the run's name fixes it: gs://b/run1",
        ),
        (gke, ("jobset", *GKE[:2], "--workdir=/disk", *CONFIG), "--workdir is /disk, expected a"),
        (gke, ("xpk", *GKE[:3], *XPK), "--config is not given"),
        (slurm, SLURM[:2], "--config is not given"),
    ],
)
def test_bad_arguments(main, args, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        main(list(args))


def test_a_program_that_is_not_installed_is_named(tmp_path):
    command = [sys.executable, "-m", "launch.tpu_vm", "status", *VM, "--execute"]
    env = os.environ | {"PATH": str(tmp_path)}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("error: gcloud: this program is not installed; ")
