"""Q-Bench: multiple choice about how good a picture is (MGM_SPEC 8.10)."""

from __future__ import annotations

from mgm_jax.evals.choice import option_letter
from mgm_jax.evals.common import Benchmark, Generation, Question, Scores, mean, mean_scores
from mgm_jax.evals.files import (
    Record,
    by_key,
    check_complete,
    check_known,
    describe,
    field,
    picture,
    read_records,
)

ASK = {  # the stray backslash is the original's
    "en": "\nChoose between one of the options as follows:\n",
    "zh": "\\在下列选项中选择一个:\n",
}


def prompt(record: Record, lang: str) -> str:
    """The question, what to do, and up to four lettered candidates."""
    listed = zip("ABCD", field(record, "candidates", list), strict=False)
    return field(record, "question") + ASK[lang] + "".join(f"{x}. {text}\n" for x, text in listed)


def questions(path, images, options):
    """Records of `llvisionqa_dev.json`."""
    if options["lang"] not in ASK:
        raise ValueError(f"qbench: option lang is {options['lang']!r}, expected en or zh")
    for record in read_records(path):
        name = field(record, "img_path")
        shown = picture(images, name, record.where)
        yield Question(name, prompt(record, options["lang"]), (shown,), {"record": dict(record)})


def line(question: Question, text: str, model_id: str) -> dict:
    """The record with its response."""
    return question.meta["record"] | {"response": text}


def key(record: Record) -> tuple[str, str]:
    """A picture may have several questions."""
    return field(record, "img_path"), field(record, "question")


def score(predictions, annotations, options, judge=None) -> Scores:
    """Accuracy against `correct_ans`; replies are read by `choice.option_letter`."""
    asked = by_key(read_records(annotations), key)
    answered = by_key(predictions, key)
    check_known(predictions, asked, key, annotations)
    check_complete(asked, answered, annotations, predictions)
    verdicts = []
    for name, record in asked.items():
        candidates, answer = field(record, "candidates", list), field(record, "correct_ans")
        if answer not in candidates:
            raise ValueError(f"{record.where}: correct_ans {describe(answer)} is no candidate")
        letter = option_letter(field(answered[name], "response"), candidates)
        parsed = None if letter is None else candidates["ABCD".index(letter)]
        verdict = {"question_id": name[0], "score": float(parsed == answer), "parsed": parsed}
        verdict |= {"answer": answer, "category": str(record.get("type"))}
        verdicts.append(verdict | {"concern": str(record.get("concern")), "asked": name[1]})
    result = {"accuracy": mean(v["score"] for v in verdicts), "samples": len(verdicts)}
    for column, title in (("category", "type"), ("concern", "concern")):
        result[title] = dict(sorted(mean_scores(verdicts, column).items()))
    unread = sum(v["parsed"] is None for v in verdicts)
    notes = [f"{unread} replies name no option and count as wrong"] if unread else []
    return Scores(result, verdicts, f"Accuracy: {100 * result['accuracy']:.2f}%\n", notes)


BENCHMARK = Benchmark(
    name="qbench",
    title="Q-Bench",
    questions=questions,
    score=score,
    generation=Generation(max_new_tokens=1024),
    needs="llvisionqa_<split>.json",
    line=line,
    key=key,
    options={"lang": "en"},
    breakdowns=("category", "concern"),
)
