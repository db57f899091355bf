"""Held-out loss and benchmarks inside a run, as what the best state is chosen by, and beside it."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from mgm_jax import evaluate, train
from mgm_jax.data.stream import open_stream
from mgm_jax.evals.follow import follow
from mgm_jax.run import prepare
from mgm_jax.settings import TrainingError, fingerprint, kept_config, read_config
from mgm_jax.training_state import open_states
from mgm_jax.validation import open_validation


@pytest.fixture(scope="module")
def eval_config(tiny_demo, tmp_path_factory):
    """FILE of an eval config about the demo's validation pictures."""
    folder = tmp_path_factory.mktemp("eval")
    records = json.loads((tiny_demo / "data" / "val.json").read_text())
    rows = [
        {
            "question_id": r["id"],
            "image": r["image"],
            "text": r["conversations"][0]["value"].replace("<image>\n", ""),
            "answer": r["answer"],
            "category": r["kind"],
        }
        for r in records
    ]
    (folder / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "digits.py"
    file.write_text(
        "from mgm_jax.configs import common\n"
        "def get_config(arg=None):\n"
        f"  args = ('jsonl', {str(folder / 'val.jsonl')!r}, {str(tiny_demo / 'data')!r})\n"
        "  c = common.eval_config({'digits': common.benchmark(*args, args[1])})\n"
        "  c.batch, c.round, c.threads, c.dtype = 8, 64, 1, 'float32'\n"
        "  c.benchmarks.digits.generation.max_new_tokens = 4\n"
        "  return c\n"
    )
    return file


@pytest.fixture(scope="module")
def values(tiny_demo, eval_config):
    data = tiny_demo / "data"
    return {
        "eval__every": 2,
        "eval__configs": (str(eval_config),),
        "eval__loss__path": str(data / "val.json"),
        "eval__loss__images": str(data),
        "checkpoint__keep": 1,
        "checkpoint__best": "eval_loss",
    }


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tiny_config, values, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    config = tiny_config(**values, log_every=3)
    train.train(config, workdir)
    return config, workdir


def test_a_run_measures_itself(finished):
    config, workdir = finished
    rows = {row["step"]: row for row in rows_of(workdir)}
    assert sorted(rows) == [2, 3, 4, 6]
    measured = {s: r["eval_loss"] for s, r in rows.items() if "eval_loss" in r}
    assert sorted(measured) == [2, 4, 6] and "loss" in rows[3] and "loss" not in rows[2]
    assert all(0 <= rows[s]["eval/digits/accuracy"] <= 100 for s in measured)
    results = json.loads((workdir / "eval/step_4/digits/results.json").read_text())
    assert results["model"] == "step_4" and results["errors"] == 0
    assert (
        results["benchmarks"]["digits"]["summary"]["accuracy"] == (rows[4]["eval/digits/accuracy"])
    )
    best = min(measured, key=lambda s: (measured[s], -s))
    assert open_states(config, workdir).steps() == sorted({best, 6})


def test_the_held_out_loss_is_that_of_the_model(finished, values):
    """Against the mean over rows of one whole batch, computed apart."""
    import mgm_jax

    config, workdir = finished
    model = mgm_jax.load(workdir / "model", dtype="float32")
    held = config.copy_and_resolve_references()
    held.data.sources = {
        "x": {"path": values["eval__loss__path"], "images": config.data.sources.main.images}
    }
    held.steps, held.epochs = 0, 1
    batch = open_stream(held).batch(0)
    assert open_stream(held).schedule.steps() == 1
    logits = np.asarray(jax.jit(model.forward)(batch)[0], np.float64)
    logits -= logits.max(-1, keepdims=True)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(logp, batch["targets"][..., None], -1)[..., 0]
    weights = batch["loss_weights"]
    expected = -(chosen * weights).sum() / weights.sum()
    assert rows_of(workdir)[-1]["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_following_a_run_finds_the_same(finished, eval_config, tmp_path, capsys):
    config, workdir = finished
    assert fingerprint(kept_config(workdir)) == fingerprint(config)
    steps = open_states(config, workdir).steps()
    results = follow(read_config(str(eval_config), key="benchmarks"), workdir, tmp_path / "out")
    assert [int(s) for s in results["steps"]] == steps
    inside = {row["step"]: row for row in rows_of(workdir)}
    for step in steps:
        found = results["steps"][str(step)]["benchmarks"]["digits"]["summary"]
        assert found["accuracy"] == inside[step]["eval/digits/accuracy"]
        one = workdir / f"eval/step_{step}/digits/digits/items.jsonl"
        two = tmp_path / f"out/step_{step}/digits/items.jsonl"
        texts = [[json.loads(x)["text"] for x in f.read_text().splitlines()] for f in (one, two)]
        assert texts[0] == texts[1]
    command = [f"--config={eval_config}", f"--follow={workdir}", f"--out={tmp_path / 'out'}"]
    evaluate.main(command)  # all is there already
    out = capsys.readouterr().out.splitlines()
    assert json.loads(out[-1]) == json.loads((tmp_path / "out/results.json").read_text())
    assert out[0] == "| step | digits accuracy |" and len(out) == 2 + len(steps) + 1
    other = ["--config.dtype=bfloat16", "--config.limit=2", f"--out={tmp_path / 'bfloat16'}"]
    evaluate.main([*command[:2], *other])
    settings = json.loads(capsys.readouterr().out.splitlines()[-1])["steps"]["6"]["settings"]
    assert settings["dtype"] == "bfloat16"
    (tmp_path / "out/results.json").write_text(json.dumps({"run": "another", "steps": {}}))
    with pytest.raises(SystemExit, match="results of something else than this run"):
        evaluate.main(command)


def test_what_is_wrong_is_told_before_the_first_step(tiny_config, values, tmp_path):
    cases = [
        ({"checkpoint__best": "eval/digits/f1"}, "config.eval has eval/digits/accuracy, eval_loss"),
        ({"eval__every": 4, "checkpoint__every": 6}, "a multiple of config.eval.every"),
        ({"eval__configs": ("nowhere.py",)}, "nowhere.py"),
    ]
    run = prepare(tiny_config(**values))
    for change, words in cases:
        wrong = dataclasses.replace(run, config=tiny_config(**values | change))
        with pytest.raises((TrainingError, OSError), match=words):
            open_validation(wrong, tmp_path)
    for change, words in (
        ({"checkpoint__best": "loudness"}, "config.checkpoint.best is 'loudness'"),
        ({"eval__every": 0}, "config.eval.every is 0, expected at least 1"),
    ):
        with pytest.raises(TrainingError, match=words):
            train.train(tiny_config(**values | change), tmp_path / "run")
    with pytest.raises(TrainingError, match="config.txt does not exist: no training run has begun"):
        kept_config(tmp_path)
