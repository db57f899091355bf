"""What an evaluation asks: the benchmarks of a config with their questions, read and checked.

All of it happens before a model is loaded. The scorer has a first run on empty answers, so that a
wrong annotation file is an error now and not after hours of answering. Imports no jax.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from etils import epath

from mgm_jax.evals import get
from mgm_jax.evals.common import Benchmark, Generation, Question, Scores
from mgm_jax.evals.files import Record, by_key
from mgm_jax.evals.report.finished import assign

KEYS = ("benchmark", "questions", "images", "annotations", "score", "options", "generation")
HIDDEN = "; with `score` False answers and submission are written without"
# Files of submissions that are no JSON; mme's is a folder.
SUBMISSIONS = {"mmbench": "submission.xlsx", "seed": "submission.jsonl", "mme": "submission"}


@dataclass(frozen=True)
class Task:
    """One benchmark of an evaluation, under the name that its results get.

    questions: all of its file; the first `asked` of them are asked.
    scored: whether it is scored here, or by a server or judge later. numbers: what its summary has.
    """

    name: str
    benchmark: Benchmark
    source: str
    annotations: str | None
    options: Mapping[str, Any]
    generation: Generation
    questions: tuple[Question, ...]
    asked: int
    scored: bool
    numbers: tuple[str, ...] = ()

    def lines(self, texts: Sequence[str], model_id: str) -> list[dict[str, Any]]:
        """Prediction lines of the first questions, one for each answer."""
        clean = self.benchmark.postprocess
        pairs = zip(self.questions, texts, strict=False)
        return [self.benchmark.line(q, clean(text), model_id) for q, text in pairs]

    def score(self, texts: Sequence[str], model_id: str, judge=None) -> Scores:
        """Scores of the answers to the first `asked` questions.

        A scorer wants a whole file: questions that were not asked get an empty answer, and their
        verdicts are dropped; the original's keys, which would count them, are then left out.
        """
        texts = [*texts, *[""] * (len(self.questions) - len(texts))]
        records = self._records(texts, model_id)
        judge = judge if self.benchmark.asks_judge else None
        scores = self.benchmark.score(records, self.annotations, dict(self.options), judge)
        if self.asked == len(self.questions):
            return scores
        note = f"the first {self.asked} of {len(self.questions)} questions were asked"
        return Scores({}, self._of_asked(scores.verdicts), "", [note])

    def submit(self, texts: Sequence[str], model_id: str, folder) -> None:
        """Writes the benchmark's submission, where it has one and all questions were asked."""
        if self.benchmark.submission and len(texts) == len(self.questions):
            path = epath.Path(folder) / SUBMISSIONS.get(self.benchmark.name, "submission.json")
            truth = self.annotations or self.source
            records = self._records(texts, model_id)
            self.benchmark.submission(records, truth, path, dict(self.options))

    def _records(self, texts: Sequence[str], model_id: str) -> list[Record]:
        lines = self.lines(texts, model_id)
        return [
            Record(line, f"{self.name}/predictions.jsonl", f":{i}")
            for i, line in enumerate(lines, 1)
        ]

    def _of_asked(self, verdicts: list[dict]) -> list[dict]:
        """Verdicts about asked questions alone."""
        known = [
            Record({"question_id": q.id, "prompt": q.prompt}, self.source) for q in self.questions
        ]
        others = assign(known, verdicts, self.name)[self.asked :]
        dropped = {id(v) for v in others}
        return [v for v in verdicts if id(v) not in dropped]


def read_tasks(config: Mapping[str, Any]) -> list[Task]:
    """The tasks of `configs.common.eval_config` (as a dict).

    ValueError or FileNotFoundError for whatever would keep the evaluation from its results.
    """
    for key in ("batch", "round", "window", "threads", "tower_batch", "limit"):
        if config[key] is not None and config[key] < 1:
            raise ValueError(f"config.{key} is {config[key]}, expected at least 1")
    if not config["benchmarks"]:
        raise ValueError("config.benchmarks is empty, expected at least one benchmark")
    return [_read(name, dict(entry), config) for name, entry in config["benchmarks"].items()]


def _read(name: str, entry: dict[str, Any], config: Mapping[str, Any]) -> Task:
    where = f"config.benchmarks.{name}"
    if unknown := [key for key in entry if key not in KEYS]:
        raise ValueError(f"{where} has {unknown[0]!r}, expected some of {', '.join(KEYS)}")
    if PurePath(name).name != name or name.startswith("."):
        raise ValueError(f"{where}: its results need a folder of this name, expected a plain name")
    benchmark, switches = get(entry["benchmark"]), config["switches"]
    chosen = {n: switches[n] for n in benchmark.options if n in switches}
    options = benchmark.chosen(chosen | dict(entry.get("options") or {}))
    for key in ("questions", "images", "annotations"):
        if entry.get(key) and not epath.Path(entry[key]).exists():
            raise FileNotFoundError(f"{where}.{key}: {entry[key]} does not exist")
    if not entry.get("questions"):
        raise ValueError(f"{where}.questions is not set, expected the benchmark's questions")
    scored, annotations = entry.get("score", True), entry.get("annotations") or None
    if scored and benchmark.needs and not annotations:
        raise ValueError(f"{where}.annotations is not set, expected {benchmark.needs}{HIDDEN}")
    found = tuple(benchmark.questions(entry["questions"], entry.get("images"), options))
    if not found:
        raise ValueError(f"{entry['questions']}: found no question")
    asked = min(config["limit"] or len(found), len(found))
    generation = _generation(where, benchmark, dict(entry.get("generation") or {}), switches)
    task = Task(
        name,
        benchmark,
        str(entry["questions"]),
        annotations,
        options,
        generation,
        found,
        asked,
        scored,
    )
    return replace(task, numbers=_rehearse(task))


def _rehearse(task: Task) -> tuple[str, ...]:
    """Scores and hands in empty answers: what is wrong with the files is said now. The names of the
    numbers that there will be."""
    nothing = [""] * len(task.questions)
    lines = enumerate(task.lines(nothing, ""))
    by_key((Record(x, task.source, f", question {i}") for i, x in lines), task.benchmark.key)
    verdicts = []
    try:
        if task.scored and not task.benchmark.needs_judge:
            verdicts = task.score([], "").verdicts
        with tempfile.TemporaryDirectory() as folder:
            task.submit(nothing, "", folder)
    except ValueError as error:
        files = f"{task.source} and {task.annotations or 'no annotations'}"
        raise ValueError(f"{task.name}: {files} do not go together: {error}") from error
    return tuple(task.benchmark.summary(verdicts)) if verdicts else ()


def _generation(where: str, benchmark: Benchmark, given: dict, switches) -> Generation:
    base = benchmark.generation
    if benchmark.faithful and switches["mmmu_decode"] == "beam_sample":
        base = benchmark.faithful
    for key, value in given.items():
        if key not in Generation._fields:
            known = ", ".join(Generation._fields)
            raise ValueError(f"{where}.generation has {key!r}, expected some of {known}")
        if value is not None:
            base = base._replace(**{key: value})
    return base


def question_hash(question: Question) -> str:
    """Of what is asked: id, prompt, and pictures (bytes, or a file's name and size)."""
    digest = hashlib.sha256(repr((question.id, question.prompt, len(question.images))).encode())
    for image in question.images:
        if isinstance(image, bytes):
            digest.update(hashlib.sha256(image).digest())
        else:
            path = epath.Path(image)
            digest.update(f"{path.name} {path.stat().length}".encode())
    return digest.hexdigest()
