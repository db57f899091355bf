"""ScienceQA, with its number over questions that have a picture (MGM_SPEC 8.7)."""

from __future__ import annotations

import re

from etils import epath

from mgm_jax.evals.common import (
    Benchmark,
    Generation,
    Question,
    Scores,
    mean,
    question_id,
    vqa_line,
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

LETTERS = ["A", "B", "C", "D", "E"]
SUFFIX = "Answer with the option's letter from the given choices directly."
FAILED = "FAILED"


def questions(path, images, options):
    """Records of `llava_test_CQM-A.json`; the stored prompt says `<image>` where there is one."""
    for record in read_records(path):
        turns = field(record, "conversations", list)
        text = Record(turns[0], record.where, ", conversations[0]") if turns else record
        prompt = field(text, "value").replace("<image>", "").strip()
        prompt += f"\n{SUFFIX}" if options["single_pred_prompt"] else ""
        shown = [field(record, "image")] if "image" in record else []
        paths = tuple(picture(images, name, record.where) for name in shown)
        yield Question(field(record, "id", (str, int)), prompt, paths)


def line(question: Question, text: str, model_id: str) -> dict:
    """A VQA line whose prompt begins with `<image>` if there is a picture: the scorer looks."""
    found = vqa_line(question, text, model_id)
    return found | {"prompt": "<image>\n" * bool(question.images) + question.prompt}


def parse(text: str) -> str:
    """The letter that a reply gives, or FAILED. "The answer is B" needs one more character."""
    if text in LETTERS:
        return text
    if len(text) >= 3 and text[0] in LETTERS and text[1:3] == ". ":
        return text[0]
    found = re.findall(r"The answer is ([A-Z]).", text)
    return found[0] if len(found) == 1 else FAILED


def score(predictions, annotations, options, judge=None) -> Scores:
    """The original's result file; a question without a prediction counts as FAILED."""
    problems, ids = _problems(annotations, options["split"])
    answered = by_key(predictions, question_id)
    check_known(predictions, problems, question_id, annotations)
    verdicts, indices, outputs = [], {}, {}
    for name in ids:
        problem = Record(problems[name], annotations, f", {name}")
        choices, answer = field(problem, "choices", list), field(problem, "answer", int)
        line = answered.get(name)
        text, prompt = (field(line, "text"), field(line, "prompt")) if line else (FAILED, "Unknown")
        parsed = parse(text)
        index = LETTERS.index(parsed) if parsed in LETTERS[: len(choices)] else -1
        indices[name], outputs[name] = index, text
        verdict = {"question_id": name, "score": float(index == answer), "parsed": parsed}
        verdict |= {"answer": LETTERS[answer], "prompt": prompt, "pred": text}
        verdicts.append(verdict | {"is_multimodal": "<image>" in prompt})
    right, total = sum(int(v["score"]) for v in verdicts), len(verdicts)
    shown = [v["score"] for v in verdicts if v["is_multimodal"]]
    result = {"acc": right / total * 100, "correct": right, "count": total}
    result |= {"results": indices, "outputs": outputs}
    result |= {
        "img_acc": mean(shown) * 100,
        "img_correct": int(sum(shown)),
        "img_count": len(shown),
    }
    missing = [n for n in ids if n not in answered]
    left_out = len(answered.keys() - set(ids))
    notes = [f"{len(missing)} questions have no prediction and count as wrong"] if missing else []
    notes += [f"{left_out} predictions are of another split"] if left_out else []
    image = f", IMG-Accuracy: {result['img_acc']:.2f}%" if shown else ""
    printed = f"Total: {total}, Correct: {right}, Accuracy: {result['acc']:.2f}%{image}\n"
    return Scores(result, verdicts, printed, notes)


def summary(verdicts: list[dict]) -> dict[str, float]:
    """Accuracy in percent: over all questions, and over those with a picture."""
    shown = [v["score"] for v in verdicts if v["is_multimodal"]]
    return {
        "accuracy": 100.0 * mean(v["score"] for v in verdicts),
        "img_accuracy": 100.0 * mean(shown),
    }


def submission(predictions, annotations, path, options) -> None:
    """The original's `--output-file`: readings of all questions, under correct and incorrect."""
    found: dict[str, list] = {"correct": [], "incorrect": []}
    for v in score(predictions, annotations, options).verdicts:
        found["correct" if v["score"] else "incorrect"].append(
            {
                "question_id": v["question_id"],
                "parsed_ans": v["parsed"],
                "ground_truth": v["answer"],
                "question": v["prompt"],
                "pred": v["pred"],
                "is_multimodal": v["is_multimodal"],
            }
        )
    write_json(path, found, indent=2)


def _problems(path, split: str) -> tuple[dict, list]:
    """problems.json, and the ids of a split of pid_splits.json beside it."""
    folder = epath.Path(path)
    folder = folder if folder.is_dir() else folder.parent
    splits = read_mapping(folder / "pid_splits.json")
    if split not in splits:
        raise ValueError(f"{folder / 'pid_splits.json'}: no split {split!r}, found {[*splits]}")
    problems = read_mapping(folder / "problems.json")
    unknown = [name for name in splits[split] if name not in problems]
    if unknown or not splits[split]:
        raise ValueError(f"{folder / 'problems.json'}: no problem {unknown[:3]} of split {split!r}")
    return problems, splits[split]


BENCHMARK = Benchmark(
    name="scienceqa",
    title="ScienceQA",
    questions=questions,
    score=score,
    generation=Generation(max_new_tokens=1024),
    needs="the folder of problems.json and pid_splits.json",
    summary=summary,
    line=line,
    submission=submission,
    options={"split": "test", "single_pred_prompt": True},
    breakdowns=("is_multimodal",),
)
