"""A tiny demo directory that several tests train from: data, tokenizer, untrained base models."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_demo(tmp_path_factory):
    """The directory of a smoke demo up to its base models, whose towers are random."""
    from mgm_jax.demo import run

    root = tmp_path_factory.mktemp("demo")
    demo = run.Demo(root, seed=0, size="smoke")
    demo.build_data()
    demo.build_tokenizer()
    demo._save_base("mining", {})
    shutil.copytree(root / "base_mining", root / "mining_stage1" / "model")  # what stage 2 reads
    return root


@pytest.fixture(scope="session")
def train_command(tiny_demo):
    """(workdir, *overrides) -> the command line of a stage 2 run of the tiny demo."""
    from mgm_jax.configs import demo

    def command(workdir, *overrides, arg="stage=2"):
        arg = f"{arg},size=smoke,root={tiny_demo}"
        return [
            sys.executable,
            *("-m", "mgm_jax.train"),
            f"--config={Path(demo.__file__)}:{arg}",
            f"--workdir={workdir}",
            *overrides,
        ]

    return command


@pytest.fixture(scope="session")
def run_command():
    """Runs a command to its end; returns the finished process. `devices` simulates a mesh."""

    def run(command, devices=1, **kwargs):
        flags = (
            f"--xla_force_host_platform_device_count={devices} "
            "--xla_cpu_collective_call_terminate_timeout_seconds=600"
        )
        env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        return subprocess.run(command, capture_output=True, text=True, env=env, **kwargs)

    return run
