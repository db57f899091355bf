"""POPE: is there an object in the picture? Yes or no (MGM_SPEC 8.8)."""

from __future__ import annotations

from etils import epath

from mgm_jax.evals.common import Benchmark, Generation, Scores, grouped, mean, question_id
from mgm_jax.evals.files import Record, by_key, check_known, field, read_records
from mgm_jax.evals.vqa_questions import questions

PREFIX = "coco_pope_"


def yes_or_no(text: str) -> str:
    """What the first sentence says: "no" if No, not or no is one of its words."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def score(predictions, annotations, options, judge=None) -> Scores:
    """Per category the original's nine numbers; answers meet labels in the order of the files."""
    by_key(predictions, question_id)
    files = _label_files(annotations)
    categories = _categories(predictions, annotations, options["questions"])
    result, verdicts, printed = {}, [], ""
    for category, file in files.items():
        labels = [field(record, "label") for record in read_records(file)]
        answers = [p for p in predictions if categories[p["question_id"]] == category]
        if len(answers) != len(labels):
            raise ValueError(
                f"{file}: {len(labels)} labels, but {len(answers)} predictions of category "
                f"{category!r} in {predictions[0].source}"
            )
        for answer, label in zip(answers, labels, strict=True):
            parsed, label = yes_or_no(field(answer, "text")), "no" if label == "no" else "yes"
            verdict = {"question_id": answer["question_id"], "score": float(parsed == label)}
            verdicts.append(verdict | {"parsed": parsed, "answer": label, "category": category})
        result[category] = counts([v for v in verdicts if v["category"] == category])
        printed += _printed(category, len(answers), result[category])
    unknown = set(categories.values()) - files.keys()
    if unknown:
        raise ValueError(f"{annotations}: no {PREFIX}{sorted(unknown)[0]}.json, found {[*files]}")
    return Scores(result, verdicts, printed)


def counts(verdicts: list[dict]) -> dict[str, float]:
    """TP, FP, TN, FN and the ratios of them; a ratio of nothing is 0 (an error in the original)."""
    pairs = [(v["parsed"], v["answer"]) for v in verdicts]
    tp, fp = pairs.count(("yes", "yes")), pairs.count(("yes", "no"))
    tn, fn = pairs.count(("no", "no")), pairs.count(("no", "yes"))
    precision = tp / (tp + fp) if tp + fp else 0.0
    recall = tp / (tp + fn) if tp + fn else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    ratios = {"accuracy": (tp + tn) / len(pairs), "precision": precision, "recall": recall}
    ratios |= {"f1": f1, "yes_ratio": (tp + fp) / len(pairs)}
    return {"TP": tp, "FP": fp, "TN": tn, "FN": fn} | ratios


def summary(verdicts: list[dict]) -> dict[str, float]:
    """F1 and accuracy in percent, as means over the categories."""
    found = [counts(g) for g in grouped(verdicts, "category").values()]
    return {name: 100.0 * mean(c[name] for c in found) for name in ("f1", "accuracy")}


def _label_files(path) -> dict[str, epath.Path]:
    """Category -> its file of labels: `path` itself, or in the folder or one below."""
    path = epath.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: this folder of {PREFIX}*.json does not exist")
    folder, files = path if path.is_dir() else path.parent, [path]
    if path.is_dir() or not path.name.startswith(PREFIX):
        found = folder.glob(f"{PREFIX}*.json"), folder.glob(f"*/{PREFIX}*.json")
        files = sorted(found[0]) or sorted(found[1])
    if not files:
        raise ValueError(f"{path}: found no {PREFIX}<category>.json")
    return {f.name.removeprefix(PREFIX).removesuffix(".json"): f for f in files}


def _categories(predictions: list[Record], annotations, question_file: str) -> dict:
    """question id -> category, of the question file, or of the predictions if they say it."""
    if not question_file and all("category" in p for p in predictions):
        return {p["question_id"]: field(p, "category") for p in predictions}
    file = question_file or _question_file(epath.Path(annotations))
    known = by_key(read_records(file), question_id)
    check_known(predictions, known, question_id, file)
    return {p["question_id"]: field(known[p["question_id"]], "category") for p in predictions}


def _question_file(path):
    """The one file of questions beside the labels, or in the folder above, as LLaVA lays them."""
    if not path.is_dir() and not path.name.startswith(PREFIX):
        return path
    folder = path if path.is_dir() else path.parent
    for place in (folder, folder.parent):
        files = [f for f in sorted(place.glob("*.json*")) if _asks(f)]
        if len(files) == 1:
            return files[0]
        if files:
            names = ", ".join(f.name for f in files)
            raise ValueError(f"{place}: found question files {names}; --set questions=FILE")
    raise FileNotFoundError(
        f"{path}: found no question file (JSON lines with question_id, text and category) in this "
        "folder and the one above; name it with --set questions=FILE"
    )


def _asks(file) -> bool:
    """Whether the first line is a question with its category."""
    with file.open("r") as opened:
        line = opened.readline()
    return all(f'"{name}"' in line for name in ("question_id", "text", "category"))


def _printed(category: str, number: int, c: dict[str, float]) -> str:
    head = f"Category: {category}, # samples: {number}\nTP\tFP\tTN\tFN\t\n"
    names = ("Accuracy", "Precision", "Recall", "F1 score", "Yes ratio")
    keys = ("accuracy", "precision", "recall", "f1", "yes_ratio")
    rows = "".join(f"{name}: {c[key]}\n" for name, key in zip(names, keys, strict=True))
    short = ", ".join(f"{c[k]:.3f}" for k in ("f1", "accuracy", "precision", "recall", "yes_ratio"))
    counted = "\t".join(str(c[k]) for k in ("TP", "FP", "TN", "FN"))
    return f"{head}{counted}\n{rows}{short}\n{'=' * 36}\n"


BENCHMARK = Benchmark(
    name="pope",
    title="POPE",
    questions=questions,
    score=score,
    generation=Generation(max_new_tokens=128),
    needs=f"the folder of {PREFIX}*.json, with the question file in or above it",
    summary=summary,
    options={"questions": ""},
)
