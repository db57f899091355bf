"""SEED-Bench: accuracy of letters by question type, pictures and video (MGM_SPEC 8.9)."""

from __future__ import annotations

import json

from etils import epath

from mgm_jax.evals.common import Benchmark, Generation, Scores, mean, question_id
from mgm_jax.evals.files import Record, by_key, check_complete, check_known, field, read_mapping
from mgm_jax.evals.vqa_questions import questions


def _number(value: str | int) -> str | int:
    """Ids are numbers in one file and text in the other."""
    text = str(value)
    return int(text) if text.isdecimal() else text


def _id(record: Record) -> str | int:
    return _number(question_id(record))


def _read(path) -> tuple[dict, dict]:
    """(type id -> name, question id -> question) of SEED-Bench.json."""
    data = Record(read_mapping(path), path)
    types = {number: name for name, number in field(data, "question_type", dict).items()}
    listed = field(data, "questions", list)
    asked = [Record(q, path, f", questions[{i}]") for i, q in enumerate(listed)]
    for question in asked:
        kind = field(question, "question_type_id", (int, str))
        if kind not in types:
            raise ValueError(f"{question.where}: question_type_id {kind!r}, known: {[*types]}")
    return types, by_key(asked, _id)


def score(predictions, annotations, options, judge=None) -> Scores:
    """Percentages of replies that equal the answer; a question without a prediction is wrong."""
    types, asked = _read(annotations)
    answered = by_key(predictions, _id)
    check_known(predictions, asked, _id, annotations)
    verdicts = []
    for name, question in asked.items():
        text = field(answered[name], "text") if name in answered else None
        answer = field(question, "answer")
        verdict = {"question_id": question["question_id"], "score": float(text == answer)}
        verdict |= {"parsed": text, "answer": answer, "data_type": field(question, "data_type")}
        verdicts.append(verdict | {"category": types[question["question_type_id"]]})
    result, printed = {}, ""
    used = {q["question_type_id"] for q in asked.values()}
    for number in sorted(used):
        result[types[number]] = _percent(verdicts, "category", types[number])
        printed += f"{types[number]}: {result[types[number]]:.2f}%\n"
    result["Total accuracy"] = 100 * mean(v["score"] for v in verdicts)
    printed += f"Total accuracy: {result['Total accuracy']:.2f}%\n"
    for kind in ("image", "video"):
        if any(v["data_type"] == kind for v in verdicts):
            result[f"{kind} accuracy"] = _percent(verdicts, "data_type", kind)
            printed += f"{kind} accuracy: {result[f'{kind} accuracy']:.2f}%\n"
    missing = len(asked) - len(answered)
    notes = [f"{missing} questions have no prediction and count as wrong"] if missing else []
    return Scores(result, verdicts, printed, notes)


def _percent(verdicts, name: str, value) -> float:
    return 100 * mean(v["score"] for v in verdicts if v[name] == value)


def summary(verdicts: list[dict]) -> dict[str, float]:
    """Accuracy in percent: of all, and of questions about pictures."""
    found = {"accuracy": 100 * mean(v["score"] for v in verdicts)}
    return found | {"image_accuracy": _percent(verdicts, "data_type", "image")}


def submission(predictions, annotations, path, options) -> None:
    """JSON lines of question_id and prediction, in the order of the questions."""
    _, asked = _read(annotations)
    answered = by_key(predictions, _id)
    check_complete(asked, answered, annotations, predictions)
    rows = [
        {"question_id": q["question_id"], "prediction": field(answered[name], "text")}
        for name, q in asked.items()
    ]
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


BENCHMARK = Benchmark(
    name="seed",
    title="SEED-Bench",
    questions=questions,
    score=score,
    generation=Generation(max_new_tokens=128),
    needs="SEED-Bench.json",
    summary=summary,
    submission=submission,
    breakdowns=("category", "data_type"),
)
