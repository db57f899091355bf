"""MME: yes or no, two questions a picture; perception and cognition (MGM_SPEC 8.4)."""

from __future__ import annotations

from pathlib import PurePosixPath

from etils import epath

from mgm_jax.evals.common import (
    Benchmark,
    Generation,
    Scores,
    grouped,
    id_and_prompt,
    mean,
    question_id,
)
from mgm_jax.evals.files import Record, check_complete, field, read_records
from mgm_jax.evals.published import published
from mgm_jax.evals.vqa_questions import questions

PERCEPTION = "existence count position color posters celebrity scene landmark artwork OCR".split()
COGNITION = "commonsense_reasoning numerical_calculation text_translation code_reasoning".split()
SHORT = "Answer the question using a single word or phrase."
ASK = "Please answer yes or no."
FOLDER = "questions_answers_YN"


def yes_or_no(text: str) -> str:
    """A reply as yes, no or other: the whole of it, or what its first four characters hold."""
    text = text.lower()
    start = text if text in ("yes", "no") else text[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def read_truth(path) -> dict[tuple[str, str, str], str]:
    """(category, text file, question) -> answer, of `MME_Benchmark_release_version`."""
    path, truth = epath.Path(path), {}
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: this folder does not exist")
    for category in PERCEPTION + COGNITION:
        folder = path / category
        folder = folder / FOLDER if (folder / FOLDER).is_dir() else folder
        for file in sorted(folder.glob("*.txt")):
            for i, text in enumerate(file.read_text().splitlines(), 1):
                cells = text.strip().split("\t")
                if len(cells) != 2:
                    raise ValueError(f"{file}:{i}: found {text!r}, expected question, tab, answer")
                truth[category, file.name, cells[0]] = cells[1]
    if not truth:
        raise ValueError(
            f"{path}: found no <category>/*.txt, expected those of {PERCEPTION[0]}, ..."
        )
    return truth


def place(line: Record, truth: dict) -> tuple[str, str, str]:
    """The (category, text file, question) that a prediction line answers."""
    name = PurePosixPath(str(question_id(line)))
    category, file = name.parts[0], f"{name.name.split('.')[0]}.txt"
    asked = field(line, "prompt").replace(SHORT, "").strip()
    if ASK not in asked:
        asked = f"{asked} {ASK}"
    for question in (asked, asked.replace(f" {ASK}", f"  {ASK}")):
        if (category, file, question) in truth:
            return category, file, question
    raise ValueError(f"{line.where}: no question {asked!r} in {category}/{file}")


def read(path) -> list[Record]:
    """Prediction lines, or a folder of <category>.txt as the original's converter writes them."""
    path = epath.Path(path)
    if not path.is_dir():
        return read_records(path)
    records = []
    for file in sorted(path.glob("*.txt")):
        for i, text in enumerate(file.read_text().splitlines(), 1):
            cells = text.split("\t")
            if len(cells) != 4:
                raise ValueError(
                    f"{file}:{i}: found {text!r}, expected picture, question, truth and answer "
                    "with tabs between"
                )
            row = dict(zip(("file", "question", "truth", "text"), cells, strict=True))
            records.append(Record(row | {"category": file.stem}, file, f":{i}"))
    return records


def score(predictions, annotations, options, judge=None) -> Scores:
    """acc and acc+ of each task; both questions about a picture stand one behind the other."""
    rows = _rows(predictions, annotations)
    verdicts = []
    for row in rows:
        parsed, truth = yes_or_no(row["text"]), row["truth"].lower()
        cluster = f"{row['category']}/{row['file']}"
        verdict = {"question_id": row.get("question_id", cluster), "score": float(parsed == truth)}
        verdict |= {"parsed": parsed, "answer": truth, "category": row["category"]}
        verdicts.append(verdict | {"cluster": cluster, "asked": row.get("prompt")})
    _check_pairs(rows)
    tasks = _tasks(verdicts)
    totals = summary(verdicts)
    absent = [t for t in PERCEPTION + COGNITION if t not in tasks]
    notes = [f"no answers for {', '.join(absent)}"] if absent else []
    printed = ""
    for title, names in (("Perception", PERCEPTION), ("Cognition", COGNITION)):
        printed += f"=========== {title} ===========\ntotal score: {totals[title.lower()]} \n\n"
        found = [n for n in names if n in tasks]
        printed += "".join(f"\t {n}  score: {tasks[n]['score']}\n" for n in found) + "\n\n"
    return Scores(totals | {"tasks": tasks}, verdicts, printed, notes)


def _rows(predictions, annotations) -> list[Record]:
    if "truth" in predictions[0]:
        return predictions
    if annotations is None:
        raise ValueError("mme needs --annotations MME_Benchmark_release_version")
    truth, rows = read_truth(annotations), {}
    for line in predictions:
        where = place(line, truth)
        if where in rows:
            raise ValueError(f"{line.where}: {where} is answered in {rows[where].where} already")
        row = dict(zip(("category", "file", "question"), where, strict=True))
        row |= {k: field(line, k) for k in ("text", "prompt")} | {"question_id": question_id(line)}
        rows[where] = Record(row | {"truth": truth[where]}, line.source, line.place)
    check_complete(truth, rows, annotations, predictions)
    return [rows[where] for where in truth]


def _check_pairs(rows: list[Record]) -> None:
    for category in dict.fromkeys(row["category"] for row in rows):
        inside = [row for row in rows if row["category"] == category]
        for first, second in zip(inside[::2], [*inside[1::2], None], strict=False):
            if second is None or second["file"] != first["file"]:
                found = "nothing" if second is None else second["file"]
                raise ValueError(
                    f"{first.where}: {category}: behind a question about {first['file']} stands "
                    f"{found}, expected the second question about it"
                )


def _tasks(verdicts: list[dict]) -> dict[str, dict[str, float]]:
    found = {}
    for task, inside in grouped(verdicts, "category").items():
        scores = [v["score"] for v in inside]
        acc = mean(scores)
        plus = mean(float(all(scores[i : i + 2])) for i in range(0, len(scores), 2))
        other = sum(v["parsed"] == "other" for v in inside)
        found[task] = {"acc": acc, "acc_plus": plus, "score": acc * 100 + plus * 100}
        found[task]["other_num"] = other
    return found


def summary(verdicts: list[dict]) -> dict[str, float]:
    """Perception (at most 2000) and cognition (at most 800): sums of the tasks' scores."""
    tasks = _tasks(verdicts)
    return {
        title: float(sum(tasks[n]["score"] for n in names if n in tasks))
        for title, names in (("perception", PERCEPTION), ("cognition", COGNITION))
    }


def submission(predictions, annotations, path, options) -> None:
    """A folder of <category>.txt for the benchmark's own `calculation.py`."""
    rows = _rows(predictions, annotations)
    folder = epath.Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    for category in dict.fromkeys(row["category"] for row in rows):
        lines = [
            "\t".join(" ".join(row[k].split("\t")) for k in ("file", "question", "truth", "text"))
            for row in rows
            if row["category"] == category
        ]
        text = "".join(f"{' '.join(line.splitlines())}\n" for line in lines)
        (folder / f"{category}.txt").write_text(text)


BENCHMARK = Benchmark(
    name="mme",
    title="MME",
    questions=questions,
    score=score,
    generation=Generation(max_new_tokens=128),
    needs=None,
    expected=published(perception="mme_p", cognition="mme_c"),
    tolerance={"perception": 20.0, "cognition": 15.0},
    summary=summary,
    key=id_and_prompt,
    read=read,
    submission=submission,
    folders=True,
)
