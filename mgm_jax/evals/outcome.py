"""What an evaluation leaves in OUT/<name>/: predictions, items, verdicts, scores, submission.

`predictions.jsonl` is what the original's runner would have written, and what `eval score` reads;
`items.jsonl` says of each question what was asked and how it was answered; `verdicts.json` how the
scorer read it; `scores.json` is the task's part of `results.json`. Imports no jax.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from mgm_jax.data.files import write_json, write_whole
from mgm_jax.evals.answers import Answer
from mgm_jax.evals.cli import as_json
from mgm_jax.evals.common import Scores
from mgm_jax.evals.tasks import Task

SUFFIXES = {b"\x89PNG": "png", b"\xff\xd8": "jpg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}


def write(task: Task, answers: Mapping[int, Answer], folder, model_id: str, judge=None) -> dict:
    """Writes all files of a task whose questions are all answered; what `results.json` has of it.

    A question with an error counts as answered by nothing, and `notes` says so.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    given = [answers[i] for i in range(task.asked)]
    texts = [a.text for a in given]
    lines = task.lines(texts, model_id)
    _write_lines(folder / "predictions.jsonl", lines)
    _write_lines(folder / "items.jsonl", (_item(task, a, folder) for a in given))
    if not task.scored:
        scores = Scores({}, [], "", ["not scored here"])
    elif task.benchmark.needs_judge and judge is None:
        command = f"mgm-jax eval score {task.benchmark.name} --predictions"
        note = f"not scored: it needs a judge, see {command} {folder / 'predictions.jsonl'}"
        scores = Scores({}, [], "", [note])
    else:
        scores = task.score(texts, model_id, judge)
    if errors := sum(a.error is not None for a in given):
        scores.notes.append(f"{errors} questions could not be asked and count as answered by ''")
    if scores.verdicts:
        write_json(folder / "verdicts.json", scores.verdicts)
    found = as_json(task.benchmark, scores)
    found["summary"] = found["summary"] if scores.verdicts else {}
    found |= {"questions": task.asked, "errors": errors}
    write_json(folder / "scores.json", found)
    task.submit(texts, model_id, folder)
    return found


def _item(task: Task, answer: Answer, folder: epath.Path) -> dict[str, Any]:
    question = task.questions[answer.index]
    found = {"index": answer.index, "question_id": question.id, "prompt": question.prompt}
    found["images"] = [_picture(image, folder) for image in question.images]
    rest = answer._asdict()
    return found | {k: rest[k] for k in ("text", "tokens", "finish", "margin", "error")}


def _picture(image, folder: epath.Path) -> str:
    """The path of a picture; bytes are saved as images/<sha256>.<suffix>, relative to `folder`."""
    if not isinstance(image, bytes):
        path = epath.Path(image)
        return str(path if "://" in str(path) else path.absolute())
    suffix = next((s for magic, s in SUFFIXES.items() if image.startswith(magic)), "bin")
    name = f"images/{hashlib.sha256(image).hexdigest()}.{suffix}"
    if not (folder / name).exists():
        (folder / "images").mkdir(exist_ok=True)
        write_whole(folder / name, image)
    return name


def _write_lines(path: epath.Path, rows: Iterable[Mapping]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_whole(path, text.encode())
