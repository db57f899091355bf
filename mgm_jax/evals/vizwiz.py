"""VizWiz: soft accuracy of ten answers on val, the server's file on test.

The original has no VizWiz (MGM_SPEC 8.1); files and prompt are LLaVA's, answers are compared as in
TextVQA.
"""

from __future__ import annotations

from collections import Counter

from mgm_jax.evals.common import (
    Benchmark,
    Generation,
    Question,
    Scores,
    mean,
    mean_scores,
    question_id,
)
from mgm_jax.evals.files import (
    Record,
    by_key,
    check_complete,
    check_known,
    field,
    picture,
    read_records,
    write_json,
)
from mgm_jax.evals.vqa_text import process, soft_scores

SUFFIX = (
    "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
    "\nAnswer the question using a single word or phrase."
)


def _key(record: Record) -> str:
    """Questions are told apart by their picture, in all of VizWiz's files."""
    return field(record, "image") if "image" in record else str(question_id(record))


def questions(path, images, options):
    """VizWiz's list of image and question, or LLaVA's lines, whose text has the suffix already."""
    for record in read_records(path):
        name = field(record, "image")
        text = field(record, "text") if "text" in record else field(record, "question") + SUFFIX
        yield Question(
            id=record.get("question_id", name),
            prompt=text,
            images=(picture(images, name, record.where),),
            meta={"category": record.get("answer_type")},
        )


def score(predictions, annotations, options, judge=None) -> Scores:
    """Mean soft accuracy over `val.json`, whose answers are ten {answer, ...}."""
    truth = by_key(read_records(annotations), lambda r: field(r, "image"))
    if any("answers" not in record for record in truth.values()):
        raise ValueError(
            f"{annotations}: no field 'answers': this split is scored by its server; write its "
            "file with --submission FILE.json"
        )
    answered = by_key(predictions, _key)
    check_known(predictions, truth, _key, annotations)
    check_complete(truth, answered, annotations, predictions)
    verdicts = []
    for name, record in truth.items():
        listed = field(record, "answers", list)
        answers = [a["answer"] if isinstance(a, dict) else a for a in listed]
        if len(answers) != 10:
            raise ValueError(f"{record.where}: {len(answers)} answers, expected 10")
        parsed = process(field(answered[name], "text"))
        verdict = {"question_id": name, "score": soft_scores(answers).get(parsed, 0.0)}
        verdict |= {"parsed": parsed, "answer": Counter(answers).most_common(1)[0][0]}
        verdicts.append(verdict | {"category": record.get("answer_type")})
    result = {"accuracy": mean(v["score"] for v in verdicts), "samples": len(verdicts)}
    result["answer_type"] = mean_scores(verdicts, "category")
    return Scores(result, verdicts, f"Accuracy: {100 * result['accuracy']:.2f}%\n")


def submission(predictions, annotations, path, options) -> None:
    """[{image, answer}] with processed answers, for every question of the split."""
    asked = by_key(read_records(annotations), lambda r: r.get("question_id", field(r, "image")))
    answered = by_key(predictions, question_id)
    check_known(predictions, asked, question_id, annotations)
    check_complete(asked, answered, annotations, predictions)
    write_json(
        path,
        [
            {"image": field(record, "image"), "answer": process(field(answered[name], "text"))}
            for name, record in asked.items()
        ],
    )


BENCHMARK = Benchmark(
    name="vizwiz",
    title="VizWiz",
    questions=questions,
    score=score,
    generation=Generation(max_new_tokens=128),
    needs="val.json (or, for a submission, the question file)",
    submission=submission,
)
