"""GQA: the official scorer's file, and accuracy where the answers are at hand (MGM_SPEC 8.9)."""

from __future__ import annotations

from mgm_jax.evals.common import Benchmark, Generation, Scores, mean, question_id
from mgm_jax.evals.files import (
    Record,
    by_key,
    check_complete,
    check_known,
    field,
    read_mapping,
    write_json,
)
from mgm_jax.evals.vqa_questions import questions


def prediction(text: str) -> str:
    """What is handed in: lower case, without periods at the end."""
    return text.rstrip(".").lower()


def score(predictions, annotations, options, judge=None) -> Scores:
    """Share of predictions that equal the answer, as the official scorer's "accuracy"."""
    truth = {
        name: Record(value, annotations, f", {name}")
        for name, value in read_mapping(annotations).items()
    }
    answered = by_key(predictions, lambda p: str(question_id(p)))
    check_known(predictions, truth, lambda p: str(question_id(p)), annotations)
    check_complete(truth, answered, annotations, predictions)
    verdicts = []
    for name, problem in truth.items():
        parsed, answer = prediction(field(answered[name], "text")), field(problem, "answer")
        verdict = {"question_id": name, "score": float(parsed == answer), "parsed": parsed}
        kind = (problem.get("types") or {}).get("structural")
        verdicts.append(verdict | {"answer": answer, "category": kind})
    right = mean(v["score"] for v in verdicts)
    result = {"accuracy": right, "samples": len(verdicts)}
    return Scores(result, verdicts, f"Accuracy: {100 * right:.2f}%\n")


def submission(predictions, annotations, path, options) -> None:
    """[{questionId, prediction}] for the official scorer."""
    lines = by_key(predictions, question_id).items()
    write_json(
        path, [{"questionId": i, "prediction": prediction(field(p, "text"))} for i, p in lines]
    )


BENCHMARK = Benchmark(
    name="gqa",
    title="GQA testdev balanced",
    questions=questions,
    score=score,
    generation=Generation(max_new_tokens=128),
    needs="testdev_balanced_questions.json",
    submission=submission,
)
