"""What an evaluation refuses before it loads a model, and scores of a part of the questions."""

import json
import shutil

import pytest
from eval_cases import COUNT, RIGHT, build
from mgm_jax.configs import common
from mgm_jax.configs.eval import files, mine, paper, some
from runner_case import make_config, of_case

from mgm_jax import cli
from mgm_jax.evals import BENCHMARKS
from mgm_jax.evals.runner import checked_tasks
from mgm_jax.evals.tasks import read_tasks


@pytest.fixture
def own(tmp_path):
    return build("jsonl", tmp_path / "own")


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.parametrize("asked", [8, RIGHT + 1])
def test_a_part_of_the_questions(name, asked, tmp_path):
    """The first 13 replies are right: so is all of the first eight, and all but one of 14."""
    case = build(name, tmp_path / name)
    (task,) = read_tasks(make_config(of_case(name, case), limit=asked).to_dict())
    scores = task.score(case.replies[:asked], "stub", case.judge)
    assert scores.result == {} and len(scores.verdicts) == asked
    wrong = [v for v in scores.verdicts if v["score"] < (1 if name != "llavabench" else 0.8)]
    assert len(wrong) == max(0, asked - RIGHT)
    assert scores.notes == [f"the first {asked} of {COUNT} questions were asked"]


@pytest.mark.parametrize("asked, rows", [(1, 0), (2, 1), (4, 1), (5, 2)])
def test_rounds_of_a_row_count_together(asked, rows, tmp_path):
    """Row 0 has two options and so two rounds, row 1 three: a row counts when all were asked."""
    case = build("mmbench", tmp_path / "case")
    case.options["all_rounds"] = True
    (task,) = read_tasks(make_config(of_case("mmbench", case), limit=asked).to_dict())
    assert [q.id for q in task.questions[:5]] == [0, 0, 7, 7, 7]
    assert len(task.score(["A"] * asked, "stub").verdicts) == rows


@pytest.mark.parametrize(
    "change, words",
    [
        ({"benchmark": "vqa"}, "unknown benchmark 'vqa'"),
        ({"pictures": "x"}, "config.benchmarks.jsonl has 'pictures', expected some of benchmark,"),
        ({"questions": "no.jsonl"}, "config.benchmarks.jsonl.questions: no.jsonl does not exist"),
        ({"questions": ""}, "config.benchmarks.jsonl.questions is not set"),
        ({"images": "nowhere"}, "config.benchmarks.jsonl.images: nowhere does not exist"),
        ({"annotations": ""}, "config.benchmarks.jsonl.annotations is not set, expected your file"),
        ({"options": {"metrics": "anls"}}, "jsonl has no option 'metrics', known: metric"),
        ({"options": {"metric": "vibes"}}, "metric 'vibes', expected exact"),
        ({"generation": {"beams": 2}}, "generation has 'beams', expected some of max_new_tokens"),
        ({"generation": {"max_new_tokens": 0}}, "jsonl.generation.max_new_tokens is 0, expected"),
        ({"generation": {"temperature": -1.0}}, "jsonl.generation.temperature is -1.0, expected"),
    ],
    ids=str,
)
def test_wrong_entries(change, words, own):
    entry = common.benchmark("jsonl", *map(str, (own.questions, own.images, own.annotations)))
    if change.get("options") == {"metric": "vibes"}:  # lines name their metric themselves
        rows = [json.loads(line) for line in own.questions.read_text().splitlines()]
        rows = [{k: v for k, v in row.items() if k != "metric"} for row in rows]
        own.questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = common.eval_config({"jsonl": entry | change})
    with pytest.raises((ValueError, OSError)) as caught:
        checked_tasks(config)
    assert words in str(caught.value)


@pytest.mark.parametrize("key", ["batch", "round", "window", "threads", "tower_batch", "limit"])
def test_wrong_numbers(key, own):
    config = make_config(of_case("jsonl", own))
    config[key] = 0
    with pytest.raises(ValueError, match=f"config.{key} is 0, expected at least 1"):
        checked_tasks(config)


def test_wrong_files(own):
    config = make_config(of_case("jsonl", own))
    text = own.questions.read_text()
    lines = text.splitlines(keepends=True)
    own.questions.write_text(text + lines[3])
    with pytest.raises(ValueError, match="question 20: 'q3' stands in .*, question 3 already"):
        checked_tasks(config)
    own.questions.write_text(text.replace('"answer": "oak"', '"truth": "oak"'))
    with pytest.raises(ValueError, match="do not go together: .*mine.jsonl:4: no field 'answer'"):
        checked_tasks(config)
    own.questions.write_text(text.replace('"text": ', '"ask": '))
    with pytest.raises(ValueError, match="mine.jsonl:1: no field 'text'"):
        checked_tasks(config)
    own.questions.write_text(text)
    (own.images / "7.png").unlink()
    with pytest.raises(FileNotFoundError, match="mine.jsonl:8: picture .*7.png does not exist"):
        checked_tasks(config)


def test_questions_and_annotations_of_different_sets(tmp_path):
    case = build("textvqa", tmp_path / "one")
    other = build("textvqa", tmp_path / "two").annotations
    data = json.loads(other.read_text())
    data["data"] = data["data"][:10]
    other.write_text(json.dumps(data))
    case.annotations = other
    with pytest.raises(ValueError, match=r"do not go together: .*:11: no question \('10', 'what"):
        checked_tasks(make_config(of_case("textvqa", case)))


def test_configs(tmp_path, own):
    assert set(paper.get_config().benchmarks) == set(files.PAPER)
    faithful = paper.get_config("root=x,faithful")
    assert faithful.switches.mmmu_decode == "beam_sample"
    assert faithful.benchmarks.textvqa.questions == "x/textvqa/llava_textvqa_val_v051_ocr.jsonl"
    assert set(e["benchmark"] for e in some.get_config().benchmarks.to_dict().values()) == (
        set(BENCHMARKS) - {"jsonl"}
    )
    assert list(some.get_config("names=pope+gqa").benchmarks) == ["gqa", "pope"]
    with pytest.raises(ValueError, match="unknown benchmark 'vqa', known: textvqa"):
        some.get_config("names=vqa")
    config = mine.get_config(f"questions={own.questions},images={own.images},new=9")
    (task,) = checked_tasks(config)
    assert task.generation.max_new_tokens == 9
    build("mmmu", tmp_path / "MMMU")
    config = some.get_config(f"names=mmmu_val,root={tmp_path},faithful")
    config.benchmarks.mmmu_val.options.subjects = "Art Math"
    (task,) = checked_tasks(config)
    assert (task.generation.num_beams, task.generation.temperature) == (5, 1.0)
    config.benchmarks.mmmu_val.generation.num_beams = 2
    assert checked_tasks(config)[0].generation.num_beams == 2


def test_the_command_names_what_is_wrong(tmp_path, own, capsys):
    config = f"configs/eval/mine.py:questions={own.questions},images={own.images}"
    command = ["eval", "--config", config, "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, "--checkpoint", str(tmp_path / "none")])
    assert f"{tmp_path / 'none'}" in str(caught.value) and "error" in str(caught.value)
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, "--checkpoint", "x", "--config.batches=3"])
    assert "config.batches" in str(caught.value) or "no key" in str(caught.value)
    with pytest.raises(SystemExit):
        cli.main(command)
    assert "--checkpoint --follow is required" in capsys.readouterr().err
    shutil.rmtree(own.images)
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, "--checkpoint", "x"])
    assert str(caught.value) == f"error: config.benchmarks.mine.images: {own.images} does not exist"
