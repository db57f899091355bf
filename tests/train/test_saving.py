"""What stays of a run's states; savings that fail; other bases; models out of states."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgm_jax import train
from mgm_jax.checkpoint import (
    CheckpointError,
    content_hash,
    load_checkpoint,
    load_some,
    place,
    stored_shapes,
)
from mgm_jax.export import export_state
from mgm_jax.settings import TrainingError
from mgm_jax.training_state import TrainingState, kept
from mgm_jax.tree import flatten

DATA = {"any": "thing"}


def params(directory):
    return flatten(jax.tree.map(np.asarray, load_checkpoint(directory).params))


def names(directory):
    return {entry.name for entry in directory.iterdir()}


@pytest.mark.parametrize(
    "rules, expected",
    [
        ({}, {7, 8}),
        ({"keep": 1, "keep_every": 3}, {3, 6, 8}),
        ({"best": ("loss", "min")}, {2, 7, 8}),
        ({"best": ("loss", "max"), "keep": 1}, {5, 8}),
        ({"best": ("other", "min")}, {7, 8}),
    ],
    ids=str,
)
def test_which_states_stay(rules, expected):
    losses = {1: 3.0, 2: 1.0, 3: float("nan"), 4: 2.0, 5: 9.0, 6: 2.0, 7: 2.0}
    metrics = {step: {"loss": loss} for step, loss in losses.items()}
    rules = {"keep": 2, "keep_every": None, "best": None} | rules
    assert kept(range(1, 9), metrics, **rules) == expected


def test_states_stay_as_the_rules_say(tmp_path):
    options = dict(fingerprint="f", keep=1, keep_every=4, best=("loss", "min"))
    for first in (1, 5):  # the second time the losses before are read again
        with contextlib.closing(TrainingState(tmp_path, **options)) as states:
            for step in range(first, first + 4):
                loss = {"loss": abs(step - 2.1)}
                states.save(step, {"x": jnp.full(3, step)}, DATA, loss)
    assert names(tmp_path) == {"2", "4", "8"}


def test_training_goes_on_while_a_state_is_written(tmp_path, monkeypatch):
    """What is saved is what was there: the next step may overwrite it on the device."""
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = {"x": jnp.zeros((512, 512)), "n": jnp.zeros((), jnp.int32)}
    shapes = jax.eval_shape(lambda: state)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=here), shapes)
    states = TrainingState(tmp_path, fingerprint="f", keep=9)
    for n in range(1, 5):
        state = step(state)
        states.save(n, state, DATA)
        for _ in range(3):
            state = step(state)
    states.close()
    for n in range(1, 5):
        found = states.restore(n, shapes)
        assert found["n"] == 1 + 4 * (n - 1)
        np.testing.assert_array_equal(found["x"], np.full((512, 512), 1 + 4 * (n - 1)))


def test_a_failed_saving_is_said_and_tried_again(tmp_path, capsys):
    states = TrainingState(tmp_path / "state", fingerprint="f", keep=2, retries=(0.2,))
    (tmp_path / "state").write_text("in the way")
    states.save(1, {"x": jnp.ones(3)}, DATA)
    assert not states.again()
    line = capsys.readouterr().err.strip()
    assert line == (
        f"WARNING: {tmp_path / 'state'}: the state of step 1 was not saved (File exists); it will "
        "be tried again"
    )
    (tmp_path / "state").unlink()
    time.sleep(0.3)
    assert states.again() and not states.again()
    states.save(2, {"x": jnp.ones(3)}, DATA)
    states.close()
    assert names(tmp_path / "state") == {"2"} and not capsys.readouterr().err


def test_the_last_saving_that_fails_is_an_error(tmp_path, capsys):
    states = TrainingState(tmp_path / "state", fingerprint="f", keep=2, retries=(0, 0))
    states.save(4, {"x": jnp.ones(3)}, DATA, last=True)
    shutil.move(tmp_path / "state", tmp_path / "kept")
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"state of step 6 could not be saved \(File exists"):
        states.save(6, {"x": jnp.ones(3)}, DATA, last=True)
    assert capsys.readouterr().err.count("WARNING") == 3


FULL = """
import resource, signal, sys
from mgm_jax import training_state, train
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit fails then
save = training_state.TrainingState.save

def limited(self, step, *args, **kwargs):
    bad = step in (2, 3) or sys.argv[1] == "always" and step > 3
    size = 2000 if bad else -1
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, -1))
    save(self, step, *args, **kwargs)
    self._writing and self._writing[1].exception()
    if not (bad and kwargs.get("last")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))

training_state.TrainingState.save = limited
train.main(sys.argv[2:])
"""


@pytest.mark.parametrize("how", ["once", "always"])
def test_a_full_disk_does_not_end_a_run(how, tiny_config_file, run_command, tmp_path):
    workdir = tmp_path / "work"
    arguments = [f"--config={tiny_config_file}", f"--workdir={workdir}"]
    arguments.append("--config.checkpoint.retries=(0.0, 0.0)")
    done = run_command([sys.executable, "-c", FULL, how, *arguments])
    said = [line for line in done.stderr.splitlines() if "was not saved" in line]
    assert said and "the state of step 2 was not saved (File too large)" in said[0], done.stderr
    assert "Traceback" not in done.stderr
    if how == "once":
        assert done.returncode == 0, done.stderr
        assert names(workdir / "state") == {"4", "6"} and (workdir / "model/mgm.json").exists()
        return
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert error.startswith(f"error: {workdir / 'state'}: the state of step 6 could not be saved")
    assert json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 6


@pytest.fixture(scope="module")
def based(tiny_config, tmp_path_factory):
    """(config of a run with a frozen base, workdir of it, finished)."""
    root = tmp_path_factory.mktemp("based")
    train.train(tiny_config(steps=1), root / "first")
    config = tiny_config(steps=6, checkpoint__keep=3, frozen_dtype="bfloat16")
    config.init = [(".*", str(root / "first" / "model"))]
    config.optim.schedule = [("(clip|convnext)/.*", None), (".*", {"decay": "constant"})]
    train.train(config, root / "second")
    return config, root / "second"


def test_another_base_is_refused(based, tmp_path):
    config, workdir = based
    base = place(config.init[0][1])
    before = content_hash(base)
    copy = tmp_path / "copy"
    shutil.copytree(base, copy)
    assert content_hash(copy) == before
    (file,) = sorted((f for f in (base / "params").glob("d/*")), key=lambda f: -f.stat().length)[:1]
    whole = file.read_bytes()
    try:
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(TrainingError, match="where frozen parameters come from, has changed"):
            train.train(config, workdir)
    finally:
        file.write_bytes(whole)
    train.train(config, workdir)


def test_export(based, tmp_path, capsys):
    config, workdir = based
    assert export_state(config, workdir, tmp_path / "newest") == 6
    one, other = params(workdir / "model"), params(tmp_path / "newest")
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    assert export_state(config, workdir, tmp_path / "older", step=4) == 4
    older = params(tmp_path / "older")
    assert not np.array_equal(older["projector/fc1/kernel"], one["projector/fc1/kernel"])
    with pytest.raises(CheckpointError, match="no state of step 3, found 2, 4, 6"):
        export_state(config, workdir, tmp_path / "none", step=3)
    with pytest.raises(CheckpointError, match="no state of any step, found none"):
        export_state(config, tmp_path / "nowhere", tmp_path / "none")


def test_export_asks_nothing_of_a_step(based, tmp_path):
    """A run of a pod, whose weights were gathered in rings, on one device."""
    config, workdir = based
    pods = config.copy_and_resolve_references()
    pods.update(remat="qkv+weights")  # which a step on one device refuses
    assert export_state(pods, workdir, tmp_path / "model") == 6
    one, other = params(workdir / "model"), params(tmp_path / "model")
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_some_parameters_are_read_into_their_place(based, monkeypatch):
    config, workdir = based
    model = workdir / "model"
    whole, shapes = params(model), stored_shapes(model)
    mesh = jax.make_mesh((1,), ("fsdp",))
    placed = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    name = "projector/fc1/kernel"
    wanted = jax.ShapeDtypeStruct(shapes[name].shape, jnp.bfloat16, sharding=placed)
    (found,) = load_some(model, {name: wanted}).values()
    assert found.sharding == placed and found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, whole[name].astype(jnp.bfloat16))
    bad = {name: jax.ShapeDtypeStruct((3, 4), jnp.float32, sharding=placed), "no/such": wanted}
    with pytest.raises(CheckpointError) as caught:
        load_some(model, bad)
    assert "missing    no/such" in str(caught.value) and "expected (3, 4)" in str(caught.value)


def test_a_bucket_stays_a_bucket():
    assert str(place("gs://mine/run1")) == "gs://mine/run1"
    assert str(place("x")) == os.path.abspath("x")


@pytest.mark.parametrize(
    "values, words",
    [
        ({"checkpoint__best_mode": "most"}, "config.checkpoint.best_mode is 'most'"),
        ({"checkpoint__keep_every": 0}, "config.checkpoint.keep_every is 0"),
        ({"checkpoint__retries": (-1.0,)}, r"config.checkpoint.retries is \(-1.0,\)"),
        ({"checkpoint__best": "accuracy"}, "config.checkpoint.best is 'accuracy'"),
    ],
    ids=str,
)
def test_wrong_rules_are_refused(values, words, tiny_config, tmp_path):
    with pytest.raises(TrainingError, match=words):
        train.train(tiny_config(**values), tmp_path)


def test_step_needs_export(tmp_path, tiny_config_file):
    command = [sys.executable, "-m", "mgm_jax.train", f"--config={tiny_config_file}"]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path}", "--step=3"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "--step is given without --export" in done.stderr
