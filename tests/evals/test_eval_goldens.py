"""Scorers against what the original's scorers gave on the same input."""

import json
from pathlib import Path

import pytest
from case_files import dump, lines

from mgm_jax.evals import get
from mgm_jax.evals.files import Record
from mgm_jax.evals.mathvista import extract
from mgm_jax.evals.mmmu import prompt
from mgm_jax.evals.mmmu_parse import open_right, parse_choice, parse_open
from mgm_jax.evals.pope import yes_or_no
from mgm_jax.evals.textvqa import question_of
from mgm_jax.evals.vqa_text import anls, process, soft_scores

GOLDEN = Path(__file__).parents[1] / "golden" / "scoring"


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.mark.parametrize("case", golden("textvqa")["cases"], ids=lambda c: c["pred_answer"][:20])
def test_textvqa_answer(case):
    parsed, soft = process(case["pred_answer"]), soft_scores(case["gt_answers"])
    assert parsed == case["processed_pred"]
    assert sorted(soft) == case["processed_gt_unique"]
    assert soft.get(parsed, 0.0) == case["score"]
    assert float(parsed in soft) == case["stvqa_score"]
    if "anls" in case:  # the original divides by zero where both texts are empty
        assert max(anls(case["pred_answer"], a) for a in case["gt_answers"]) == case["anls"]


def test_textvqa_question_in_the_prompt():
    for case in golden("textvqa")["prompt_processor"]:
        assert question_of(case["prompt"]) == case["question"]
    assert question_of("One line") is None
    assert question_of("Reference OCR token: a\nb\nc\nd") is None
    assert question_of("OCR tokens: a. What is it?") is None


def test_textvqa_as_a_file(tmp_path):
    cases = golden("textvqa")["cases"]
    truth = [
        {"image_id": f"{i // 2}", "question": f"What {i}?", "answers": c["gt_answers"]}
        for i, c in enumerate(cases)
    ]
    rows = [
        {"question_id": f"{i // 2}", "prompt": f"What {i}?\nShort.", "text": c["pred_answer"]}
        for i, c in enumerate(cases)
    ]
    scores = get("textvqa").run(
        lines(tmp_path / "mine.jsonl", rows), dump(tmp_path / "val.json", {"data": truth})
    )
    right = sum(c["score"] for c in cases) / len(cases)
    assert scores.result["accuracy"] == right and scores.result["samples"] == len(cases)
    assert scores.printed == f"mine\nSamples: {len(cases)}\nAccuracy: {100 * right:.2f}%\n"


@pytest.mark.parametrize("index", range(len(golden("mmmu_parse_cases"))))
def test_mmmu_reply(index):
    case = golden("mmmu_parse_cases")[index]
    if case["type"] == "mc":
        parsed = parse_choice(case["response"], case["all_choices"], case["index2ans"])
        assert parsed == case["parsed"] and (parsed is None) == case["random_fallback"]
    else:
        parsed = parse_open(case["response"])
        assert sorted(map(repr, parsed)) == sorted(map(repr, case["parsed_sorted"]))
        assert open_right(case["answer"], parsed) == case["correct"]


def test_mmmu_prompt():
    for case in golden("mmmu_prompts")["cases"]:
        text, texts = prompt(case["sample"])
        assert text == case["result"]["final_input_prompt"]
        assert texts == case["result"].get("index2ans", {})


def test_mathvista_extraction():
    for case in golden("mathvista_extract"):
        problem = Record(case["problem"] | {"response": case["response"]}, "golden")
        assert extract(problem, case["quick_extract"]) == case["extraction"]


def test_pope(tmp_path):
    data = golden("pope")
    for case in data["text_normalization"]:
        assert yes_or_no(case["text"]) == case["normalized"]
    for name, rows in data["annotation_files"].items():
        lines(tmp_path / "coco" / name, rows)
    lines(tmp_path / "questions.jsonl", data["questions"])
    answers = lines(tmp_path / "answers" / "a.jsonl", data["answers"])
    for annotations in (tmp_path, tmp_path / "coco", tmp_path / "questions.jsonl"):
        scores = get("pope").run(answers, annotations)
        assert scores.result == data["results"]
    blocks = [text.split("=" * 36 + "\n") for text in (scores.printed, data["stdout"])]
    assert sorted(blocks[0]) == sorted(blocks[1])  # the original goes by the folder's order
