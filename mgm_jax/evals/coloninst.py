"""ColonINST-v1: classify, name and find what a colonoscopy shows (MGM_SPEC 8.11).

A file holds one task or several: what a record asks for is read off its own conversation. `val` is
what the benchmark calls seen, `test` unseen.
"""

from __future__ import annotations

import re

from mgm_jax.evals.common import Benchmark, Generation, Question, Scores, grouped, mean, mean_scores
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

BOX = re.compile(r"<\s*(\d+)\s*>")
END = "<|endoftext|>"
CAPTIONS = {
    "Describe what you see in the image.",
    "Interpret what the image shows.",
    "Detail the visual elements in the image.",
    "Explain the image's visuals thoroughly.",
    "Offer a thorough explanation of the image.",
}
SAMPLES = {
    "val": {"CLS": 8929, "REG": 4874, "REC": 4874},
    "test": {"CLS": 45284, "REG": 37631, "REC": 37631},
}
# "MGM-2B" without and with extra data, full fine-tuning: figure of the ColonINST-v1 benchmark in
# github.com/ai4colonoscopy/IntelliScope, accuracies and IoU in percent.
EXPECTED = {
    "MGM-2B val": {"CLS": 92.97, "REG": 98.17, "REC": 39.78},
    "MGM-2B test": {"CLS": 78.99, "REG": 69.81, "REC": 16.00},
    "MGM-2B-EXT val": {"CLS": 93.24, "REG": 98.75, "REC": 57.25},
    "MGM-2B-EXT test": {"CLS": 78.69, "REG": 74.30, "REC": 25.23},
}


def turn(record: Record, speaker: str) -> str:
    """What `speaker` (human, gpt, prediction) says in the one round of a record."""
    said = [t for t in field(record, "conversations", list) if t.get("from") == speaker]
    if len(said) != 1 or not isinstance(said[0].get("value"), str):
        raise ValueError(
            f"{record.where}: found {len(said)} turns from {speaker!r}, expected one with a text"
        )
    return said[0]["value"]


def asked(record: Record) -> str:
    """The question without `<image>`."""
    return turn(record, "human").replace("<image>", "").strip()


def task(record: Record) -> str:
    """CLS, REG (name what is in a box), REC (find the box) or CAP."""
    question = asked(record)
    if question in CAPTIONS:
        return "CAP"
    if BOX.search(turn(record, "gpt")):
        return "REC"
    return "REG" if BOX.search(question) else "CLS"


def questions(path, images, options):
    """Records of ColonINST-<split>-<task>.json; a picture's path stands in `id`."""
    for record in read_records(path):
        name = field(record, "id")
        shown = picture(images, name, record.where)
        meta = {"category": task(record), "record": dict(record)}
        yield Question(name, asked(record), (shown,), meta)


def line(question: Question, text: str, model_id: str) -> dict:
    """The record with one more turn, from "prediction"."""
    record = question.meta["record"]
    turns = [*record["conversations"], {"from": "prediction", "value": text}]
    return record | {"conversations": turns}


def key(record: Record) -> tuple[str, str]:
    """A picture may be asked about several times."""
    return field(record, "id"), asked(record)


def iou(first: list[int], second: list[int]) -> float:
    """Intersection over union of boxes whose last pixels count; 0 unless both have 4 numbers."""
    if len(first) != 4 or len(second) != 4:
        return 0
    width, height = (
        min(first[i + 2], second[i + 2]) - max(first[i], second[i]) + 1 for i in (0, 1)
    )
    if width <= 0 or height <= 0:
        return 0
    areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (first, second)]
    return width * height / float(sum(areas) - width * height)


def score(predictions, annotations, options, judge=None) -> Scores:
    """The evaluator's result for each task that is there; captions are not scored by it either."""
    answered = by_key(predictions, key)
    truth = by_key(read_records(annotations), key) if annotations is not None else answered
    check_known(predictions, truth, key, annotations)
    check_complete(truth, answered, annotations, predictions)
    verdicts = []
    for name, record in truth.items():
        kind, answer = task(record), turn(record, "gpt").lower()
        parsed = turn(answered[name], "prediction").lower().replace(END, "")
        verdict = {"question_id": name[0], "category": kind, "parsed": parsed, "answer": answer}
        if kind == "REC":
            boxes = [[int(n) for n in BOX.findall(text)] for text in (parsed, answer)]
            verdict |= {"score": iou(*boxes), "coordinates": len(boxes[1])}
        elif kind != "CAP":
            verdict["score"] = float(parsed == answer)
        if kind != "CAP":
            verdicts.append(verdict | {"asked": name[1]})
    result = {kind: _result(kind, inside) for kind, inside in grouped(verdicts, "category").items()}
    _check_samples(verdicts, options["split"], predictions)
    captions = len(truth) - len(verdicts)
    notes = [f"{captions} captions are not scored"] if captions else []
    printed = "".join(f"{kind}: {value}\n" for kind, value in result.items())
    return Scores({"eval_result": result}, verdicts, printed, notes)


def _result(kind: str, verdicts: list[dict]) -> float | dict[str, float]:
    if kind != "REC":
        return mean(v["score"] for v in verdicts)
    hits = [int(v["score"] > 0.5) for v in verdicts]
    recalls = [h / v["coordinates"] for h, v in zip(hits, verdicts, strict=True)]
    return {
        "avg_iou": mean(v["score"] for v in verdicts),
        "avg_precision": mean(hits),
        "avg_recall": mean(recalls),
    }


def _check_samples(verdicts: list[dict], split: str, predictions) -> None:
    """With a split named, its tasks must be whole, as the benchmark's evaluator wants it."""
    if split and split not in SAMPLES:
        raise ValueError(f"coloninst: option split is {describe(split)}, expected val or test")
    for kind, inside in grouped(verdicts, "category").items() if split else ():
        if len(inside) != SAMPLES[split][kind]:
            raise ValueError(
                f"{predictions[0].source}: {len(inside)} {kind} samples, expected "
                f"{SAMPLES[split][kind]} of split {split}"
            )


def summary(verdicts: list[dict]) -> dict[str, float]:
    """Accuracy of CLS and REG and mean IoU of REC, in percent."""
    return {kind: 100 * value for kind, value in mean_scores(verdicts, "category").items()}


def postprocess(text: str) -> str:
    """What the benchmark's own inference does to a reply."""
    return text.replace(END, "").strip()


BENCHMARK = Benchmark(
    name="coloninst",
    title="ColonINST-v1",
    questions=questions,
    score=score,
    generation=Generation(max_new_tokens=40),
    needs=None,
    expected=EXPECTED,
    tolerance={"CLS": 1.0, "REG": 1.0, "REC": 1.0},
    summary=summary,
    postprocess=postprocess,
    line=line,
    key=key,
    options={"split": ""},
)
