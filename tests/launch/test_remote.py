"""Rendered commands that are executed, by programs that stand in for gcloud and SLURM's."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from launch.slurm.sbatch import GIVEN_UP, SlurmRun, sbatch

ROOT = Path(__file__).parents[2]
VM = ("--name=run1", "--zone=z")
GCLOUD = """
for word in "$@"; do
  case "$word" in
    --command=*) cd "$HOME" && exec bash -c "${word#*=}" ;;
    *.tar.gz) cp "$word" "$HOME" ;;
  esac
done
"""
# Where a worker would train: says with what, and waits to be told to save.
TRAIN = """
import signal, sys, time
def save(*_):
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
print("train", sys.argv[1:], flush=True)
time.sleep(100)
"""


@pytest.fixture
def programs(tmp_path):
    """(name=script, ...) -> an environment whose PATH has them, and whose home is empty."""

    def make(**scripts):
        folder, home = tmp_path / "bin", tmp_path / "home"
        folder.mkdir()
        home.mkdir()
        for name, script in scripts.items():
            (folder / name).write_text("#!/bin/bash\n" + script)
            (folder / name).chmod(0o755)
        path = f"{folder}{os.pathsep}{os.environ['PATH']}"
        return os.environ | {"PATH": path, "HOME": str(home), "TMPDIR": str(tmp_path)}

    return make


def tpu_vm(env, *args):
    command = [sys.executable, "-m", "launch.tpu_vm", *args, "--execute"]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=100)


def wait_for(path, text):
    end = time.monotonic() + 60
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < end, path.exists() and path.read_text()
        time.sleep(0.05)


def test_a_worker_is_sent_the_code_trains_and_stops(programs, tmp_path):
    env = programs(gcloud=GCLOUD)
    home = tmp_path / "home"
    for _ in range(2):  # a push over an older one keeps its environment
        done = tpu_vm(env, "push", *VM, "--ref=HEAD~0")
        assert done.returncode == 0, done.stderr
        code = home / "mgm_jax_code"
        assert (code / "setup.py").exists()
        python = code / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train.py").write_text(TRAIN)
        python.write_text(
            textwrap.dedent(f"""\
            #!/bin/bash
            set -- "${{@//gs:\\/\\/mine/$HOME}}"  # the bucket is the home
            case "$2" in mgm_jax.train) set -- {tmp_path / "train.py"} "${{@:3}}" ;; esac
            exec {sys.executable} "$@"
            """)
        )
        python.chmod(0o755)
    log = home / "run1.log"
    assert tpu_vm(env, "stop", *VM).stdout.endswith("nothing runs\n")
    config = ("--config", "configs/demo.py:stage=2", "--config.model.name=a b")
    assert tpu_vm(env, "run", *VM, "--bucket=gs://mine", *config).returncode == 0
    wait_for(log, f"'--config.model.name=a b', '--workdir={home}/run1']")
    assert (home / "run1.pids").exists()
    done = tpu_vm(env, "stop", *VM, "--grace=30")
    assert done.stdout.endswith("stopped\n")
    assert "saved" in log.read_text() and "stopped by SIGTERM" in log.read_text()
    assert not (home / "run1.pids").exists()


def test_a_failing_command_ends_it(programs):
    done = tpu_vm(programs(gcloud="exit 3"), "push", *VM, "--ref=HEAD~0")
    assert done.returncode == 3
    assert done.stderr.startswith("failed with exit code 3: gcloud compute tpus queued-resources")


SLURM = {
    "srun": 'shift; echo "$*" >>"$HOME/srun"; echo $$ >"$HOME/step"; source "$HOME/task"',
    "scancel": '[ "$1 $2" = "--signal=TERM 1" ] && kill -TERM "$(cat "$HOME/step")"',
    "scontrol": 'echo "$*" >>"$HOME/scontrol"',
}


def job(env, home, task, restarts=0):
    (home / "task").write_text(task)
    script = sbatch(SlurmRun("run1", "/shared/run1", ("--config=c.py",), requeues=3))
    env = env | {"SLURM_JOB_ID": "1", "SLURM_RESTART_COUNT": str(restarts)}
    return subprocess.Popen(["bash", "-c", script], env=env, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    "code, restarts, requeued",
    [(0, 0, False), (GIVEN_UP, 0, False), (75, 0, True), (137, 2, True), (75, 3, False)],
)
def test_what_slurm_queues_again(code, restarts, requeued, programs, tmp_path):
    env = programs(**SLURM)
    process = job(env, tmp_path / "home", f"exit {code}", restarts)
    process.communicate(timeout=60)
    assert process.returncode == code
    file = tmp_path / "home" / "scontrol"
    assert (file.exists() and file.read_text() == "requeue 1\n") == requeued


def test_slurm_s_notice_reaches_the_run_which_saves_and_is_queued_again(programs, tmp_path):
    env, home = programs(**SLURM), tmp_path / "home"
    save = 'trap \'sleep 1; echo saved >>"$HOME/out"; exit 143\' TERM; echo on >>"$HOME/out"\n'
    process = job(env, home, save + "for i in $(seq 1000); do sleep 0.1; done")
    wait_for(home / "out", "on")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert (home / "out").read_text() == "on\nsaved\n" and process.returncode == 143
    assert (home / "scontrol").read_text() == "requeue 1\n"
