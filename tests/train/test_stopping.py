"""Runs that are told to stop, one and two processes: they save, say so, and go on later."""

import contextlib
import json
import os
import signal
import sys
import time

import jax
import numpy as np
import pytest

from launch.local_multiprocess import started
from mgm_jax import train
from mgm_jax.checkpoint import load_checkpoint
from mgm_jax.distributed import STOPPED
from mgm_jax.tree import flatten

STEPS = 60
OPTIONS = (f"--config.steps={STEPS}", "--config.checkpoint.every=25")


def params(workdir):
    return flatten(jax.tree.map(np.asarray, load_checkpoint(workdir / "model").params))


def states(workdir):
    return sorted(int(d.name) for d in (workdir / "state").iterdir() if d.name.isdigit())


def steps_of(workdir):
    file = workdir / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


@pytest.fixture
def start(tiny_config_file, tmp_path):
    """(processes) -> a run of them in tmp_path/work, once it has done some steps."""
    workdir = tmp_path / "work"
    command = [sys.executable, "-m", "mgm_jax.train", f"--config={tiny_config_file}"]

    @contextlib.contextmanager
    def run(count, step=2):
        logs = [tmp_path / f"{i}.log" for i in range(count)]
        whole = [*command, f"--workdir={workdir}", *OPTIONS]
        with started(whole, logs, devices=1, grace=0) as processes:
            begun = time.monotonic()
            while max(steps_of(workdir), default=0) < step:
                assert all(p.poll() is None for p in processes), [f.read_text() for f in logs]
                assert time.monotonic() - begun < 240
                time.sleep(0.01)
            yield processes, logs, workdir

    return run


@pytest.fixture(scope="module")
def finished(tiny_config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    train.train(tiny_config(steps=STEPS), workdir)
    return workdir


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_a_signal_saves(number, start, finished, tiny_config):
    with start(1) as ((process,), (log,), workdir):
        process.send_signal(number)
        assert process.wait(60) == STOPPED, log.read_text()
    said = log.read_text().splitlines()[-1]
    (saved,) = states(workdir)
    name = signal.Signals(number).name
    assert said == (
        f"train: stopped by {name} at step {saved}, whose state is in {workdir / 'state'}; run the "
        "same command again to go on"
    )
    assert "Traceback" not in log.read_text() and saved % 25
    train.train(tiny_config(steps=STEPS, checkpoint__every=25), workdir)
    assert steps_of(workdir) == list(range(1, STEPS + 1))
    one, other = params(finished), params(workdir)
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_second_signal_ends_it_at_once(start):
    with start(1) as ((process,), (log,), workdir):
        os.kill(process.pid, signal.SIGSTOP)  # both are there before it can look
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        os.kill(process.pid, signal.SIGCONT)
        assert process.wait(60) in (-signal.SIGTERM, -signal.SIGINT), log.read_text()
    assert not states(workdir)


def test_one_of_two_processes_is_told(start, tiny_config):
    with start(2) as (processes, logs, workdir):
        processes[1].terminate()
        codes = [p.wait(120) for p in processes]
    text = [log.read_text() for log in logs]
    assert codes == [STOPPED] * 2, text
    (saved,) = states(workdir)
    assert f"stopped by a signal to another process at step {saved}, whose state" in text[0]
    assert "whose state" not in text[1] and "Traceback" not in "".join(text)
    train.train(tiny_config(steps=STEPS, checkpoint__every=25), workdir)
    assert steps_of(workdir) == list(range(1, STEPS + 1))


def test_a_lost_process_ends_the_others(start, tiny_config, capsys):
    with start(2, step=27) as (processes, logs, workdir):
        processes[1].kill()
        begun = time.monotonic()
        code = processes[0].wait(180)
        seconds = time.monotonic() - begun
    text = logs[0].read_text()
    print(seconds, code, text[-3000:])
    assert code == STOPPED, text[-3000:]
    assert seconds < 120
    last = text.splitlines()[-1]
    assert last.startswith("train: another process of this run was lost"), last
    train.train(tiny_config(steps=STEPS, checkpoint__every=25), workdir)
    assert "resumed at step 25" in capsys.readouterr().err
    assert steps_of(workdir) == list(range(1, STEPS + 1))
