"""MMMU validation and test: 30 subjects, rule parser, the original's tables (MGM_SPEC 8.5)."""

from __future__ import annotations

import ast
from random import Random

from etils import epath

from mgm_jax.evals.common import Benchmark, Generation, Question, Scores, grouped, mean
from mgm_jax.evals.files import (
    Record,
    by_key,
    check_known,
    describe,
    field,
    read_records,
    write_json,
)
from mgm_jax.evals.mmmu_parse import choice_right, open_right, parse_choice, parse_open
from mgm_jax.evals.mmmu_tables import SUBJECTS, overview, printed_table, subject_of
from mgm_jax.evals.published import published

CHOICE = "multiple-choice"
CHOICE_SUFFIX = "Answer with the option's letter from the given choices directly."
OPEN_SUFFIX = "Answer the question using a single word or phrase."
HIDDEN = "?"  # the answers of the test split
SEED = 42  # of the letters that stand for unreadable replies, as in the original


def prompt(sample: dict) -> tuple[str, dict[str, str]]:
    """The question as it is asked, and letter -> option text. `options` holds a Python list."""
    try:
        options = ast.literal_eval(sample["options"])
    except (ValueError, SyntaxError):
        raise ValueError(
            f"{sample['id']}: options is {describe(sample['options'])}, expected a list as text"
        ) from None
    if sample["question_type"] != CHOICE:
        return f"{sample['question']}\n{OPEN_SUFFIX}", {}
    texts = {chr(ord("A") + i): option for i, option in enumerate(options)}
    listed = "".join(f"({letter}) {text}\n" for letter, text in texts.items())
    return f"{sample['question']}\n{listed}\n{CHOICE_SUFFIX}", texts


def questions(path, images, options):
    """Samples of a folder like the data set's on the hub: <Subject>/<split>-*.parquet.

    Pictures lie inside; of several only the first is shown, as in the original.
    """
    for subject in options["subjects"].split() or SUBJECTS:
        for sample in _samples(epath.Path(path) / subject, options["split"]):
            text, texts = prompt(sample)
            meta = {
                "category": subject,
                "question_type": sample["question_type"],
                "answer": sample["answer"],
                "index2ans": texts,
            }
            shown = sample["image_1"] or {}
            if not shown.get("bytes"):
                raise ValueError(f"{sample['id']}: column 'image_1' holds no picture")
            yield Question(sample["id"], text, (shown["bytes"],), meta)


def _samples(folder, split: str):
    try:
        from pyarrow import parquet
    except ImportError:
        raise ValueError("parquet files need pyarrow: pip install 'mgm-jax[evals]'") from None
    files = sorted(folder.glob(f"{split}-*.parquet"))
    if not files:
        raise FileNotFoundError(f"{folder}: found no {split}-*.parquet")
    for file in files:
        with file.open("rb") as opened:
            yield from parquet.read_table(opened).to_pylist()


def line(question: Question, text: str, model_id: str) -> dict:
    """As the original's runner writes it, but for `parsed_pred`, which scoring adds."""
    found = {"id": question.id, "question_type": question.meta["question_type"]}
    found |= {"answer": question.meta["answer"], "response": text}
    texts = dict(question.meta["index2ans"])
    return found | ({"index2ans": texts} if texts else {})


def read(path) -> list[Record]:
    """Predictions: JSON lines, a flat {id: answer}, or <Subject>/output.json in a folder."""
    path = epath.Path(path)
    if path.is_dir():
        files = [path / s / "output.json" for s in SUBJECTS]
        files = [f for f in files if f.exists()]
        if not files:
            raise FileNotFoundError(f"{path}: found no <Subject>/output.json, as in {SUBJECTS[0]}/")
        return [record for file in files for record in read_records(file)]
    records = read_records(path)
    if len(records) != 1 or "id" in records[0]:
        return records
    return [
        Record({"id": name, "flat": value}, path, f", {name}") for name, value in records[0].items()
    ]


def sample_id(record: Record) -> str:
    """The key of a prediction."""
    return field(record, "id")


def score(predictions, annotations, options, judge=None) -> Scores:
    """All of the original's tables, from any of its kinds of files.

    Replies that cannot be read count as a letter drawn at random, in the order of the file.
    """
    by_key(predictions, sample_id)
    answers = None if annotations is None else read_answers(annotations)
    if answers is not None:
        check_known(predictions, answers, sample_id, annotations)
    random, verdicts = Random(SEED), []
    for record in predictions:
        kind, answer = _kind_and_answer(record, answers)
        parsed, drawn = _parsed(record, kind, random)
        right = choice_right(answer, parsed) if kind == CHOICE else open_right(answer, parsed)
        verdict = {"question_id": record["id"], "score": float(right), "parsed": parsed}
        verdict |= {"answer": answer, "category": subject_of(record), "drawn": drawn}
        verdicts.append(verdict)
    if all(v["answer"] == HIDDEN for v in verdicts):
        raise ValueError(
            f"{predictions[0].source}: the answers of this split are hidden; write the file for "
            "its server with --submission FILE.json"
        )
    table = overview(verdicts)
    judged = {v["question_id"]: "Correct" if v["score"] else "Wrong" for v in verdicts}
    metric = {"acc": mean(v["score"] for v in verdicts), "num_example": len(verdicts)}
    result = table | {"subjects": _subjects(verdicts), "metric_dict": metric}
    if "flat" not in predictions[0]:  # the original gives verdicts for replies, not for letters
        result |= judged
    drawn, missing = sum(v["drawn"] for v in verdicts), len(answers or judged) - len(verdicts)
    notes = [f"{drawn} replies could not be read and count as random letters"] if drawn else []
    notes += [f"{missing} questions have no prediction"] if missing else []
    return Scores(result, verdicts, printed_table(table), notes)


def read_answers(path) -> dict[str, dict]:
    """id -> {question_type, ground_truth} of `answer_dict_val.json`, or of lines with answers."""
    records = read_records(path)
    if len(records) != 1 or "id" in records[0]:
        return {
            name: {"question_type": field(r, "question_type"), "ground_truth": r.get("answer")}
            for name, r in by_key(records, sample_id).items()
        }
    answers = dict(records[0])
    for name, value in answers.items():
        if not isinstance(value, dict) or not {"question_type", "ground_truth"} <= value.keys():
            raise ValueError(
                f"{path}, {name}: found {describe(value)}, expected question_type and ground_truth"
            )
    return answers


def _kind_and_answer(record: Record, answers) -> tuple[str, str | list[str]]:
    if answers is not None:
        known = answers[record["id"]]
        return known["question_type"], known["ground_truth"]
    if "flat" in record:
        raise ValueError(f"{record.where}: answers alone need --annotations answer_dict_val.json")
    return field(record, "question_type"), field(record, "answer", (str, list))


def _parsed(record: Record, kind: str, random: Random):
    """(what the prediction means, whether that was drawn at random)."""
    if "flat" in record:
        flat = field(record, "flat")
        return (flat if kind == CHOICE else parse_open(flat)), False
    if "parsed_pred" in record:
        return field(record, "parsed_pred", str if kind == CHOICE else list), False
    response = field(record, "response")
    if kind != CHOICE:
        return parse_open(response), False
    texts = field(record, "index2ans", dict)
    choices = record.get("all_choices") or list(texts)
    parsed = parse_choice(response, choices, texts)
    return (random.choice(choices), True) if parsed is None else (parsed, False)


def _subjects(verdicts) -> dict[str, dict]:
    return {
        subject: {"acc": mean(v["score"] for v in inside), "num_example": len(inside)}
        for subject, inside in grouped(verdicts, "category").items()
    }


def submission(predictions, annotations, path, options) -> None:
    """{id: letter or text} for the test server; of an open reply's parts the first, as text."""
    random, found = Random(SEED), {}
    for record in by_key(predictions, sample_id).values():
        parsed, _ = _parsed(record, field(record, "question_type"), random)
        found[record["id"]] = str(parsed[0]) if isinstance(parsed, list) else parsed
    write_json(path, found)


EXPECTED = published(accuracy="mmmu_val") | {
    f"{model} test": numbers for model, numbers in published(accuracy="mmmu_test").items()
}
BENCHMARK = Benchmark(
    name="mmmu",
    title="MMMU",
    questions=questions,
    score=score,
    generation=Generation(max_new_tokens=128),
    faithful=Generation(max_new_tokens=128, temperature=1.0, num_beams=5, top_k=50, seed=SEED),
    needs=None,
    expected=EXPECTED,
    tolerance={"accuracy": 1.6},
    postprocess=lambda text: text.strip("\n"),
    line=line,
    key=sample_id,
    read=read,
    submission=submission,
    options={"split": "validation", "subjects": ""},
    folders=True,
)
