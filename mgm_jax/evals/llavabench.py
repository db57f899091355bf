"""LLaVA-Bench (in the wild): a judge's review of two answers, summarised (MGM_SPEC 8.10).

The folder of annotations holds questions.jsonl, context.jsonl, the reference answers
(answers_gpt4.jsonl) and rule.json ({category: {role, prompt}}), as LLaVA publishes them.
"""

from __future__ import annotations

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
    read_records,
)
from mgm_jax.evals.vqa_questions import questions

SYSTEM = (
    "You are a helpful and precise assistant for checking the quality of the answer."  # MGM_SPEC
)
CATEGORY = "llava_bench_"


def review_prompt(question: Record, context: Record, answers: list[str], rule: Record) -> str:
    """What the judge reads: context, question, both answers, the rule."""
    caption = field(context, "caption", (str, list))
    caption = "\n".join(caption) if isinstance(caption, list) else caption
    role = field(rule, "role")
    parts = [f"[Context]\n{caption}", f"[Question]\n{field(question, 'text')}"]
    for i, answer in enumerate(answers, 1):
        parts += [f"[{role} {i}]\n{answer}", f"[End of {role} {i}]"]
    return "\n\n".join([*parts, f"[System]\n{field(rule, 'prompt')}"]) + "\n\n"


def parse_scores(review: str) -> list[float]:
    """The two numbers on a review's first line; [-1, -1] if it has others."""
    parts = review.split("\n")[0].replace(",", " ").split(" ")
    try:
        return [float(p) for p in parts] if len(parts) == 2 else [-1, -1]
    except ValueError:
        return [-1, -1]


def score(predictions, annotations, options, judge=None) -> Scores:
    """The original's summary of reviews (lines with `tuple`), or of answers after the judge's."""
    reviewed = any("tuple" in p or "score" in p for p in predictions)
    reviews = predictions if reviewed else _review(predictions, annotations, judge)
    verdicts = []
    for review in reviews:
        pair = field(review, "tuple" if "tuple" in review else "score", list)
        if len(pair) != 2 or not all(isinstance(s, int | float) for s in pair):
            raise ValueError(f"{review.where}: field 'tuple' is {pair}, expected two numbers")
        verdict = {"question_id": question_id(review), "score": max(pair[1], 0) / 10}
        verdict |= {"parsed": pair, "category": review.get("category"), "answer": None}
        verdicts.append(verdict | {"reply": review.get("content")})
    groups = {"all": [v["parsed"] for v in verdicts]}
    for v in verdicts:
        if v["category"] is not None:
            groups.setdefault(v["category"], []).append(v["parsed"])
    result, printed = {}, ""
    for name, pairs in sorted(groups.items()):
        first, second = (round(mean(p[i] for p in pairs), 3) for i in (0, 1))
        ratio = round(second / first * 100, 1) if first else 0.0
        result[name] = [ratio, round(first * 10, 1), round(second * 10, 1)]
        printed += f"{name} {' '.join(map(str, result[name]))}\n"
    result |= {} if reviewed else {"judge": judge_name(judge)}
    unread = sum(v["parsed"] == [-1, -1] for v in verdicts)
    notes = [f"{unread} reviews give no two scores and count as -1, -1"] if unread else []
    return Scores(result, verdicts, printed, notes)


def _review(predictions, annotations, judge) -> list[Record]:
    if annotations is None:
        raise ValueError("llavabench needs --annotations: the folder of questions.jsonl")
    folder = epath.Path(annotations)
    asked = by_key(read_records(folder / "questions.jsonl"), question_id)
    answered = by_key(predictions, question_id)
    check_known(predictions, asked, question_id, folder / "questions.jsonl")
    check_complete(asked, answered, folder, predictions)
    if judge is None:
        raise ValueError(
            "llavabench is reviewed by a language model and no judge is given; lines of reviews, "
            "which have a field 'tuple', are scored without one"
        )
    contexts = by_key(read_records(folder / "context.jsonl"), lambda r: field(r, "image"))
    references = by_key(read_records(folder / "answers_gpt4.jsonl"), question_id)
    check_complete(asked, references, folder, folder / "answers_gpt4.jsonl")
    rules = {
        k: Record(v, f"{folder}/rule.json") for k, v in read_mapping(folder / "rule.json").items()
    }
    asks, categories = [], {}
    for name, question in asked.items():
        category, image = CATEGORY + field(question, "category"), field(question, "image")
        for kind, known, wanted in (("rule", rules, category), ("context", contexts, image)):
            if wanted not in known:
                raise ValueError(f"{question.where}: no {kind} for {wanted!r} in {folder}")
        answers = [field(references[name], "text"), field(answered[name], "text")]
        prompt = review_prompt(question, contexts[image], answers, rules[category])
        asks.append(Ask(prompt, name, SYSTEM, 0.2, 1024, readable=_has_scores))
        categories[name] = category
    reviews = []
    for (name, category), reply in zip(categories.items(), ask_judge(judge, asks), strict=True):
        review = {"question_id": name, "category": category, "content": reply}
        reviews.append(Record(review | {"tuple": parse_scores(reply)}, "the judge"))
    return reviews


def _has_scores(review: str) -> bool:
    return parse_scores(review) != [-1, -1]


def summary(verdicts: list[dict]) -> dict[str, float]:
    """The answers' score in percent of the reference's."""
    first, second = (mean(v["parsed"][i] for v in verdicts) for i in (0, 1))
    return {"ratio": 100 * second / first if first else 0.0}


BENCHMARK = Benchmark(
    name="llavabench",
    title="LLaVA-Bench (in the wild)",
    questions=questions,
    score=score,
    asks_judge=True,
    generation=Generation(max_new_tokens=1024),
    needs=None,
    summary=summary,
    needs_judge=True,
)
