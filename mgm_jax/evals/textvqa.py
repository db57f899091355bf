"""TextVQA val with OCR tokens in the prompt; M4C's accuracy (MGM_SPEC 8.2)."""

from __future__ import annotations

import re
from collections import Counter

from mgm_jax.evals.bleu import bleu4
from mgm_jax.evals.common import Benchmark, Generation, Scores, id_and_prompt, mean
from mgm_jax.evals.files import Record, field, read_mapping, show
from mgm_jax.evals.published import published
from mgm_jax.evals.vqa_questions import questions
from mgm_jax.evals.vqa_text import anls, process, soft_scores
from mgm_jax.switches import BY_NAME

PERIODS = BY_NAME["m4c_period_count"]


def question_of(prompt: str) -> str | None:
    """The lower-case question inside a stored prompt; None if it has none of the known forms."""
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        found = re.search(r"Question: (.*?) Short answer:", prompt, re.DOTALL)
        question = found[1] if found else None
    elif "Reference OCR token: " in prompt and len(lines) == 3:
        question = lines[1] if prompt.startswith("Reference OCR token:") else lines[0]
    else:
        question = lines[0] if len(lines) == 2 else None
    return question if question is None else question.lower()


def read_answers(path) -> tuple[dict[tuple, list[str]], Counter]:
    """`TextVQA_0.5.1_val.json`: the ten answers of each (image_id, lower-case question), and how
    often it is asked."""
    data = read_mapping(path).get("data")
    if not isinstance(data, list):
        raise ValueError(f"{path}: no list 'data', expected TextVQA_0.5.1_val.json")
    answers, asked = {}, Counter()
    for i, item in enumerate(data):
        item = Record(item, path, f", data[{i}]")
        key = field(item, "image_id", (str, int)), field(item, "question").lower()
        answers[key] = field(item, "answers", list)
        asked[key] += 1
        if len(answers[key]) != 10:
            raise ValueError(f"{item.where}: {len(answers[key])} answers, expected 10")
    return answers, asked


def score(predictions, annotations, options, judge=None) -> Scores:
    """Accuracy of the lines that are there, as in the original; the rest is counted in notes."""
    periods = options["m4c_period_count"]
    PERIODS.check(periods)
    answers, asked = read_answers(annotations)
    verdicts, pairs, first = [], [], {}
    for line in predictions:
        question = question_of(field(line, "prompt"))
        if question is None:
            raise ValueError(
                f"{line.where}: field 'prompt' has none of the three forms of a TextVQA prompt: "
                f"{show(line['prompt'])}"
            )
        key = field(line, "question_id", (str, int)), question
        if key not in answers:
            raise ValueError(f"{line.where}: no question {show(key)} in {annotations}")
        asked[key] -= 1
        if asked[key] < 0:
            raise ValueError(f"{line.where}: {show(key)} is answered in {first[key]} already")
        first.setdefault(key, line.where)
        text, references = field(line, "text"), answers[key]
        soft, parsed = soft_scores(references, periods), process(text, periods)
        verdicts.append(
            {
                "question_id": key[0],
                "score": soft.get(parsed, 0.0),
                "parsed": parsed,
                "answer": Counter(references).most_common(1)[0][0],
                "stvqa": float(parsed in soft),
                "anls": max(anls(text, a) for a in references),
            }
        )
        pairs.append((text, references))
    right = mean(v["score"] for v in verdicts)
    result = {
        "samples": len(verdicts),
        "accuracy": right,
        "stvqa_accuracy": mean(v["stvqa"] for v in verdicts),
        "anls": mean(v["anls"] for v in verdicts),
        "bleu4": bleu4(pairs),
    }
    missing = len(answers.keys() - first.keys())
    notes = [f"{missing} of {len(answers)} questions have no prediction"] if missing else []
    name = predictions[0].source.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    printed = f"{name}\nSamples: {len(verdicts)}\nAccuracy: {100.0 * right:.2f}%\n"
    return Scores(result | {"missing": missing}, verdicts, printed, notes)


BENCHMARK = Benchmark(
    name="textvqa",
    title="TextVQA val, with OCR tokens",
    questions=questions,
    score=score,
    generation=Generation(max_new_tokens=128),
    needs="TextVQA_0.5.1_val.json",
    expected=published(accuracy="textvqa"),
    tolerance={"accuracy": 1.0},
    key=id_and_prompt,
    options={"m4c_period_count": PERIODS.default},
)
