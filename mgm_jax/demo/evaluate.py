"""The demo's held-out questions, answered by free greedy generation and compared exactly."""

from __future__ import annotations

import json
from pathlib import Path

from mgm_jax.api import load
from mgm_jax.generate.prompts import Request

MAX_NEW_TOKENS = 24


def evaluate(checkpoint: Path, root: Path, arm: str, wanted: list[tuple[str, str]]) -> dict:
    """Accuracy of a model on each wanted (split, kind of question).

    Returns {"test_digit": ..., "test_colour": ..., ..., "questions": how many were asked} and
    writes every answer to `answers_{arm}.json`.
    """
    model = load(checkpoint, dtype="float32")
    records = []
    for split, kind in wanted:
        rows = json.loads((root / "data" / f"{split}.json").read_text())
        records += [row | {"split": split} for row in rows if row["kind"] == kind]
    requests = [
        Request([("user", row["conversations"][0]["value"])], [root / "data" / row["image"]])
        for row in records
    ]
    answers = model.generate(requests, max_new_tokens=MAX_NEW_TOKENS, batch_size=64, progress=True)
    right: dict[str, list[bool]] = {}
    for row, answer in zip(records, answers, strict=True):
        row["found"] = answer
        right.setdefault(f"{row['split']}_{row['kind']}", []).append(answer == row["answer"])
    keep = ("id", "image", "split", "kind", "answer", "found")
    table = [{k: row[k] for k in keep} | {"question": _question(row)} for row in records]
    (root / f"answers_{arm}.json").write_text(json.dumps(table, indent=0))
    scores = {name: round(sum(r) / len(r), 4) for name, r in right.items()}
    return scores | {"questions": len(records)}


def _question(row: dict) -> str:
    return row["conversations"][0]["value"].removeprefix("<image>\n")
