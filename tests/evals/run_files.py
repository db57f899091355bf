"""The files of a finished evaluation, as `mgm-jax eval --out` leaves them, without a model."""

import json
from pathlib import Path

from case_files import dump, lines
from eval_cases import build

from mgm_jax.evals import get
from mgm_jax.evals.cli import as_json


def write_run(out, folder, names, *, model="stub", changes=None, limit=None):
    """Evaluations of twenty questions each, whose answers are the cases' replies.

    `changes`: {name: {place: reply}} of other replies. The cases lie in `folder`, which several
    runs may share. Returns `out`.
    """
    out, results = Path(out), {}
    for name in names:
        case = build(name, Path(folder) / name) if not (Path(folder) / name).exists() else None
        results[name] = _part(out, Path(folder), name, case, model, (changes or {}).get(name, {}))
    questions = sum(len((out / n / "items.jsonl").read_text().splitlines()) for n in names)
    dump(
        out / "results.json",
        {
            "checkpoint": f"/models/{model}",
            "model": model,
            "template": "gemma",
            "benchmarks": results,
            "questions": questions,
            "errors": 0,
            "seconds": 1.5,
        },
    )
    return out


CASES = {}


def _part(out, folder, name, case, model, changes):
    case = CASES.setdefault((folder, name), case)
    benchmark = get(name)
    options = benchmark.chosen(case.options)
    questions = list(benchmark.questions(case.questions, case.images, options))
    replies = [changes.get(i, reply) for i, reply in enumerate(case.replies)]
    given = [
        benchmark.line(q, benchmark.postprocess(reply), model)
        for q, reply in zip(questions, replies, strict=True)
    ]
    file = lines(out / name / "predictions.jsonl", given)
    items = []
    for i, (q, reply) in enumerate(zip(questions, replies, strict=True)):
        images = []
        for j, image in enumerate(q.images):
            if isinstance(image, bytes):
                path = out / name / "images" / f"{i}_{j}.png"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(image)
                image = path.relative_to(out / name)
            images.append(str(image))
        item = {"index": i, "question_id": q.id, "prompt": q.prompt, "images": images}
        item |= {"text": reply, "tokens": 3, "finish": "stop", "margin": 0.25, "error": None}
        items.append(item)
    lines(out / name / "items.jsonl", items)
    scores = benchmark.run(file, case.annotations, case.judge, **case.options)
    dump(out / name / "verdicts.json", scores.verdicts)
    found = as_json(benchmark, scores)
    dump(out / name / "scores.json", found)
    return json.loads(json.dumps(found))
