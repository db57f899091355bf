"""MM-Vet: the file for its evaluator, and a judge's scores by capability (MGM_SPEC 8.4).

The original only converts; the scores of its table come from MM-Vet's own GPT-4 evaluator. A number
to compare needs that evaluator's prompt: `--set prompt=FILE`, with {question}, {answer} and
{prediction} in it. Ours asks for the same in other words, and the result says so.
"""

from __future__ import annotations

import re

from etils import epath

from mgm_jax.evals.common import (
    Ask,
    Benchmark,
    Generation,
    Scores,
    ask_judge,
    judge_name,
    mean,
    question_id,
)
from mgm_jax.evals.files import (
    Record,
    by_key,
    check_complete,
    check_known,
    field,
    read_mapping,
    write_json,
)
from mgm_jax.evals.published import published
from mgm_jax.evals.vqa_questions import questions

PROMPT = """You grade an answer about a picture that you do not see.

Question: {question}
Reference: {answer}
Answer: {prediction}

Where the reference says <AND>, all of its parts must be in the answer for full marks; where it says
<OR>, any one of them will do. Give a grade from 0.0 (all wrong) over tenths to 1.0 (all right).
Reply with the number alone."""


def _key(record: Record) -> str:
    """MM-Vet's own name of a question."""
    return f"v1_{question_id(record)}".replace("v1_v1_", "v1_")


def grade(reply: str) -> float | None:
    """The grade that a judge's reply begins with or holds; None if it holds none in [0, 1]."""
    found = re.findall(r"(?<![\d.])(?:0(?:\.\d+)?|1(?:\.0+)?)(?![\d.]*\d)", reply)
    return float(found[0]) if found else None


def score(predictions, annotations, options, judge=None) -> Scores:
    """Mean grade in percent, in all and by capability. ValueError without a judge."""
    truth = {k: Record(v, annotations, f", {k}") for k, v in read_mapping(annotations).items()}
    answered = by_key(predictions, _key)
    check_known(predictions, truth, _key, annotations)
    check_complete(truth, answered, annotations, predictions)
    if judge is None:
        raise ValueError(
            "mmvet is graded by a language model and no judge is given; write the file for its "
            "evaluator with --submission FILE.json"
        )
    prompt = epath.Path(options["prompt"]).read_text() if options["prompt"] else PROMPT
    asks = []
    for name, problem in truth.items():
        parts = {part: field(problem, part) for part in ("question", "answer")}
        parts["prediction"] = field(answered[name], "text")
        filled = prompt
        for part, value in parts.items():
            filled = filled.replace("{" + part + "}", value)
        asks.append(Ask(filled, name, max_tokens=16, readable=lambda r: grade(r) is not None))
    verdicts = []
    for (name, problem), reply in zip(truth.items(), ask_judge(judge, asks), strict=True):
        given = grade(reply)
        verdict = {
            "question_id": question_id(answered[name]),
            "score": given or 0.0,
            "parsed": given,
        }
        verdict |= {"answer": problem["answer"], "category": field(problem, "capability", list)}
        verdicts.append(verdict | {"reply": reply})
    result = summary(verdicts)
    skills = dict.fromkeys(c for v in verdicts for c in v["category"])
    result["capability"] = {
        c: 100 * mean(v["score"] for v in verdicts if c in v["category"]) for c in skills
    }
    result |= {"judge_prompt": options["prompt"] or "mgm_jax", "judge": judge_name(judge)}
    ungraded = sum(v["parsed"] is None for v in verdicts)
    notes = [f"{ungraded} of the judge's replies hold no grade and count as 0"] if ungraded else []
    if not options["prompt"]:
        notes.append("graded by a prompt of our own: not the number of MM-Vet's evaluator")
    return Scores(result, verdicts, f"total: {result['total']:.1f}\n", notes)


def summary(verdicts: list[dict]) -> dict[str, float]:
    """The mean grade in percent."""
    return {"total": 100 * mean(v["score"] for v in verdicts)}


def submission(predictions, annotations, path, options) -> None:
    """{"v1_<question_id>": text} for MM-Vet's evaluator."""
    found = {f"v1_{question_id(p)}": field(p, "text") for p in predictions}
    by_key(predictions, question_id)
    write_json(path, found, indent=2)


BENCHMARK = Benchmark(
    name="mmvet",
    title="MM-Vet",
    questions=questions,
    score=score,
    asks_judge=True,
    generation=Generation(max_new_tokens=1024),
    needs="mm-vet.json",
    expected=published(total="mmvet"),
    tolerance={"total": 2.0},
    summary=summary,
    submission=submission,
    options={"prompt": ""},
    needs_judge=True,
)
