"""Runs on this machine, in one process and in several."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.commands import simulated

ROOT = Path(__file__).parents[2]
JOINED = """
import os, sys, time
from mgm_jax import distributed
distributed.initialize()
import jax, jax.numpy as jnp
from jax.experimental import multihost_utils
mine = jnp.array(jax.process_index() + 1)
total = int(multihost_utils.process_allgather(mine).sum())
# In one piece: Gloo writes its own lines between those of print.
os.write(1, f"sum {total} devices {jax.device_count()} {sys.argv[1:]}\\n".encode())
"""
FAILS = """
import os, sys, time
if os.environ["MGM_PROCESS"] == "1":
    print("error: no more disk", flush=True)
    sys.exit(7)
print("waiting", flush=True)
time.sleep(100)
"""
WAITS = """
import os, signal, sys, time
def save(*_):
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(100)
"""


@pytest.fixture
def start(tmp_path):
    """(launcher, script, *options) -> a process that runs the script as a module."""

    def start(launcher, script, *options):
        (tmp_path / "payload.py").write_text(script)
        path = os.pathsep.join([str(tmp_path), str(ROOT)])
        return subprocess.Popen(
            [sys.executable, "-m", launcher, "--module=payload", *options],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def several(start, tmp_path, script, *options):
    work = tmp_path / "a run"
    process = start("launch.local_multiprocess", script, f"--workdir={work}", *options)
    return process, [work / "logs" / f"process-{i}.log" for i in range(2)]


def test_one_process_with_simulated_devices(start, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    script = "import jax, sys; print(jax.device_count(), sys.argv[1:]); sys.exit(5)"
    process = start("launch.local", script, "--devices=3", "--config=c.py:a", "--config.steps=1")
    out, err = process.communicate(timeout=120)
    assert out == "3 ['--config=c.py:a', '--config.steps=1']\n" and process.returncode == 5
    assert "JAX_PLATFORMS=cpu" in err and "-m payload --config=c.py:a" in err


def test_flags_of_the_user_stay():
    env = simulated({"XLA_FLAGS": "--a=1 --xla_force_host_platform_device_count=2", "B": "c"}, 4)
    assert env["XLA_FLAGS"].startswith("--a=1 --xla_force_host_platform_device_count=4 ")
    assert env["XLA_FLAGS"].count("device_count") == 1 and env["B"] == "c"


def test_two_processes_are_joined(start, tmp_path):
    process, logs = several(start, tmp_path, JOINED, "--devices=2", "--config=x")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    said = f"sum 3 devices 4 ['--workdir={tmp_path / 'a run'}', '--config=x']"
    assert all(said in log.read_text() for log in logs)
    assert err.count("sum 3") == 1  # that of process 0


def test_if_one_fails_all_are_stopped_and_its_last_lines_shown(start, tmp_path):
    process, logs = several(start, tmp_path, FAILS, "--grace=1")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 7
    assert "process 1 failed (exit code 7); all were stopped" in err
    assert err.endswith(f"{logs[1]} ends:\nerror: no more disk\n")


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_ctrl_c_ends_all_after_they_have_saved(number, code, start, tmp_path):
    process, logs = several(start, tmp_path, WAITS)
    end = time.monotonic() + 60
    while not all(log.exists() and "ready" in log.read_text() for log in logs):
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code and "interrupted: all processes were ended" in err
    assert all(re.fullmatch("ready\nsaved\n", log.read_text()) for log in logs)


def test_logs_need_a_disk(start, tmp_path):
    process = start("launch.local_multiprocess", "", "--workdir=gs://b/run")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err == "error: --workdir is gs://b/run, expected a local folder: logs go there\n"
