"""The commands as a user meets them: help, and one line for whatever goes wrong."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mgm_jax
from mgm_jax import cli, train

MGM_JAX = [sys.executable, "-m", "mgm_jax.cli"]
TRAIN = [sys.executable, "-m", "mgm_jax.train"]


def error_line(done):
    """The one line of a finished process that failed as a command should."""
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr and not done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture
def failing(tiny_config_file, tmp_path, capsys):
    """(*overrides, arg) -> the message of an in-process run that must fail."""

    def run(*overrides, arg="", workdir=tmp_path / "work"):
        with pytest.raises(SystemExit) as caught:
            train.main([f"--config={tiny_config_file}{arg}", f"--workdir={workdir}", *overrides])
        message = str(caught.value.code)
        assert message.startswith("error: ") and "\n" not in message, message
        assert not (Path(workdir) / "model").exists()
        return message

    return run


HELP = {
    (): ["demo", "train", "chat", "--version"],
    ("demo",): ["--workdir", "--seed", "--size", "--json"],
    ("chat",): [
        *("directory", "--image", "--question", "--system", "--max-new-tokens", "--temperature"),
        *("--top-p", "--top-k", "--max-length", "--seed", "--allow-urls", "--ocr", "--ocr-tokens"),
        *("--gen", "--gen-backend", "--gen-option", "--gen-dir", "--loop", "--dtype", "--switch"),
    ],
    ("eval", "score"): ["--predictions", "--annotations", "--json", "--verdicts", "--submission"],
    ("train",): ["--config", "--workdir", "--config.a.b=v"],
}


@pytest.mark.parametrize("command", list(HELP), ids=" ".join)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_option(command, flag, capsys):
    try:
        cli.main([*command, flag])
    except SystemExit as end:
        assert end.code in (0, None)
    text = capsys.readouterr().out
    assert all(option in text for option in HELP[command]), text


def test_version_and_the_installed_command(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0 and mgm_jax.__version__ in capsys.readouterr().out
    script = Path(sys.executable).with_name("mgm-jax")
    done = subprocess.run([script, "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == f"mgm-jax {mgm_jax.__version__}\n"


@pytest.mark.parametrize("arguments", [["dance"], ["chat"], ["chat", "a", "--colour"], []])
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "override,words",
    [
        ("--config.steps=0", ["config.steps is 0", "at least 1"]),
        ("--config.log_every=0", ["config.log_every is 0", "at least 1"]),
        ("--config.checkpoint.every=0", ["config.checkpoint.every is 0"]),
        ("--config.checkpoint.keep=0", ["config.checkpoint.keep is 0"]),
        ("--config.data.batch=0", ["config.data.batch is 0"]),
        ("--config.data.threads=-1", ["config.data.threads is -1", "at least 0"]),
        ("--config.optim.lr=nan", ["config.optim.lr is nan"]),
        ("--config.dtype=float13", ["config.dtype is 'float13'", "bfloat16"]),
        ("--config.frozen_dtype=int8", ["config.frozen_dtype is 'int8'"]),
        ("--config.remat=some", ["remat is 'some'", "dots"]),
        ("--config.remat=qkv+weights", ["remat is 'qkv+weights'", "no weights are gathered"]),
        ("--config.optim.lrr=1", ["no key 'lrr'", '"lr"']),
        ("--config.zzz=1", ["no key 'zzz'"]),
        ("--config.optim.lr=much", ["config.optim.lr", "much"]),
        ("--config.data.template=v7", ["v7", "v1"]),
        ("--config.data.sources.main.path=nowhere.json", ["nowhere.json", "does not exist"]),
        ("--config.data.sources.main.images=nowhere", ["nowhere", "does not exist"]),
        ("--config.tokenizer=nowhere", ["nowhere", "tokenizer"]),
        ("--config.model.llm.vocab_size=300", ["576 pieces", "llm.vocab_size 300"]),
        ("--config.model.llm.kv_heads=3", ["llm.heads 4", "kv_heads 3"]),
        ("--config.mesh.fsdp=2", ["mesh", "1 devices"]),
        ("--wrokdir=x", ["wrokdir"]),
    ],
)
def test_bad_keys_are_named(override, words, failing):
    message = failing(override)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    "arg,words",
    [
        (":sohut", ["'sohut'", "number", "shout"]),
        (":number=a", ["number", "'a'", "int"]),
        (":shout=maybe", ["shout", "'maybe'", "true or false"]),
    ],
)
def test_bad_config_arguments_are_named(arg, words, failing):
    message = failing(arg=arg)
    assert all(word in message for word in words), message
    assert "Traceback" not in message


def test_a_config_file_that_does_not_exist(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        train.main(["--config=nowhere.py", f"--workdir={tmp_path / 'work'}"])
    message = str(caught.value.code)
    assert message.startswith("error: ") and "nowhere.py" in message and "\n" not in message
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_workdir_that_cannot_be_made(code, failing, tmp_path, monkeypatch):
    def mkdir(path, *args, **kwargs):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(os, "mkdir", mkdir)
    assert f"{tmp_path / 'new'}: cannot write there ({os.strerror(code)})" in failing(
        workdir=tmp_path / "new"
    )


def test_a_picture_that_breaks_a_run(tiny_demo, tiny_config_file, run_command, tmp_path):
    (tiny_demo / "data" / "images" / "noise.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    record = json.loads((tiny_demo / "data" / "train.json").read_text())[0]
    (tmp_path / "bad.json").write_text(json.dumps([record | {"image": "images/noise.jpg"}]))
    arguments = [f"--config={tiny_config_file}", f"--workdir={tmp_path / 'work'}"]
    override = f"--config.data.sources.main.path={tmp_path / 'bad.json'}"
    done = run_command([*MGM_JAX, "train", *arguments, override])
    assert "noise.jpg" in error_line(done)
    assert not list(tmp_path.glob("work/model*")) and not list(tmp_path.glob("work/state/*"))


@pytest.mark.parametrize(
    "kilobytes,where,words", [(60, "state", "could not be saved"), (0, "index", "cannot write")]
)
def test_a_full_disk_stops_a_run(kilobytes, where, words, tiny_config_file, run_command, tmp_path):
    """The operating system's limit on the size of a file stands for the disk's end."""
    arguments = [f"--config={tiny_config_file}", f"--workdir={tmp_path / 'work'}"]
    (tmp_path / "work").mkdir()
    limited = ["bash", "-c", f'ulimit -f {kilobytes} && exec "$@"', "bash"]
    arguments.append("--config.checkpoint.retries=(0.0,)")
    done = run_command([*limited, *TRAIN, *arguments])
    line = error_line(done)
    assert str(tmp_path / "work" / where) in line and words in line, line
    assert not list(tmp_path.glob("work/model*"))
    assert not [d for d in tmp_path.glob("work/state/*") if d.name.isdigit()]
    again = run_command([*TRAIN, *arguments])  # with room, the same command goes on
    assert again.returncode == 0, again.stderr


def test_a_model_that_does_not_exist(run_command, tmp_path):
    done = run_command([*MGM_JAX, "chat", str(tmp_path / "none"), "--question", "Hello"])
    assert str(tmp_path / "none" / "mgm.json") in error_line(done)
