"""The contract of a benchmark: data, prompt, postprocessing, metric and the published numbers.

A benchmark is a value (`Benchmark`), not a class to inherit from. What runs it asks `questions`,
writes one `line` for each answer, and hands the lines to `score`; what reports it reads `Scores`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from mgm_jax.evals.files import Record, read_records
from mgm_jax.evals.files import field as get_field


class Question(NamedTuple):
    """What is asked. `prompt` has neither `<image>` nor the chat template around it."""

    id: str | int  # `question_id` of its prediction line
    prompt: str
    images: tuple[Any, ...] = ()  # paths, or the bytes of picture files
    meta: Mapping[str, Any] = {}  # category, options, whatever the line or a report needs


class Generation(NamedTuple):
    """How answers are drawn; the default is greedy."""

    max_new_tokens: int
    temperature: float = 0.0
    num_beams: int = 1
    top_k: int | None = None
    seed: int | None = None


class Ask(NamedTuple):
    """What a judge is asked about one question."""

    prompt: str
    id: str | int = ""  # of the question, for messages
    system: str | None = None
    temperature: float = 0.0
    max_tokens: int = 256
    readable: Callable[[str], bool] = bool  # whether a reply is a judgement
    cut: bool = False  # a prompt that is too long may lose its beginning


class Judge(Protocol):
    """A language model that reads answers. One that has `many(asks) -> replies`, as
    `judge.HttpJudge`, is asked all at once; `name` says in results which it is."""

    def __call__(
        self,
        prompt: str,
        *,
        system: str | None = None,
        temperature: float = 0.0,
        max_tokens: int = 256,
    ) -> str: ...


def ask_judge(judge: Judge, asks: Sequence[Ask]) -> list[str]:
    """A judge's replies, in order."""
    if hasattr(judge, "many"):
        return judge.many(asks)
    return [
        judge(a.prompt, system=a.system, temperature=a.temperature, max_tokens=a.max_tokens)
        for a in asks
    ]


def judge_name(judge: Judge) -> str:
    """Which model judged, for results."""
    return getattr(judge, "name", type(judge).__name__)


@dataclass
class Scores:
    """What scoring gives.

    result: JSON values under the keys that the original's scorer writes or prints.
    verdicts: one for each scored answer, in order: `question_id`, `score` in [0, 1], `parsed`,
        `answer`, `category`, and what else the benchmark knows. `cluster`, where given, names what
        belongs together when verdicts are drawn again (two questions about one picture in MME).
        `asked`, where given, is how the prompt begins, which tells questions of one id apart;
        else the i-th verdict of an id is about the i-th question of it.
    printed: the lines that the original's scorer prints.
    notes: what a reader of the numbers should know, such as questions that were left out.
    """

    result: dict[str, Any]
    verdicts: list[dict[str, Any]]
    printed: str = ""
    notes: list[str] = field(default_factory=list)


def accuracy(verdicts: list[dict[str, Any]]) -> dict[str, float]:
    """The mean score in percent, as `accuracy`."""
    return {"accuracy": 100.0 * mean(v["score"] for v in verdicts)}


def mean(values) -> float:
    """The mean; 0 of nothing."""
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def grouped(verdicts: list[dict[str, Any]], name: str) -> dict[Any, list[dict[str, Any]]]:
    """Verdicts by what they have as `name`, in the order of its first appearance; without None."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for v in verdicts:
        if v[name] is not None:
            groups.setdefault(v[name], []).append(v)
    return groups


def mean_scores(verdicts: list[dict[str, Any]], name: str) -> dict[Any, float]:
    """The mean score of each of the groups by `name`."""
    return {g: mean(v["score"] for v in inside) for g, inside in grouped(verdicts, name).items()}


def vqa_line(question: Question, text: str, model_id: str) -> dict[str, Any]:
    """The prediction line that most of the original's runners write (MGM_SPEC 8.1); `answer_id` is
    a function of the rest, so that an evaluation writes the same file again."""
    content = repr((question.id, question.prompt, text, model_id))
    return {
        "question_id": question.id,
        "prompt": question.prompt,
        "text": text,
        "answer_id": uuid.uuid5(uuid.NAMESPACE_OID, content).hex,
        "model_id": model_id,
        "metadata": {},
    }


def question_id(record: Record) -> str | int:
    """The key of a prediction line where ids are unique."""
    return get_field(record, "question_id", (str, int))


def id_and_prompt(record: Record) -> tuple[str | int, str]:
    """The key where several questions share an id (TextVQA's and MME's ids are pictures)."""
    return question_id(record), get_field(record, "prompt")


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    questions(question_file, images, options): its questions, each checked when it is reached.
    score(predictions, annotations, options, judge): predictions are what `read` gave.
    submission(predictions, annotations, path, options): writes what its server or the original's
        converter writes; None where there is no such file.
    summary(verdicts): the numbers to compare with `expected`, in the units they are published in; a
        function of verdicts alone, so that a report can draw them again.
    key(line): tells prediction lines apart; a question's own is that of its `line`.
    options: name -> default of what `questions`, `score` and `submission` let one choose.
    needs: what --annotations must be; None: predictions carry their answers.
    """

    name: str
    title: str
    questions: Callable[[Any, Any, dict[str, Any]], Iterator[Question]]
    score: Callable[[list[Record], Any, dict[str, Any], Judge | None], Scores]
    generation: Generation
    needs: str | None
    expected: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    tolerance: Mapping[str, float] = field(default_factory=dict)
    faithful: Generation | None = None  # the original's settings where they are not the default
    summary: Callable[[list[dict[str, Any]]], dict[str, float]] = accuracy
    postprocess: Callable[[str], str] = str.strip
    line: Callable[[Question, str, str], dict[str, Any]] = vqa_line
    key: Callable[[Record], Any] = question_id
    read: Callable[[Any], list[Record]] = read_records
    submission: Callable[[list[Record], Any, Any, dict[str, Any]], None] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    folders: bool = False  # a folder of predictions is one set, not one set a file
    asks_judge: bool = False  # `score` has a use for a judge
    needs_judge: bool = False  # there is no score without one
    breakdowns: tuple[str, ...] = ("category",)  # what verdicts are grouped by in a report

    def chosen(self, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The options with `given` in place; ValueError for a name or type that is not known."""
        options = dict(self.options)
        for name, value in (given or {}).items():
            if name not in options:
                known = ", ".join(options) or "none"
                raise ValueError(f"{self.name} has no option {name!r}, known: {known}")
            default = options[name]
            if default is not None and type(value) is not type(default) and value is not None:
                raise ValueError(
                    f"{self.name}: option {name} is {value!r}, expected {type(default).__name__}"
                )
            options[name] = value
        return options

    def run(self, predictions, annotations=None, judge: Judge | None = None, **options) -> Scores:
        """Reads and scores a file (or folder) of predictions."""
        if self.needs and annotations is None:
            raise ValueError(f"{self.name} needs --annotations: {self.needs}")
        if judge is not None and not self.asks_judge:
            raise ValueError(f"{self.name} is scored by rules and asks no judge: leave it out")
        records = self.read(predictions)
        if not records:
            raise ValueError(f"{predictions}: found no prediction")
        return self.score(records, annotations, self.chosen(options), judge)
