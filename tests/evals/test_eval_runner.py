"""The runner: all benchmarks end to end, batches and processes that change nothing, resuming."""

import dataclasses
import json
import shutil
import sys
import time

import pytest
from eval_cases import COUNT, build
from runner_case import (
    QUESTIONS,
    explained,
    make_config,
    mine,
    of_case,
    read_items,
)

from launch.local_multiprocess import started
from mgm_jax import cli, sharding
from mgm_jax.evals import BENCHMARKS, get
from mgm_jax.evals.runner import Runner, checked_tasks
from mgm_jax.evaluate import read_subject
from mgm_jax.generate.batches import Continuation


@pytest.fixture(scope="module")
def subject(checkpoint):
    return read_subject(make_config({}), sharding.make_mesh({}), checkpoint)


@pytest.fixture(scope="module")
def run(subject):
    """(config, out) -> results."""

    def run(config, out, after_batch=lambda: None, judge=None):
        return Runner(subject, config, after_batch)(checked_tasks(config), out, judge)

    return run


@pytest.fixture(scope="module")
def whole(run, own, tmp_path_factory):
    """The own questions, answered in one run: its folder."""
    out = tmp_path_factory.mktemp("whole")
    run(make_config(mine(own), batch=8), out)
    return out


class Stop(Exception):
    pass


def stopping(batches):
    """Ends an evaluation after so many batches."""
    left = [batches]

    def after_batch():
        left[0] -= 1
        if not left[0]:
            raise Stop

    return after_batch


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_end_to_end(name, run, tmp_path, capsys):
    benchmark, case = get(name), build(name, tmp_path / "case")
    config = make_config(of_case(name, case))
    out = tmp_path / "out"
    results = run(config, out)
    assert results == json.loads((out / "results.json").read_text())
    assert results["questions"] == COUNT and results["errors"] == 0
    scores = results["benchmarks"][name]
    assert scores == json.loads((out / name / "scores.json").read_text())
    items = read_items(out / name)
    asked = list(benchmark.questions(case.questions, case.images, benchmark.chosen(case.options)))
    assert [i["prompt"] for i in items] == [q.prompt for q in asked]
    assert all(0 < i["tokens"] <= 6 and i["margin"] >= 0 for i in items)
    assert all((i["finish"] == "length") == (i["tokens"] == 6) or i["finish"] for i in items)
    for item in items:
        assert all((out / name / path).exists() for path in item["images"])
    lines = [json.loads(x) for x in (out / name / "predictions.jsonl").read_text().splitlines()]
    texts = [benchmark.postprocess(i["text"]) for i in items]
    made = [benchmark.line(q, t, results["model"]) for q, t in zip(asked, texts, strict=True)]
    assert lines == made
    if benchmark.needs_judge:
        assert scores["summary"] == {} and "needs a judge" in scores["notes"][0]
        return
    arguments = ["--predictions", str(out / name / "predictions.jsonl")]
    arguments += ["--annotations", str(case.annotations)] if case.annotations else []
    cli.main(["eval", "score", name, *arguments])
    alone = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert alone == {k: v for k, v in scores.items() if k not in ("questions", "errors")}
    verdicts = json.loads((out / name / "verdicts.json").read_text())
    assert len(verdicts) == COUNT


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_stub_right_on_13_of_20_scores_as_by_hand(name, run, subject, tmp_path, monkeypatch):
    case = build(name, tmp_path / "case")
    tokenizer = subject.model.tokenizer

    class Stub:
        def __init__(self, *args, **kwargs):
            pass

        def run(self, prompts, numbers, batches, **how):
            for rows in batches:
                ids = {m: tokenizer.encode(case.replies[numbers[m]]) for m in rows.members}
                yield rows, {m: Continuation((*i, tokenizer.eos_id), 1.0) for m, i in ids.items()}

    monkeypatch.setattr("mgm_jax.evals.runner.Generator", Stub)
    results = run(make_config(of_case(name, case), batch=3), tmp_path / "out", judge=case.judge)
    assert results["benchmarks"][name]["summary"] == pytest.approx(case.summary, rel=1e-12)
    assert {i["finish"] for i in read_items(tmp_path / "out" / name)} == {"stop"}


@pytest.mark.parametrize("batch, window", [(1, 32), (8, 1)])
def test_batches_change_nothing(batch, window, run, own, whole, tmp_path):
    """One by one, and eight at a time in other company: the same answers."""
    run(make_config(mine(own), batch=batch, window=window), tmp_path)
    items, other = (read_items(d / "mine") for d in (whole, tmp_path))
    assert len({i["text"] for i in items}) >= 20
    assert not explained(items, other), explained(items, other)
    for name in ("predictions.jsonl", "scores.json", "verdicts.json"):
        one, two = (d / "mine" / name for d in (whole, tmp_path))
        assert one.read_text() == two.read_text()


def test_draws_do_not_depend_on_the_batch(run, own, whole, tmp_path):
    found = []
    for limit in (8, 16):  # sorted by length, other rows are neighbours
        config = make_config(mine(own), batch=8, limit=limit)
        config.benchmarks.mine.generation.temperature = 1.0
        config.benchmarks.mine.generation.seed = 3
        run(config, tmp_path / str(limit))
        found.append([i["text"] for i in read_items(tmp_path / str(limit) / "mine")][:8])
    assert found[0] == found[1]
    assert found[0] != [i["text"] for i in read_items(whole / "mine")][:8]


def test_a_run_that_was_ended_goes_on(run, own, whole, tmp_path):
    out = tmp_path / "out"
    config = make_config(mine(own), batch=8)
    with pytest.raises(Stop):
        run(config, out, stopping(1))
    file = out / "mine" / "answers" / "0.jsonl"
    kept = file.read_text()
    assert len(kept.splitlines()) == 8
    file.write_text(kept + kept.splitlines()[0][:30])  # as a kill may leave it
    shutil.copy(file, file.with_name("3.jsonl"))  # of another process, once
    assert run(config, out)["answered"] == QUESTIONS - 8
    assert len(file.read_text().splitlines()) == QUESTIONS
    for name in ("predictions.jsonl", "items.jsonl", "scores.json", "verdicts.json"):
        assert (out / "mine" / name).read_text() == (whole / "mine" / name).read_text()
    assert run(config, out)["answered"] == 0


def test_more_questions_later(run, own, whole, tmp_path):
    config = make_config(mine(own), batch=8, limit=8)
    results = run(config, tmp_path)["benchmarks"]["mine"]
    assert results["notes"] == [f"the first 8 of {QUESTIONS} questions were asked"]
    assert results["summary"] == {"accuracy": 0.0} and results["questions"] == 8
    config.limit = None
    assert run(config, tmp_path)["answered"] == QUESTIONS - 8
    one, two = (d / "mine" / "items.jsonl" for d in (whole, tmp_path))
    assert [i["text"] for i in map(json.loads, one.open())] == [
        i["text"] for i in map(json.loads, two.open())
    ]


def test_an_unreadable_picture_is_an_error_of_its_question(run, own, whole, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(own.parent, folder)
    config = make_config(mine(folder / "mine.jsonl"), batch=8)
    picture = (folder / "4.png").read_bytes()
    (folder / "4.png").write_bytes(picture[:20] + bytes(len(picture) - 20))
    results = run(config, tmp_path / "out")
    assert results["errors"] == 1
    assert results["benchmarks"]["mine"]["notes"] == [
        "1 questions could not be asked and count as answered by ''"
    ]
    item = read_items(tmp_path / "out" / "mine")[4]
    assert str(folder / "4.png") in item["error"] and item["text"] == ""
    (folder / "4.png").write_bytes(picture)
    again = run(config, tmp_path / "out")
    assert (again["errors"], again["answered"]) == (0, 1)
    one, two = read_items(whole / "mine"), read_items(tmp_path / "out" / "mine")
    assert [i["text"] for i in one] == [i["text"] for i in two]


def test_a_prompt_that_is_too_long_is_an_error_of_its_question(subject, own, tmp_path):
    config = make_config(mine(own), batch=8, limit=8)
    provenance = {"config.json": {"tokenizer_model_max_length": 60}}
    model = dataclasses.replace(subject.model, provenance=provenance)
    short = dataclasses.replace(subject, model=model)
    results = Runner(short, config)(checked_tasks(config), tmp_path)
    errors = [i["error"] for i in read_items(tmp_path / "mine") if i["error"]]
    assert 0 < len(errors) == results["errors"] < 8
    assert all("more than the 60 that the model was trained with" in e for e in errors)


def test_answers_of_something_else_are_refused(run, subject, own, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    config = make_config(mine(own), batch=8)
    config.benchmarks.mine.generation.max_new_tokens = 5
    with pytest.raises(ValueError, match="answers there are of generation .*use another --out"):
        run(config, out)
    config = make_config(mine(own), batch=8)
    other = dataclasses.replace(subject, content="another")
    with pytest.raises(ValueError, match="answers there are of model .* this run has 'another'"):
        Runner(other, config)(checked_tasks(config), out)
    changed = tmp_path / "own"
    shutil.copytree(own.parent, changed)
    text = (changed / "mine.jsonl").read_text()
    (changed / "mine.jsonl").write_text(text.replace('"text": "3 ', '"text": "three '))
    with pytest.raises(ValueError, match=r"0.jsonl:\d+: this answers another question than numb"):
        run(make_config(mine(changed / "mine.jsonl"), batch=8), out)


def test_two_processes_go_on_where_one_stopped(run, checkpoint, own, whole, tmp_path):
    """Four devices of two processes answer what one process left open, as one would have."""
    file = tmp_path / "config.py"
    file.write_text(
        "from mgm_jax.configs import common\n"
        "def get_config(arg=None):\n"
        f"  mine = common.benchmark('jsonl', {str(own)!r}, {str(own.parent)!r}, {str(own)!r})\n"
        "  c = common.eval_config({'mine': mine})\n"
        "  c.dtype, c.round, c.batch, c.threads = 'float32', 512, 8, 1\n"
        "  c.benchmarks.mine.generation.max_new_tokens = 6\n"
        "  return c\n"
    )
    out = tmp_path / "out"
    with pytest.raises(Stop):
        run(make_config(mine(own), batch=8), out, stopping(1))
    command = [sys.executable, "-m", "mgm_jax.evaluate", f"--config={file}"]
    command += [f"--checkpoint={checkpoint}", f"--workdir={out}"]
    logs = [tmp_path / f"{i}.log" for i in range(2)]
    with started(command, logs, devices=2, grace=0) as processes:
        codes = [p.wait(400) for p in processes]
    assert codes == [0, 0], [log.read_text()[-3000:] for log in logs]
    results = json.loads(logs[0].read_text().splitlines()[-1])
    assert results["answered"] == QUESTIONS - 8
    assert not logs[1].read_text().strip().endswith("}")
    counts = [
        len((out / "mine" / "answers" / f"{i}.jsonl").read_text().splitlines()) for i in (0, 1)
    ]
    assert counts == [8 + 8, 8]  # each its own rows
    assert not explained(read_items(whole / "mine"), read_items(out / "mine"))
    one, two = (d / "mine" / "predictions.jsonl" for d in (whole, out))
    assert one.read_text() == two.read_text()


@pytest.mark.slow  # make evidence, on a machine that does nothing else
def test_batches_are_faster(run, own, tmp_path):
    """Long answers of a tiny model: 24 at once against one by one, compiled before."""
    seconds = {1: [], 24: []}
    for turn in range(3):
        for batch, taken in seconds.items():
            config = make_config(mine(own), batch=batch, round=128, window=1)
            config.benchmarks.mine.generation.max_new_tokens = 64
            begun = time.perf_counter()
            run(config, tmp_path / f"{turn}-{batch}")
            taken.append(time.perf_counter() - begun)
    alone, together = (min(s[1:]) for s in seconds.values())
    assert alone > 3 * together, seconds
