"""MMBench dev, English and Chinese: options in every order, local accuracy, the server's sheet.

Formats and prompts: MGM_SPEC 8.3. The server reads free text with a language model; the local
number reads letters by `choice.option_letter`.
"""

from __future__ import annotations

import base64
import csv
import io
import sys

from etils import epath

from mgm_jax.evals.choice import LETTERS, option_letter
from mgm_jax.evals.common import (
    Benchmark,
    Generation,
    Question,
    Scores,
    mean,
    mean_scores,
    vqa_line,
)
from mgm_jax.evals.files import Record, by_key, check_complete, check_known, describe, field
from mgm_jax.evals.published import published

SUFFIX = {
    "en": "\nAnswer with the option's letter from the given choices directly.",
    "cn": "\n请直接回答选项字母。",
}
OPTIONS = "ABCD"
DROPPED = ("hint", "category", "source", "image", "comment", "l2-category")  # from the sheet
# What pandas, which the original reads with, takes for an empty cell.
EMPTY = {"", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"}
EMPTY |= {"<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}


def read_rows(path) -> list[Record]:
    """Rows of the TSV file; `index` is a number, empty cells are None."""
    path = epath.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: this file does not exist")
    csv.field_size_limit(sys.maxsize)  # pictures stand in cells
    with path.open("r") as file:
        reader = csv.DictReader(io.StringIO(file.read(), newline=""), dialect="excel-tab")
        columns = reader.fieldnames or []
        lacking = [c for c in ("index", "question", *OPTIONS[:2]) if c not in columns]
        if lacking:
            raise ValueError(f"{path}: no column {lacking[0]!r}, found {', '.join(columns)}")
        rows = []
        for row in reader:
            where = f"{path}, row {len(rows) + 1}"
            if None in row or None in row.values():
                raise ValueError(f"{where}: expected {len(columns)} cells")
            row = {name: None if cell in EMPTY else cell for name, cell in row.items()}
            if not (row["index"] or "").isdecimal():
                raise ValueError(f"{where}: column 'index' is {describe(row['index'])}")
            rows.append(Record(row | {"index": int(row["index"])}, path, f", row {len(rows) + 1}"))
    by_key(rows, lambda row: row["index"])
    return rows


def options_of(row: Record) -> list[str]:
    """The options before the first empty one."""
    found = []
    for letter in OPTIONS:
        text = row.get(letter)
        if text is None or text.lower() in ("nan", "none"):
            break
        found.append(text)
    return found


def questions(path, images, options):
    """One question a row; with `all_rounds`, one for each rotation of its options."""
    if options["lang"] not in SUFFIX:
        raise ValueError(f"mmbench: option lang is {options['lang']!r}, expected en or cn")
    for row in read_rows(path):
        texts, letters = options_of(row), list(OPTIONS)
        letters = letters[: len(texts)]
        hint = row.get("hint")
        asked = f"{hint}\n" if hint and hint.lower() not in ("nan", "none") else ""
        asked += field(row, "question")
        shown = _decode(row)
        for number in range(len(texts) if options["all_rounds"] else 1):
            # Letters in the prompt stay in order, the texts behind them move on.
            listed = "".join(
                f"\n{x}. {t}" for x, t in zip(OPTIONS, _rotated(texts, number), strict=False)
            )
            meta = {
                "round_id": number,
                "options": _rotated(texts, number),
                "option_char": _rotated(letters, number),
                "category": row.get("category"),
                "stored_prompt": asked + listed,
            }
            yield Question(row["index"], asked + listed + SUFFIX[options["lang"]], (shown,), meta)


def _rotated(items: list, by: int) -> list:
    return items[by:] + items[:by]


def _decode(row: Record) -> bytes:
    try:
        return base64.b64decode(field(row, "image"), validate=True)
    except ValueError as error:
        raise ValueError(f"{row.where}: column 'image' is not base64: {error}") from None


def line(question: Question, text: str, model_id: str) -> dict:
    """A VQA line with round_id, options and option_char; the stored prompt lacks the suffix."""
    meta = question.meta
    found = {"question_id": question.id, "round_id": meta["round_id"]}
    rest = vqa_line(question, text, model_id) | {"prompt": meta["stored_prompt"]}
    found |= {k: rest[k] for k in ("prompt", "text")}
    found |= {k: meta[k] for k in ("options", "option_char")}
    return found | {k: rest[k] for k in ("answer_id", "model_id", "metadata")}


def key(record: Record) -> tuple[int, int]:
    """A row and the round that its options are in."""
    number = field(record, "round_id", int) if "round_id" in record else 0
    return field(record, "question_id", int), number


def score(predictions, annotations, options, judge=None) -> Scores:
    """Accuracy by `answer`; with several rounds a row is right if all are (CircularEval)."""
    rows = by_key(read_rows(annotations), lambda row: row["index"])
    answered = by_key(predictions, key)
    check_known(predictions, rows, lambda p: key(p)[0], annotations)
    if any(row.get("answer") is None for row in rows.values()):
        raise ValueError(
            f"{annotations}: column 'answer' has empty cells or is missing: this split is scored "
            "by its server; write its file with --submission FILE.xlsx"
        )
    rounds = {n for _, n in answered}
    numbers = {i: range(len(options_of(row)) if rounds - {0} else 1) for i, row in rows.items()}
    wanted = [(index, n) for index, inside in numbers.items() for n in inside]
    check_complete(wanted, answered, annotations, predictions)
    verdicts = []
    for index, row in rows.items():
        parsed = [
            _original_letter(row, n, field(answered[index, n], "text")) for n in numbers[index]
        ]
        right = float(all(p == row["answer"] for p in parsed))
        verdict = {"question_id": index, "score": right, "parsed": parsed[0], "rounds": parsed}
        verdict |= {"answer": row["answer"], "category": row.get("category")}
        verdicts.append(verdict | {"l2-category": row.get("l2-category")})
    groups = {name: mean_scores(verdicts, name) for name in ("category", "l2-category")}
    result = {"accuracy": mean(v["score"] for v in verdicts), "samples": len(verdicts)}
    result |= {"circular": bool(rounds - {0}), **groups}
    unread = sum(p is None for v in verdicts for p in v["rounds"])
    notes = [f"{unread} replies name no option and count as wrong"] if unread else []
    return Scores(result, verdicts, f"Accuracy: {100 * result['accuracy']:.2f}%\n", notes)


def _original_letter(row: Record, number: int, text: str) -> str | None:
    """The letter that the option had before it was moved `number` places to the front."""
    texts = options_of(row)
    letter = option_letter(text, _rotated(texts, number))
    return letter and OPTIONS[(LETTERS.index(letter) + number) % len(texts)]


def submission(predictions, annotations, path, options) -> None:
    """The server's sheet: the TSV without six columns, `prediction` as the seventh."""
    try:
        from openpyxl import Workbook
        from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE as FORBIDDEN  # in a sheet
    except ImportError:
        raise ValueError("an MMBench sheet needs openpyxl: pip install 'mgm-jax[evals]'") from None
    rows = by_key(read_rows(annotations), lambda row: row["index"])
    check_known(predictions, rows, lambda p: key(p)[0], annotations)
    texts = {index: field(p, "text") for (index, n), p in by_key(predictions, key).items() if not n}
    check_complete(rows, texts, annotations, predictions)
    columns = [c for c in next(iter(rows.values())) if c not in DROPPED]
    columns.insert(6, "prediction")
    book = Workbook()
    book.active.append(columns)
    for index, row in rows.items():
        row = row | {"prediction": FORBIDDEN.sub("", texts[index])}
        book.active.append([row[c] for c in columns])
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        book.save(file)


BENCHMARK = Benchmark(
    name="mmbench",
    title="MMBench dev",
    questions=questions,
    score=score,
    generation=Generation(max_new_tokens=1024),
    needs="mmbench_dev_*.tsv",
    expected=published(accuracy="mmbench"),
    tolerance={"accuracy": 1.0},
    line=line,
    key=key,
    submission=submission,
    options={"lang": "en", "all_rounds": False},
    breakdowns=("l2-category", "category"),
)
