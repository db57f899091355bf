"""Whole training runs as a user starts them: killed, resumed, sharded, cached, refused."""

import json
import os
import random
import signal
import subprocess
import time

import jax
import numpy as np
import pytest

from launch.local_multiprocess import started
from mgm_jax.checkpoint import load_checkpoint
from mgm_jax.settings import TrainingError
from mgm_jax.tree import flatten

EVERY_STEP = "--config.log_every=1"


def losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows}


def params(workdir):
    return flatten(jax.tree.map(np.asarray, load_checkpoint(workdir / "model").params))


def kill_after(command, metrics, step):
    """Starts the command and SIGKILLs it once `metrics` shows `step`."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=dict(os.environ))
    while process.poll() is None:
        steps = metrics.read_text().count("\n") if metrics.exists() else 0
        if steps and json.loads(metrics.read_text().splitlines()[-1])["step"] >= step:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.02)
    return process.wait()


def test_killed_and_resumed_is_bit_identical(train_command, run_command, tmp_path):
    overrides = (EVERY_STEP, "--config.steps=14", "--config.checkpoint.every=3")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_command(train_command(whole, *overrides)).returncode == 0
    command = train_command(killed, *overrides)
    seed = random.randrange(10**6)
    for step in sorted(random.Random(seed).sample(range(2, 13), 3)):
        code = kill_after(command, killed / "metrics.jsonl", step)
        assert code == -signal.SIGKILL, (seed, step, code)
        assert not (killed / "model" / "mgm.json").exists()
    done = run_command(command)
    assert done.returncode == 0, done.stderr
    assert "resumed at step" in done.stderr
    one, other = params(whole), params(killed)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=f"{name} (seed {seed})")

    # The same workdir with another configuration is refused.
    refused = run_command(train_command(killed, *overrides, "--config.optim.lr=0.5"))
    assert refused.returncode != 0
    assert "another configuration" in refused.stderr and "Traceback" not in refused.stderr


def test_devices_processes_and_cached_features_change_nothing(train_command, run_command, tmp_path):
    """The losses of 20 steps: one device, eight of one process, four of each of two processes."""
    overrides = (EVERY_STEP, "--config.steps=20", "--config.checkpoint.every=100")
    runs = {
        "one": (1, "--config.data.cache_features="),
        "cached": (1,),
        "mixed": (8, "--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"),
    }
    for name, (devices, *more) in runs.items():
        done = run_command(train_command(tmp_path / name, *overrides, *more), devices)
        assert done.returncode == 0, done.stderr
    logs = [tmp_path / f"{i}.log" for i in range(2)]
    more = ("--config.data.cache_features=", "--config.mesh.fsdp=8")
    command = train_command(tmp_path / "two processes", *overrides, *more)
    with started(command, logs, devices=4, grace=5) as processes:
        codes = [process.wait(300) for process in processes]
    assert codes == [0, 0], [log.read_text()[-2000:] for log in logs]
    one = losses(tmp_path / "one")
    assert sorted(one) == list(range(1, 21))
    for name in (*runs, "two processes"):
        found = losses(tmp_path / name)
        for step, loss in one.items():
            assert abs(found[step] - loss) <= 1e-5, (name, step, found[step], loss)


def bad_records(tiny_demo, tmp_path, change):
    """A copy of the training JSON with its first record changed; the override that uses it."""
    records = json.loads((tiny_demo / "data" / "train.json").read_text())
    change(records[0])
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(records[:1]))
    return f"--config.data.sources.main.path={file}"


def set_image(name):
    return lambda record: record.update(image=name)


def first_turn(**values):
    return lambda record: record["conversations"][0].update(values)


BAD_RECORDS = {
    "missing image": (set_image("images/none.jpg"), "images/none.jpg"),
    "image without placeholder": (first_turn(value="What is it?"), "<image>"),
    "placeholder without image": (lambda r: r.pop("image"), "<image>"),
    "unknown role": (first_turn(**{"from": "robot"}), "robot"),
    "empty conversations": (lambda r: r.update(conversations=[]), "conversations"),
}


@pytest.mark.parametrize("kind", list(BAD_RECORDS))
def test_bad_records_stop_the_run(kind, tiny_demo, tmp_path, train_in_process):
    change, word = BAD_RECORDS[kind]
    override = bad_records(tiny_demo, tmp_path, change)
    message = train_in_process(tmp_path / "work", override)
    assert word in message and ("train-000000" in message or "none.jpg" in message)
    assert not (tmp_path / "work" / "model").exists()


def test_corrupt_image(tiny_demo, tmp_path, train_in_process):
    (tiny_demo / "data" / "images" / "broken.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    override = bad_records(tiny_demo, tmp_path, set_image("images/broken.jpg"))
    assert "broken.jpg" in train_in_process(tmp_path / "work", override)


@pytest.fixture
def train_in_process(train_command, capsys):
    """(workdir, *overrides) -> the error message of a run that must fail with one line."""
    from mgm_jax import train

    def run(workdir, *overrides, arg="stage=2"):
        arguments = train_command(workdir, "--config.data.cache_features=", *overrides, arg=arg)[3:]
        with pytest.raises(SystemExit) as caught:
            train.main(arguments)
        message = str(caught.value.code)
        assert message.startswith("error: "), message
        return message

    return run


@pytest.mark.parametrize(
    "override,words",
    [
        ("--config.optim.lrr=1", ["lrr"]),
        ("--config.steps=0", ["config.steps", "0"]),
        ("--config.data.batch=15", ["data.batch 15"]),
        ("--config.mesh.fsdp=3", ["mesh", "devices"]),
        ("--config.remat=some", ["remat", "some"]),
        ("--config.data.sources.main.path=nowhere.json", ["nowhere.json"]),
        ("--config.data.template=v7", ["v7"]),
        ("--config.data.length=64", ["64", "train-"]),
    ],
)
def test_bad_configuration(override, words, tmp_path, train_in_process, monkeypatch):
    if "batch" in override:  # one device divides everything
        from mgm_jax import sharding

        monkeypatch.setattr(sharding, "batch_shards", lambda mesh: 4)
    message = train_in_process(tmp_path / "work", override)
    assert all(word in message for word in words), message


def test_unknown_config_argument(tmp_path, train_in_process):
    assert "stag" in train_in_process(tmp_path / "work", arg="stag=2")


def test_cached_features_need_frozen_towers(tmp_path, tiny_demo, train_command):
    from mgm_jax.configs import common, demo

    from mgm_jax import train

    config = demo.get_config(f"stage=2,size=smoke,root={tiny_demo}")
    config.optim.schedule = [(".*", common.COSINE)]
    with pytest.raises(TrainingError, match="frozen towers"):
        train.train(config, tmp_path / "work")


def test_nan_loss_stops_with_the_step(tmp_path, train_in_process):
    message = train_in_process(
        tmp_path / "work", "--config.optim.lr=1e30", EVERY_STEP, "--config.optim.clip=0"
    )
    assert "loss is" in message and "at step" in message


def test_workdir_that_cannot_be_written(tmp_path, train_in_process):
    (tmp_path / "file").write_text("in the way")
    assert str(tmp_path / "file") in train_in_process(tmp_path / "file" / "work")


def test_unreadable_base_checkpoint(tmp_path, tiny_demo, train_in_process):
    import shutil

    broken = tmp_path / "base"
    shutil.copytree(tiny_demo / "base_mining", broken)
    (broken / "mgm.json").write_text('{"format": 1, "mod')
    message = train_in_process(tmp_path / "work", f"--config.init=((('.*', '{broken}'),))")
    assert "mgm.json" in message or "init" in message
