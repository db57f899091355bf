"""The state of a run on disk: killed while it is written, damaged, of another run, not finite."""

import json
import os
import shutil
import signal
import sys

import jax
import numpy as np
import pytest

from mgm_jax import train
from mgm_jax.checkpoint import CheckpointError, load_checkpoint
from mgm_jax.run import prepare
from mgm_jax.settings import TrainingError, fingerprint
from mgm_jax.training_state import TrainingState
from mgm_jax.tree import flatten

# Kills its own process when Python raises an audit event about a path that has all these parts.
KILLED_AT = """
import os, signal, sys
event, parts = sys.argv[1], sys.argv[2].split(",")

def hook(name, args):
    if name == event and all(part in str(args[0]) for part in parts):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
from mgm_jax import train
train.main(sys.argv[3:])
"""


def params(workdir):
    return flatten(jax.tree.map(np.asarray, load_checkpoint(workdir / "model").params))


def steps_of(workdir):
    return [json.loads(row)["step"] for row in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.fixture(scope="module")
def finished(tiny_config, tmp_path_factory):
    """The workdir of an uninterrupted run of `tiny_config()`."""
    workdir = tmp_path_factory.mktemp("finished")
    train.train(tiny_config(), workdir)
    return workdir


def test_killed_while_writing_is_bit_identical(finished, tiny_config_file, run_command, tmp_path):
    workdir = tmp_path / "work"
    arguments = [f"--config={tiny_config_file}", f"--workdir={workdir}"]
    moments = [  # (event, parts of the path, newest whole state afterwards)
        ("open", "state/4,tmp", 2),  # while the state of step 4 is written
        ("os.rename", "state/4,tmp", 2),  # between its last byte and its name
        ("os.rename", "model/mgm.json.partial", 6),  # before the model counts as whole
    ]
    for event, parts, newest in moments:
        killed = run_command([sys.executable, "-c", KILLED_AT, event, parts, *arguments])
        assert killed.returncode == -signal.SIGKILL, (event, parts, killed.stderr)
        whole = [int(d.name) for d in (workdir / "state").iterdir() if d.name.isdigit()]
        assert max(whole) == newest
        with pytest.raises(CheckpointError, match="mgm.json is missing"):
            load_checkpoint(workdir / "model")
    done = run_command([sys.executable, "-m", "mgm_jax.train", *arguments])
    assert done.returncode == 0, done.stderr
    assert "resumed at step 6" in done.stderr
    assert_same(params(finished), params(workdir))
    assert steps_of(workdir) == [1, 2, 3, 4, 5, 6]  # no row twice
    leftovers = [p for p in workdir.rglob("*") if "tmp" in p.name or "partial" in p.name]
    assert not leftovers


def test_a_finished_run_does_nothing_again(finished, tiny_config, tmp_path, capsys):
    workdir = tmp_path / "work"
    shutil.copytree(finished, workdir)
    shutil.rmtree(workdir / "model")
    train.train(tiny_config(data__threads=1, checkpoint__every=3), workdir)  # changes no result
    assert "resumed at step 6" in capsys.readouterr().err
    assert_same(params(finished), params(workdir))


@pytest.mark.parametrize(
    "values",
    [
        {"seed": 1},
        {"steps": 7},
        {"optim__wd": 0.5},
        {"optim__schedule": [(".*", {"decay": "constant"})]},
    ],
    ids=str,
)
def test_another_configuration_is_refused(values, finished, tiny_config):
    with pytest.raises(CheckpointError, match="state/6 belongs to a run with another config"):
        train.train(tiny_config(**values), finished)


def truncate(directory):
    """Cuts every file in half."""
    for file in directory.rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)


def damage_arrays(directory):
    for file in (directory / "state").rglob("*"):
        if file.is_file() and "manifest" not in file.name and not file.name.startswith("_"):
            file.write_bytes(b"\0" * file.stat().st_size)


DAMAGE = {
    "truncated": truncate,
    "arrays": damage_arrays,
    "no arrays": lambda d: shutil.rmtree(d / "state"),
    "no fingerprint": lambda d: shutil.rmtree(d / "run"),
}


@pytest.mark.parametrize("kind", list(DAMAGE))
def test_a_damaged_state_is_said_and_an_older_one_taken(
    kind, finished, tiny_config, tmp_path, capsys
):
    workdir = tmp_path / "work"
    shutil.copytree(finished, workdir)
    shutil.rmtree(workdir / "model")
    damaged = workdir / "state" / "6"
    DAMAGE[kind](damaged)
    train.train(tiny_config(), workdir)
    said = capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if line.startswith("WARNING: ")]
    assert line.startswith(f"WARNING: {damaged}: unreadable training state ("), line
    assert "resumed at step 4" in said
    assert_same(params(finished), params(workdir))
    assert {d.name for d in (workdir / "state").iterdir()} == {"4", "6"}
    train.train(tiny_config(), workdir)  # the damaged one was replaced
    said = capsys.readouterr().err
    assert "resumed at step 6" in said and "WARNING" not in said


def test_where_every_state_is_damaged_nothing_begins_anew(finished, tiny_config, tmp_path):
    workdir = tmp_path / "work"
    shutil.copytree(finished, workdir)
    truncate(workdir / "state")
    with pytest.raises(CheckpointError, match="state/6: unreadable training state"):
        train.train(tiny_config(), workdir)


def test_what_is_not_finite_is_never_saved(tiny_config, tmp_path):
    config = tiny_config(
        steps=9, optim__lr=1e30, optim__clip=0.0, checkpoint__every=1, log_every=100
    )
    with pytest.raises(TrainingError, match=r"at step \d; the newest state in .*state is of"):
        train.train(config, tmp_path)
    assert not (tmp_path / "model").exists()
    states = TrainingState(tmp_path / "state", keep=2, fingerprint=fingerprint(config))
    (step, _), run = states.latest(), prepare(config)
    found = states.restore(step, jax.eval_shape(lambda: run.state))
    for leaf in jax.tree.leaves(found):
        assert np.isfinite(leaf).all()


def test_a_broken_line_of_metrics_is_dropped(tmp_path):
    from mgm_jax.metrics import Metrics

    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"step": 3, "lo')
    metrics = Metrics(file, start=2, total=9, name="run")
    metrics.write(3, {"loss": 0.5})
    metrics.close()
    assert steps_of(tmp_path) == [1, 2, 3]
