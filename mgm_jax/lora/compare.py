"""Before and after: a base and its adapter on held-out records, as numbers and as a page."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Sequence
from pathlib import Path

from mgm_jax.api import LoadedModel, Request, load, with_adapter
from mgm_jax.data.images import load_image
from mgm_jax.data.records import Record
from mgm_jax.data.thumbnails import data_uri
from mgm_jax.held_out import measure
from mgm_jax.lora import directory as adapter_directory

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 60em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .4em .9em; text-align: left }
tr { border-bottom: 1px solid #ddd } img { display: block; max-width: 12em; border-radius: 4px }
.right { color: #0a7d32 } .wrong { color: #b3261e }
"""


@dataclasses.dataclass(frozen=True)
class Question:
    """The first question of a record and the answer that it has there."""

    record: Record
    text: str
    answer: str

    def request(self) -> Request:
        return Request([("user", self.text)], self.record.images)


def questions(records: Sequence[Record]) -> list[Question]:
    """ValueError, naming the record, for one that does not begin with a question and its answer."""
    found = []
    for record in records:
        turns = record.conversations
        if [t.get("from") for t in turns[:2]] != ["human", "gpt"]:
            raise ValueError(f"{record.where}: expected a first turn of human, then gpt")
        found.append(Question(record, turns[0]["value"], turns[1]["value"].strip()))
    return found


def compare(
    adapter: str | Path,
    records: Sequence[Record],
    *,
    base: str | Path | None = None,
    length: int = 2048,
    max_new_tokens: int = 64,
    dtype: str = "float32",
) -> tuple[dict, list[tuple[Question, str, str]]]:
    """({"questions", "accuracy": [before, after], "loss": [before, after]}, each question with the
    answers of base and adapter).

    Accuracy: greedy answers that are the record's first one, letter by letter. Loss: of the answers
    of whole records.
    """
    asked = questions(records)
    plain = load(adapter_directory.find_base(adapter, base), dtype=dtype)
    tuned = with_adapter(plain, adapter)

    def answers(model: LoadedModel) -> list[str]:
        requests = [q.request() for q in asked]
        return model.generate(requests, max_new_tokens=max_new_tokens, progress=True)

    before, after = answers(plain), answers(tuned)
    found = {
        "questions": len(asked),
        "accuracy": [_share(asked, given) for given in (before, after)],
        "loss": [measure(model, records, length)[0] for model in (plain, tuned)],
    }
    return found, list(zip(asked, before, after, strict=True))


def _share(asked: Sequence[Question], given: Sequence[str]) -> float:
    return sum(q.answer == a for q, a in zip(asked, given, strict=True)) / len(asked)


def page(found: dict, answers: Sequence[tuple[Question, str, str]]) -> str:
    """An HTML page of the numbers and of `answers`."""
    rows = []
    for question, *given in answers:
        pictures = "".join(
            f"<img src='{data_uri(load_image(p), 240)}'>" for p in question.record.images
        )
        cells = "".join(
            f"<td class={'right' if a == question.answer else 'wrong'}>{html.escape(a) or '-'}"
            for a in given
        )
        text = html.escape(question.text.replace("<image>", "").strip())
        rows.append(f"<tr><td>{pictures}<td>{text}<td>{html.escape(question.answer)}{cells}")
    (one, two), (high, low) = found["accuracy"], found["loss"]
    return f"""<!doctype html><meta charset=utf-8><title>Before and after</title>
<style>{STYLE}</style><h1>Before and after</h1>
<p>{found["questions"]} held-out questions, answered greedily and compared letter by letter.</p>
<table><tr><th><th>before<th>after
<tr><td>right answers<td>{one:.1%}<td>{two:.1%}
<tr><td>held-out loss<td>{high:.3f}<td>{low:.3f}</table>
<table><tr><th>picture<th>question<th>expected<th>before<th>after{"".join(rows)}</table>
"""
