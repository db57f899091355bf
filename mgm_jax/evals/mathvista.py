"""MathVista testmini: extraction of the answer by rule or judge, and its score (MGM_SPEC 8.6)."""

from __future__ import annotations

import re

from mgm_jax.evals.common import (
    Ask,
    Benchmark,
    Generation,
    Question,
    Scores,
    ask_judge,
    judge_name,
)
from mgm_jax.evals.files import (
    Record,
    by_key,
    check_known,
    field,
    picture,
    read_mapping,
    read_records,
    write_json,
)
from mgm_jax.evals.mathvista_prompt import extraction_prompt
from mgm_jax.evals.published import published
from mgm_jax.evals.vqa_text import edit_distance

HINT = "Hint: Please answer the question {}, at the end."
VALUE = "requiring {} and provide the final {}, e.g., {}"
DECIMAL = "a floating-point number with {} decimal place"
HINTS = {
    "multi_choice": "and provide the correct option letter, e.g., A, B, C, D",
    "integer": VALUE.format("an integer answer", "value", "1, 2, 3"),
    ("float", 1): VALUE.format(DECIMAL.format("one"), "value", "1.2, 1.3, 1.4"),
    ("float", 2): VALUE.format(DECIMAL.format("two") + "s", "value", "1.23, 1.34, 1.45"),
    "list": VALUE.format("a Python list as an answer", "list", "[1, 2, 3], [1.2, 1.3, 1.4]"),
}
BREAKDOWN = "question_type answer_type language source category task context grade skills".split()


def query(problem: Record) -> str:
    """The question as it is asked: hint, question with its unit, choices."""
    kind = field(problem, "question_type")
    kind = kind if kind == "multi_choice" else field(problem, "answer_type")
    kind = (kind, problem.get("precision")) if kind == "float" else kind
    if kind not in HINTS:
        raise ValueError(
            f"{problem.where}: no hint for answers of kind {kind!r}, known: {[*HINTS]}"
        )
    unit = f" (Unit: {problem['unit']})" if problem.get("unit") else ""
    lines = [HINT.format(HINTS[kind]), f"Question: {field(problem, 'question')}{unit}"]
    if problem.get("choices"):
        lines.append("Choices:")
        lines += [f"({chr(ord('A') + i)}) {c}" for i, c in enumerate(problem["choices"])]
    return "\n".join(lines)


def questions(path, images, options):
    """Problems of `testmini.json`; the picture's path stands in each."""
    for pid, problem in _problems(path).items():
        shown = picture(images, field(problem, "image"), problem.where)
        yield Question(pid, query(problem), (shown,), {"problem": dict(problem)})


def line(question: Question, text: str, model_id: str) -> dict:
    """The whole problem with its query and the response."""
    return question.meta["problem"] | {
        "pid": question.id,
        "query": question.prompt,
        "response": text,
    }


def read(path) -> list[Record]:
    """Predictions: JSON lines, or one object {pid: ...} as the extraction writes it."""
    records = read_records(path)
    if len(records) != 1 or "pid" in records[0]:
        return records
    found = []
    for pid, value in records[0].items():
        if not isinstance(value, dict):
            raise ValueError(f"{path}, {pid}: found {value!r}, expected a JSON object")
        found.append(Record(value | {"pid": pid}, path, f", {pid}"))
    return found


def problem_id(record: Record) -> str:
    """The key of a prediction."""
    return field(record, "pid")


def extract(problem: Record, quick_extract: bool) -> str | None:
    """The answer that stands in a response by itself, or None: it has to be extracted."""
    response, choices = field(problem, "response"), problem.get("choices") or []
    kind = problem.get("answer_type")
    if response == "" or (problem.get("question_type") == "multi_choice" and response in choices):
        return response
    for name, number in (("integer", int), ("float", float)):
        if kind == name:
            try:
                return str(number(response))
            except ValueError:
                pass
    return quick_answer(response) if quick_extract else None


def quick_answer(response: str) -> str | None:
    """What stands in `The answer is "...".`"""
    found = re.search(r'The answer is "(.*)"\.', response)
    return found and found[1]


def find_answers(problems: list[Record], options, judge) -> dict[str, int]:
    """Sets `extraction` and `found_by` (rule, judge, fallback) of the problems that have no
    extraction yet; returns how many each found."""
    todo = [p for p in problems if "extraction" not in p]
    left = []
    for problem in todo:
        problem |= {"extraction": extract(problem, options["quick_extract"]), "found_by": "rule"}
        if problem["extraction"] is None:
            left.append(problem)
    if left and judge is not None:
        found, by = ask_judge(judge, [_ask(p) for p in left]), "judge"
    else:
        found, by = [_fallback(p) for p in left], "fallback"
    for problem, answer in zip(left, found, strict=True):
        problem |= {"extraction": answer, "found_by": by}
    finders = [p["found_by"] for p in todo]
    return {by: finders.count(by) for by in ("rule", "judge", "fallback")}


def _ask(problem: Record) -> Ask:
    prompt = extraction_prompt(field(problem, "query"), field(problem, "response"))
    return Ask(prompt, field(problem, "pid"), cut=True)


def _fallback(problem: Record) -> str:
    """Without a judge: the quick rule, the last number or list, or the whole response. Not
    MathVista's."""
    response, kind = problem["response"], problem.get("answer_type")
    if (quick := quick_answer(response)) is not None:
        return quick
    patterns = {"integer": r"-?\d+(?:\.\d+)?", "float": r"-?\d+(?:\.\d+)?", "list": r"\[[^\]]*\]"}
    if kind not in patterns:
        return response
    found = re.findall(patterns[kind], response.replace(",", "") if kind != "list" else response)
    return found[-1] if found else response


def normalize(extraction, problem: Record) -> str | None:
    """The extracted answer in the form of the true one; None if it has none."""
    kind = field(problem, "answer_type")
    if field(problem, "question_type") == "multi_choice":
        choices = field(problem, "choices", list)
        if not choices:
            raise ValueError(f"{problem.where}: field 'choices' is empty")
        text = extraction.strip() if isinstance(extraction, str) else str(extraction)
        letter = re.findall(r"\(([a-zA-Z])\)", text)
        text = letter[0].upper() if letter else text
        letters = [chr(ord("A") + i) for i in range(len(choices))]
        if text in letters:
            return choices[letters.index(text)]
        return min(choices, key=lambda choice: edit_distance(text, choice))
    try:
        if kind == "integer":
            return str(int(float(extraction)))
        if kind == "float":
            return str(round(float(extraction), problem.get("precision")))
    except (ValueError, TypeError, OverflowError):
        return None
    return str(extraction) if kind == "list" else extraction


def score(predictions, annotations, options, judge=None) -> Scores:
    """The original's score file: percentages are text with two decimals."""
    truth = _problems(annotations) if annotations is not None else {}
    answered = by_key(predictions, problem_id)
    if truth:
        check_known(predictions, truth, problem_id, annotations)
    problems = [
        Record({**truth.get(pid, {}), **given}, given.source, given.place)
        for pid, given in answered.items()
    ]
    found_by = find_answers(problems, options, judge)
    verdicts = []
    for pid, problem in zip(answered, problems, strict=True):
        parsed, answer = normalize(problem["extraction"], problem), problem.get("answer")
        if "answer" not in problem:
            raise ValueError(
                f"{problem.where}: no field 'answer'; give --annotations testmini.json"
            )
        verdict = {"question_id": pid, "score": float(parsed == answer), "parsed": parsed}
        verdict |= {
            "answer": answer,
            "extraction": problem["extraction"],
            "found_by": problem.get("found_by"),
        }
        verdicts.append(verdict | _groups(problem))
    right, total = sum(int(v["score"]) for v in verdicts), len(verdicts)
    percent = str(round(right / total * 100, 2))
    result = {"average": {"accuracy": percent, "correct": right, "total": total}}
    result |= {name: _breakdown(verdicts, name) for name in BREAKDOWN}
    if options["random_file"]:
        _add_gain(result, read_mapping(options["random_file"]), options["random_file"])
    result |= {"found_by": found_by} | ({"judge": judge_name(judge)} if found_by["judge"] else {})
    printed = f"Correct: {right}, Total: {total}, Accuracy: {percent}%\n"
    missing = len(truth.keys() - answered.keys())
    notes = [f"{missing} problems have no prediction"] if missing else []
    if found_by["fallback"]:
        notes.append(
            f"{found_by['fallback']} answers were extracted by rules of our own, for want of a "
            "judge: not MathVista's number"
        )
    return Scores(result, verdicts, printed, notes)


def _groups(problem: Record) -> dict:
    """What the problem is of, for the tables; most of it stands in `metadata`."""
    inside = {**problem, **field(problem, "metadata", dict)}
    lacking = [name for name in BREAKDOWN if name not in inside]
    if lacking:
        raise ValueError(f"{problem.where}: field 'metadata' has no {lacking[0]!r}")
    return {name: inside[name] for name in BREAKDOWN}


def _breakdown(verdicts: list[dict], name: str) -> dict[str, dict]:
    groups: dict[str, list[float]] = {}
    for v in verdicts:
        for value in dict.fromkeys(v[name]) if name == "skills" else [v[name]]:
            groups.setdefault(value, []).append(v["score"])
    table = {
        value: {
            "accuracy": f"{sum(scores) / len(scores) * 100:.2f}",
            "correct": int(sum(scores)),
            "total": len(scores),
        }
        for value, scores in groups.items()
    }
    return dict(sorted(table.items(), key=lambda item: float(item[1]["accuracy"]), reverse=True))


def _add_gain(result: dict, random: dict, source) -> None:
    """`acc_gain`: points above the score file of random guesses; text but in the average."""
    for name, table in result.items():
        for group, row in {"": table}.items() if name == "average" else table.items():
            try:
                other = random[name] if name == "average" else random[name][group]
                gain = round(float(row["accuracy"]) - float(other["accuracy"]), 2)
            except KeyError as error:
                raise ValueError(f"{source}: no {error} under {name!r}") from None
            row["acc_gain"] = gain if name == "average" else str(gain)


def _problems(path) -> dict[str, Record]:
    return {pid: Record(p, path, f", {pid}") for pid, p in read_mapping(path).items()}


def submission(predictions, annotations, path, options) -> None:
    """One object {pid: problem with extraction, prediction and true_false}, as the original's."""
    scored = score(predictions, annotations, options).verdicts
    found = {}
    for record, v in zip(predictions, scored, strict=True):
        found[v["question_id"]] = record | {
            "answer": v["answer"],
            "extraction": v["extraction"],
            "prediction": v["parsed"],
            "true_false": bool(v["score"]),
        }
    write_json(path, found, indent=2)


BENCHMARK = Benchmark(
    name="mathvista",
    title="MathVista testmini",
    questions=questions,
    score=score,
    asks_judge=True,
    breakdowns=tuple(BREAKDOWN),
    generation=Generation(max_new_tokens=1024),
    needs=None,
    expected=published(accuracy="mathvista"),
    tolerance={"accuracy": 1.5},
    line=line,
    key=problem_id,
    read=read,
    submission=submission,
    options={"quick_extract": False, "random_file": ""},
)
