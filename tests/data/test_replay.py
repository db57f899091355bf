"""`mgm-jax data replay` and `preview`: any step's batch, rebuilt and shown."""

import contextlib
import json

import jax.numpy as jnp
import pytest
from mgm_jax.configs import demo

from mgm_jax.data import cli
from mgm_jax.data.pipeline import iterate
from mgm_jax.data.rows import digest
from mgm_jax.data.stream import open_stream
from mgm_jax.settings import fingerprint, read_config
from mgm_jax.training_state import TrainingState

PACKED = ("--config.data.batching=pack", "--config.data.length=512", "--config.data.batch=4")


@pytest.fixture(scope="module")
def config(tiny_demo):
    return f"{demo.__file__}:stage=2,size=smoke,root={tiny_demo}"


@pytest.fixture
def data(config, capsys):
    """(command, *arguments) -> the lines that `mgm-jax data` prints; the config is the demo's."""

    def run(command, *arguments):
        cli.main([command, f"--config={config}", *map(str, arguments)])
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def stream(config):
    """(**options) -> the stream that training with PACKED reads from."""
    return lambda **options: open_stream(read_config(config, PACKED), **options)


@pytest.mark.parametrize("step", [0, 9])
def test_the_batch_of_training(step, data, stream):
    ours = stream()
    trained = next(iterate(ours.batches(), step))
    *table, line = data("replay", "--step", step, *PACKED)
    found = json.loads(line)
    assert found["command"] == "data replay" and found["step"] == step
    assert found["sha256"] == digest(trained)
    assert (found["epoch"], found["epoch_share"]) == ours.epoch(step)
    assert found["members"] == [[[s, r] for s, r, _ in row] for row in ours.members(step)]
    assert max(map(len, found["members"])) > 1
    assert found["tokens"] == (trained["segments"] > 0).sum()
    # The table has the same, a line for each example.
    header, *lines = (line.split(maxsplit=8) for line in table)
    assert header == "row group segment source record tokens pictures loss where".split()
    expected = [(i, n, m) for i, row in enumerate(ours.members(step)) for n, m in enumerate(row, 1)]
    assert len(lines) == len(expected) == found["examples"]
    for line, (row, number, (source, record, where)) in zip(lines, expected, strict=True):
        assert line[:5] == [str(row), "0", str(number), source, str(record)] and line[8] == where
    for column, name in ((5, "tokens"), (6, "pictures"), (7, "loss_tokens")):
        assert sum(int(line[column]) for line in lines) == found[name]


@pytest.fixture
def save_state(config):
    """(workdir, identity of its data): what training leaves there."""

    def save(workdir, identity):
        marks = fingerprint(read_config(config, PACKED))
        with contextlib.closing(TrainingState(workdir / "state", keep=1, fingerprint=marks)) as s:
            s.save(1, {"x": jnp.zeros(3)}, identity)

    return save


def test_the_layout_of_a_run(data, stream, save_state, tmp_path):
    """A run on a mesh splits its batches into groups; its workdir knows them."""
    ours = stream(shards=2)
    save_state(tmp_path, ours.identity)
    found = [
        json.loads(data("replay", "--step=3", *PACKED, *more)[-1])
        for more in ([], ["--shards=2"], ["--workdir", tmp_path], ["--config.data.group_rows", "2"])
    ]
    assert [f["groups"] for f in found] == [1, 2, 2, 2]
    assert {f["sha256"] for f in found[1:]} == {digest(ours.batch(3))} != {found[0]["sha256"]}
    changed = {"main": ours.identity["sources"]["main"] | {"fingerprint": "0" * 64}}
    save_state(tmp_path / "other", ours.identity | {"sources": changed})
    with pytest.raises(ValueError, match="'main' has changed since the run began"):
        data("replay", "--step=3", "--workdir", tmp_path / "other", *PACKED)


def test_rows_and_files(data, tmp_path):
    page, copy = tmp_path / "page.html", tmp_path / "line.json"
    files = ("--json", copy, "--html", page)
    *table, note, written, line = data("replay", "--step=1", "--rows=2", *files, *PACKED)
    assert copy.read_text() == line + "\n"
    rows = [int(line.split()[0]) for line in table[1:]]
    assert sorted(set(rows)) == [0, 1] and note == "... 2 more rows"
    assert written.startswith(f"{page}: 2 of 4 rows")
    text = page.read_text(encoding="utf-8")
    assert "Batch of step 1" in text and "the first 2 of 4 rows" in text and PACKED[1] in text
    assert json.loads(line)["sha256"] in text
    assert not list(tmp_path.rglob("*.partial"))


def test_an_empty_row_is_said(data, stream):
    ours = stream()
    past = next(step for step in range(99) if ours.epoch(step)[0] > 0)
    options = ("--config.steps=0", "--config.epochs=1")
    lines = data("replay", "--step", past, *PACKED, *options)
    assert [line.split() for line in lines[1:-1]] == [[str(r), "empty"] for r in range(4)]
    found = json.loads(lines[-1])
    assert found["examples"] == found["loss_tokens"] == found["token_fill"] == 0


def test_preview(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (line,) = data("preview", *PACKED)
    assert line.startswith("preview.html: 4 of 4 rows")
    first = (tmp_path / "preview.html").read_text(encoding="utf-8")
    assert "Batch of step 0" in first and "all rows" in first
    data("preview", "--step=2", "--rows=1", "--out", tmp_path / "b.html", *PACKED)
    other = (tmp_path / "b.html").read_text(encoding="utf-8")
    assert "Batch of step 2" in other and "the first 1 of 4 rows" in other


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--step=-1"], "--step is -1, expected at least 0"),
        (["--rows=0"], "--rows is 0, expected at least 1"),
        (["--shards=0"], "--shards is 0, expected at least 1"),
        (["--config.data.lenght=3"], "config has no key 'lenght'.*\"length\""),
        (["--config.data.length=wide"], "config.data.length.*wide"),
        (["--steps=3"], "Unknown command line flag 'steps'"),
        (["left"], "found 'left', expected --config.KEY=VALUE"),
        (["--config.data.batch=0"], "config.data.batch is 0"),
        (["--workdir=nowhere"], "nowhere/state is missing: no run has saved a state there"),
        (["--config.data.sources.main.path=gone.json"], "gone.json: .*does not exist"),
    ],
)
@pytest.mark.parametrize("command", ["replay", "preview"])
def test_bad_arguments_are_named(command, arguments, message, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError), match=message):
        data(command, "--step=0", *arguments)
    assert not list(tmp_path.iterdir())


def test_a_config_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match="nowhere.py"):
        read_config("nowhere.py")
    (tmp_path / "broken.py").write_text("def get_config(arg=None):\n    raise ValueError('no tea')")
    with pytest.raises(ValueError, match="no tea") as caught:
        read_config(f"{tmp_path / 'broken.py'}:a=1")
    assert "\n" not in str(caught.value)
