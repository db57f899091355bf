"""Reads back what an evaluation left in OUT: questions with their answers and verdicts.

OUT/results.json                  checkpoint, model, and the scores of each benchmark
OUT/<name>/items.jsonl            a line a question: what was asked and answered
OUT/<name>/verdicts.json          how the scorer read it; not there without scores
OUT/<name>/scores.json            its scores; they count before those in results.json
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from etils import epath

from mgm_jax.evals import get
from mgm_jax.evals.common import Benchmark
from mgm_jax.evals.files import Record, field, read_json, read_mapping, read_records


@dataclass(frozen=True)
class Row:
    """A question of an evaluation. `verdict` is None where it has no score."""

    item: Record
    verdict: Mapping[str, Any] | None


@dataclass(frozen=True)
class Part:
    """One benchmark of an evaluation. `verdicts` in their own order, which `summary` needs."""

    name: str
    benchmark: Benchmark
    scores: Mapping[str, Any]
    rows: list[Row]
    verdicts: list[dict[str, Any]]
    folder: epath.Path


@dataclass(frozen=True)
class Finished:
    """One evaluation; `results` is its results.json, `label` what a reader calls it."""

    folder: epath.Path
    results: dict[str, Any]
    parts: dict[str, Part]
    label: str


def read(folder) -> Finished:
    """The evaluation in `folder`; ValueError or FileNotFoundError says what is missing."""
    folder = epath.Path(folder)
    if not (folder / "results.json").exists():
        raise FileNotFoundError(
            f"{folder}/results.json: this file does not exist; `mgm-jax eval --out {folder}` "
            "writes it when all questions are answered"
        )
    results = read_mapping(folder / "results.json")
    where = Record(results, folder / "results.json")
    found = field(where, "benchmarks", dict)
    parts = {name: _part(name, scores, folder) for name, scores in found.items()}
    return Finished(folder, results, parts, str(results.get("model") or folder.name))


def told_apart(first: Finished, second: Finished) -> tuple[Finished, Finished]:
    """Both, with labels that differ: their models, else their folders."""
    for labels in (
        (first.label, second.label),
        (first.folder.name, second.folder.name),
        (str(first.folder), str(second.folder)),
    ):
        if labels[0] != labels[1]:
            break
    return replace(first, label=labels[0]), replace(second, label=labels[1])


def _part(name: str, scores: Any, out: epath.Path) -> Part:
    folder = out / name
    if not isinstance(scores, dict):
        raise ValueError(f"{out}/results.json: benchmark {name!r} is no JSON object")
    if (folder / "scores.json").exists():
        scores = scores | read_mapping(folder / "scores.json")
    scores = Record(scores, out / "results.json", f", {name}")
    benchmark = get(field(scores, "benchmark"))
    items = read_records(folder / "items.jsonl")
    path = folder / "verdicts.json"
    verdicts = read_json(path) if path.exists() else []
    if not isinstance(verdicts, list) or not all(isinstance(v, dict) for v in verdicts):
        raise ValueError(f"{path}: found no list of JSON objects, expected verdicts")
    rows = [Row(i, v) for i, v in zip(items, assign(items, verdicts, path), strict=True)]
    return Part(name, benchmark, scores, rows, verdicts, folder)


def assign(items: list[Record], verdicts: list[dict], source) -> list[dict | None]:
    """The verdict of each question, or None. ValueError for one about no question.

    A verdict goes to the question of its id whose prompt it was `asked`, else to the next one
    without a verdict; the only verdict of an id goes to all questions of it.
    """
    places: dict[str, list[int]] = {}
    for i, item in enumerate(items):
        places.setdefault(str(field(item, "question_id", (str, int))), []).append(i)
    groups: dict[str, list[dict]] = {}
    for v in verdicts:
        groups.setdefault(str(v.get("question_id")), []).append(v)
    found: list[dict | None] = [None] * len(items)
    for name, inside in groups.items():
        free = list(places.get(name, []))
        if len(inside) > len(free):
            raise ValueError(
                f"{source}: {len(inside)} verdicts about {name!r}, but {len(free)} questions in "
                f"{items[0].source if items else 'items.jsonl'}"
            )
        if len(inside) == 1 and not inside[0].get("asked"):
            for i in free:
                found[i] = inside[0]
            continue
        for v in inside:
            place = next((i for i in free if _was_asked(items[i], v)), free[0])
            free.remove(place)
            found[place] = v
    return found


def _was_asked(item: Record, verdict: Mapping[str, Any]) -> bool:
    asked = verdict.get("asked")
    return bool(asked) and field(item, "prompt").startswith(asked)


def pair(first: Part, second: Part) -> list[Row | None]:
    """For each question of `first` the same one of `second`, or None: by id and prompt, else by an
    id that both have once."""
    exact: dict[Any, list[Row]] = {}
    for row in second.rows:
        exact.setdefault(_key(row), []).append(row)
    mine = Counter(_id(row) for row in first.rows)
    others = Counter(_id(row) for row in second.rows)
    single = {_id(row): row for row in second.rows if others[_id(row)] == mine[_id(row)] == 1}
    return [
        exact[_key(row)].pop(0) if exact.get(_key(row)) else single.get(_id(row))
        for row in first.rows
    ]


def _id(row: Row) -> str:
    return str(row.item["question_id"])


def _key(row: Row) -> tuple[str, str]:
    return _id(row), field(row.item, "prompt")
