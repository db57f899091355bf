"""Your own questions: lines of JSON with the answer in them, and five ways to compare.

    {"question_id": 1, "image": "a.jpg", "text": "What is the total?", "answers": ["12.50"],
     "metric": "relaxed", "category": "receipts"}

`answer` is one text, `answers` several that are all right. `image` may be one name, a list, or
missing. `metric` of a line goes before the option. With `choice`, `options` is the list of options
and the answer a letter or an option's text.
"""

from __future__ import annotations

from mgm_jax.evals.choice import LETTERS, option_letter
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
    describe,
    field,
    picture,
    read_records,
)
from mgm_jax.evals.vqa_text import anls


def plain(text: str) -> str:
    """Text without spaces around it, a period at its end, and capitals."""
    return text.strip().removesuffix(".").casefold()


def exact(text: str, answer: str) -> float:
    """1 for equal plain texts."""
    return float(plain(text) == plain(answer))


def relaxed(text: str, answer: str) -> float:
    """ChartQA's: a number within 5 % of the answer's, else equal plain texts."""
    number, truth = _number(text), _number(answer)
    if number is None or truth is None:
        return exact(text, answer)
    return float(abs(number - truth) <= 0.05 * abs(truth))


def contains(text: str, answer: str) -> float:
    """1 if the plain answer stands somewhere in the reply."""
    return float(plain(answer) in text.casefold())


METRICS = {"exact": exact, "relaxed": relaxed, "anls": anls, "contains": contains, "choice": None}


def _number(text: str) -> float | None:
    text = plain(text).replace(",", "").strip("$€£ ")
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None


def questions(path, images, options):
    """Lines of the file, `text` as it is."""
    for record in read_records(path):
        names = record.get("image", [])
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list):
            raise ValueError(f"{record.where}: field 'image' is {describe(names)}")
        shown = tuple(picture(images, name, record.where) for name in names)
        meta = {"category": record.get("category")}
        yield Question(question_id(record), field(record, "text"), shown, meta)


def score(predictions, annotations, options, judge=None) -> Scores:
    """The mean over lines of the best score among a line's answers."""
    truth = by_key(read_records(annotations), question_id)
    answered = by_key(predictions, question_id)
    check_known(predictions, truth, question_id, annotations)
    check_complete(truth, answered, annotations, predictions)
    verdicts = []
    for name, record in truth.items():
        answers = (
            field(record, "answers", list) if "answers" in record else [field(record, "answer")]
        )
        if not answers or not all(isinstance(a, str) for a in answers):
            raise ValueError(f"{record.where}: field 'answers' is {describe(answers)}")
        metric = record.get("metric", options["metric"])
        if metric not in METRICS:
            raise ValueError(f"{record.where}: metric {metric!r}, expected {', '.join(METRICS)}")
        parsed = text = field(answered[name], "text")
        if metric == "choice":
            parsed, right = _choose(record, text, answers)
        else:
            right = max(METRICS[metric](text, a) for a in answers)
        verdict = {"question_id": name, "score": right, "parsed": parsed, "answer": answers[0]}
        verdicts.append(verdict | {"category": record.get("category"), "metric": metric})
    result = {"accuracy": mean(v["score"] for v in verdicts), "samples": len(verdicts)}
    for column in ("category", "metric"):
        result[column] = mean_scores(verdicts, column)
    return Scores(result, verdicts, f"Accuracy: {100 * result['accuracy']:.2f}%\n")


def _choose(record: Record, text: str, answers: list[str]) -> tuple[str | None, float]:
    choices = field(record, "options", list)
    letters = LETTERS[: len(choices)]
    right = {a if a in letters else _letter_of(record, choices, a) for a in answers}
    letter = option_letter(text, choices)
    return letter, float(letter in right)


def _letter_of(record: Record, choices: list[str], answer: str) -> str:
    if answer not in choices:
        raise ValueError(f"{record.where}: answer {describe(answer)} is no option of {choices}")
    return LETTERS[choices.index(answer)]


BENCHMARK = Benchmark(
    name="jsonl",
    title="Your own questions",
    questions=questions,
    score=score,
    generation=Generation(max_new_tokens=128),
    needs="your file of questions and answers (JSON lines)",
    options={"metric": "exact"},
    breakdowns=("category", "metric"),
)
