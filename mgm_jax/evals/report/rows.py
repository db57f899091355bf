"""The predictions of a report: a script of each benchmark's rows, and small pictures.

Scripts, since a page from a disk may not read other files. What a model said is data in them, and
the page shows it as text.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

from mgm_jax.data.files import whole_file, write_whole
from mgm_jax.evals.report.finished import Row
from mgm_jax.evals.report.numbers import Numbers, values

# Of a verdict, what has a place of its own on the page.
PLACED = ("question_id", "score", "parsed", "answer", "cluster", "asked", "prompt")


def write_rows(numbers: Sequence[Numbers], folder: epath.Path, thumbnail: int) -> list[str]:
    """Writes folder/rows_<i>.js of the i-th benchmark and folder/pictures/; returns their names,
    relative to the folder's parent."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {}
    if thumbnail:
        wanted = dict.fromkeys(p for n in numbers for row in n.part.rows for p in paths(n, row))
        pictures = write_pictures(wanted, folder / "pictures", thumbnail)
    names = []
    for i, n in enumerate(numbers):
        found = [
            as_row(n, row, other, pictures)
            for row, other in zip(n.part.rows, n.others, strict=True)
        ]
        text = f"mgmRows({i}, {json.dumps(found, separators=(',', ':'))});\n"
        write_whole(folder / f"rows_{i}.js", text.encode())
        names.append(f"{folder.name}/rows_{i}.js")
    return names


def as_row(n: Numbers, row: Row, other: Row | None, pictures: dict[str, str]) -> dict[str, Any]:
    """What the page knows of a question."""
    item, verdict = row.item, row.verdict or {}
    shown = paths(n, row)
    return {
        "id": str(item["question_id"]),
        "prompt": item["prompt"],
        "files": shown,
        "pictures": [pictures.get(p) for p in shown],
        "finish": item.get("finish"),
        "tokens": item.get("tokens"),
        "margin": item.get("margin"),
        "answer": verdict.get("answer"),
        "groups": {name: values(verdict, name) for name in n.groups},
        "more": {k: v for k, v in verdict.items() if k not in (*PLACED, *n.groups)},
        **_said(row),
        "other": None if other is None else _said(other),
    }


def _said(row: Row) -> dict[str, Any]:
    verdict = row.verdict or {}
    said = {"text": row.item.get("text") or "", "error": row.item.get("error")}
    return said | {"score": verdict.get("score"), "parsed": verdict.get("parsed")}


def paths(n: Numbers, row: Row) -> list[str]:
    """The pictures of a question; a relative path is one in the benchmark's folder."""
    names = row.item.get("images") or []
    return [name if "://" in name else os.fspath(n.part.folder / name) for name in names]


def write_pictures(wanted: Iterable[str], folder: epath.Path, side: int) -> dict[str, str]:
    """Small WebP pictures under names of their paths and sizes; {path: name on the page}. Those
    that are there already are kept, and those that cannot be read are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = list(wanted)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        made = pool.map(lambda path: _thumbnail(path, folder, side), wanted)
        names = dict(zip(wanted, made, strict=True))
    place = f"{folder.parent.name}/{folder.name}"
    return {path: f"{place}/{name}" for path, name in names.items() if name}


def _thumbnail(path: str, folder: epath.Path, side: int) -> str | None:
    from PIL import Image

    from mgm_jax.data.images import ImageError, load_image

    name = f"{hashlib.sha256(f'{path} {side}'.encode()).hexdigest()[:24]}.webp"
    if (folder / name).exists():
        return name
    try:
        picture = load_image(path)
    except ImageError:
        return None
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    with whole_file(folder / name) as local:
        picture.save(local, "WEBP", quality=80)
    return name
