"""What a run says of itself and what it watches: NaN, spikes, stalls, report, boards, profile."""

import json
import os
import signal
import sys
import time
import types

import numpy as np
import pytest

from mgm_jax import cli, start_report, train
from mgm_jax.guard import LEAST, Guard, NotFinite
from mgm_jax.heartbeat import Heartbeat
from mgm_jax.run import prepare
from mgm_jax.settings import TrainingError, check_numbers

ROWS = [[("main", 3, "main.json record 3"), ("main", 8, "main.json record 8")]]


def guard(workdir):
    states = types.SimpleNamespace(directory=workdir / "state", latest=lambda: (4, None))
    return Guard(workdir, types.SimpleNamespace(members=lambda step: ROWS), states)


def values(loss, grad=1.0):
    largest = {"llm/embed": np.float32(grad), "llm/norm": np.float32(2)}
    return {
        "loss": np.float32(loss),
        "grad_norm": np.float32(grad),
        "largest_params": largest,
        "largest_grads": largest,
    }


@pytest.mark.parametrize("bad", [values(np.nan), values(1.0, np.inf)], ids=["loss", "gradient"])
def test_what_is_not_finite_is_told_a_step_later(bad, tmp_path):
    watch = guard(tmp_path)
    watch.see(5, values(1.0))
    watch.see(6, bad)
    with pytest.raises(
        NotFinite, match=r"at step 6; the newest state in .*state is of step 4"
    ) as e:
        watch.see(7, values(1.0))
    assert e.value.step == 6
    found = json.loads((tmp_path / "failure" / "step_6.json").read_text())
    assert found["records"] == [[["main", 3], ["main", 8]]]
    assert found["loss"] == ("nan" if np.isnan(bad["loss"]) else 1.0)
    assert found["largest_grads"]["llm/norm"] == 2


def test_a_failure_that_cannot_be_written_is_still_told(tmp_path):
    (tmp_path / "failure").write_text("in the way")
    watch = guard(tmp_path)
    watch.see(6, values(np.nan))
    with pytest.raises(NotFinite, match="step_6.json could not be written"):
        watch.settle()


def test_a_run_ends_by_the_command_that_shows_its_batch(tiny_config_file, tmp_path, capsys):
    arguments = [f"--config={tiny_config_file}", f"--workdir={tmp_path}"]
    arguments += ["--config.optim.lr=1e30", "--config.optim.clip=0.0", "--config.steps=9"]
    with pytest.raises(SystemExit, match="error: loss is .* says which records"):
        train.main(arguments)
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "to see the batch: " in x]
    words = line.split("mgm-jax ")[1].split()
    cli.main(words)
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    (file,) = (tmp_path / "failure").iterdir()
    assert shown["members"] == json.loads(file.read_text())["records"]


def test_a_spike_is_noted_and_training_goes_on(tmp_path):
    watch, rng = guard(tmp_path), np.random.default_rng(0)
    losses = [*(2 + 0.05 * rng.standard_normal(LEAST)), 2.1, 4.0, 2.0]
    for step, loss in enumerate(losses):
        watch.see(step, values(loss))
    watch.settle()
    (row,) = map(json.loads, (tmp_path / "spikes.jsonl").read_text().splitlines())
    assert row["step"] == LEAST + 1 and row["loss"] == 4 and 1.9 < row["mean"] < 2.1
    assert row["records"] == [[["main", 3], ["main", 8]]]


def test_equal_losses_are_no_spikes(tmp_path):
    watch = guard(tmp_path)
    for step in range(LEAST + 5):
        watch.see(step, values(1 + 1e-6 * (step > LEAST)))
    watch.settle()
    assert not (tmp_path / "spikes.jsonl").exists()


def test_a_stall_shows_the_stacks_once(tmp_path, capsys):
    with Heartbeat(tmp_path / "heartbeat", tmp_path / "stacks", minutes=0.2 / 60) as heartbeat:
        heartbeat.beat()
        time.sleep(0.8)
    (file,) = (tmp_path / "stacks").iterdir()
    assert "test_a_stall_shows_the_stacks_once" in file.read_text()
    said = capsys.readouterr().err
    assert said.count("no step was done") == 1 and str(file) in said
    assert (tmp_path / "heartbeat").exists()


def test_sigusr1_shows_the_stacks(run_command, tmp_path):
    code = f"""
import os, pathlib, signal
from mgm_jax.heartbeat import Heartbeat
with Heartbeat(pathlib.Path({str(tmp_path / "b")!r}), pathlib.Path({str(tmp_path)!r}), None):
    os.kill(os.getpid(), signal.{signal.SIGUSR1.name})
"""
    done = run_command([sys.executable, "-c", code])
    assert done.returncode == 0 and "most recent call first" in done.stderr


def test_a_run_reports_profiles_and_measures(tiny_config, tmp_path, capsys, monkeypatch):
    board = []
    writer = types.SimpleNamespace(
        add_scalar=lambda name, value, step: board.append((step, name, value)), close=lambda: None
    )
    module = types.SimpleNamespace(SummaryWriter=lambda *_, **__: writer)
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    config = tiny_config(steps=4, profile=(2, 4), boards=("tensorboard",))
    train.train(config, tmp_path)
    report = (tmp_path / "report.txt").read_text()
    assert report in capsys.readouterr().err
    for words in ("8 rows of 96 tokens", "<image>", "【", "jax 0", "clip", "GiB a device"):
        assert words in report, words
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(row["tflops_per_s"] > 0 and row["step_ms"] > 0 for row in rows)
    assert "mfu" not in rows[0]  # of a CPU, whose peak nobody knows
    assert [(s, v) for s, n, v in board if n == "loss"] == [(r["step"], r["loss"]) for r in rows]
    assert any(f.endswith(".xplane.pb") for _, _, fs in os.walk(tmp_path / "profile") for f in fs)


def test_parameters_that_lie_whole_everywhere_are_refused(tiny_config, monkeypatch):
    run = prepare(tiny_config())
    start_report.check_unsharded(run)  # one device
    monkeypatch.setattr(start_report, "SMALL", 0)
    monkeypatch.setattr(start_report, "_sizes", lambda mesh: "fsdp 8")
    mesh = types.SimpleNamespace(shape={"fsdp": 8, "expert": 1, "tensor": 1})
    program = types.SimpleNamespace(mesh=mesh, state=run.program.state, frozen=run.program.frozen)
    eight = types.SimpleNamespace(program=program, config=run.config)
    with pytest.raises(TrainingError, match="lie whole on every device .*expected at most"):
        start_report.check_unsharded(eight)
    run.config.max_replicated = 1.0
    start_report.check_unsharded(eight)


def test_a_board_without_its_package(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(TrainingError, match=r"needs wandb: pip install 'mgm-jax\[wandb\]'"):
        train.train(tiny_config(boards=("wandb",)), tmp_path)


@pytest.mark.parametrize(
    "values,words",
    [
        ({"boards": ("tensorbored",)}, "config.boards has 'tensorbored'"),
        ({"profile": (5, 5)}, r"config.profile is \(5, 5\)"),
        ({"stall_minutes": 0.0}, "config.stall_minutes is 0.0"),
    ],
)
def test_wrong_values(values, words, tiny_config):
    with pytest.raises(TrainingError, match=words):
        check_numbers(tiny_config(**values))
