"""The report of an evaluation: a page, a table for a model card, and intervals in results.json.

`write_report(out)` reads what `mgm-jax eval --out OUT` wrote (`finished`) and writes

    OUT/report.html    the page; opens from a disk, without a network
    OUT/report/        its predictions and small pictures
    OUT/table.md       the numbers as a Markdown table
    OUT/results.json   gets `intervals`, and `against` where there is a second evaluation
"""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

from mgm_jax.data.files import write_json, write_whole
from mgm_jax.evals import BENCHMARKS, get
from mgm_jax.evals.report.bootstrap import DRAWS
from mgm_jax.evals.report.finished import Finished, read, told_apart
from mgm_jax.evals.report.numbers import Numbers, count
from mgm_jax.evals.report.page import page
from mgm_jax.evals.report.rows import write_rows

THUMBNAIL = 480  # pixels of the longer side


def write_report(
    out,
    against=None,
    *,
    paper: str | None = None,
    draws: int = DRAWS,
    thumbnail: int = THUMBNAIL,
) -> dict[str, Any]:
    """Writes the report of the evaluation in `out`, compared with that in `against`; returns what
    `mgm-jax eval report` prints.

    `paper`: a published model, such as "MGM-7B", whose numbers stand beside ours. `draws`: of the
    bootstrap. `thumbnail`: pixels of the longer side of pictures; 0 leaves them out. ValueError or
    FileNotFoundError for what is missing or unknown.
    """
    known = variants()
    if paper is not None and paper not in known:
        raise ValueError(f"unknown published model {paper!r}, known: {', '.join(known)}")
    if draws < 1 or thumbnail < 0:
        raise ValueError(f"found {draws} draws and {thumbnail} pixels, expected at least 1 and 0")
    ours = read(out)
    other = None
    if against is not None:
        ours, other = told_apart(ours, read(against))
    numbers = [
        count(part, None if other is None else other.parts.get(name), draws)
        for name, part in tqdm(ours.parts.items(), desc="intervals", disable=None)  # in a terminal
    ]
    beside = ours.folder / "report"
    files = write_rows(numbers, beside, thumbnail)
    text = page(ours, other, numbers, files, paper)
    write_whole(ours.folder / "report.html", text.encode())
    write_whole(ours.folder / "table.md", table(ours, other, numbers, paper).encode())
    write_json(ours.folder / "results.json", with_intervals(ours, other, numbers))
    return {
        "report": str(ours.folder / "report.html"),
        "table": str(ours.folder / "table.md"),
        "against": None if other is None else str(other.folder),
        "benchmarks": {n.part.name: as_json(n) for n in numbers},
    }


def variants() -> list[str]:
    """The published models that some benchmark has numbers of."""
    return list(dict.fromkeys(v for name in BENCHMARKS for v in get(name).expected))


def as_json(n: Numbers) -> dict[str, Any]:
    """{metric: value, interval, and the difference from the other evaluation}."""
    return {
        name: {"value": value, "interval": list(n.interval[name])} | n.difference.get(name, {})
        for name, value in n.value.items()
    }


def with_intervals(ours: Finished, other: Finished | None, numbers: list[Numbers]) -> dict:
    """results.json with what the report counted."""
    benchmarks = {}
    for n in numbers:
        scores = {k: v for k, v in n.part.scores.items() if k not in ("intervals", "against")}
        scores["intervals"] = {name: list(ends) for name, ends in n.interval.items()}
        if other is not None and n.paired:
            counts = {"paired": n.paired, "gained": n.gained, "lost": n.lost}
            scores["against"] = {"checkpoint": other.results.get("checkpoint"), **counts}
            scores["against"]["summary"] = n.difference
        benchmarks[n.part.name] = scores
    return ours.results | {"benchmarks": benchmarks}


def table(ours: Finished, other: Finished | None, numbers: list[Numbers], paper) -> str:
    """The numbers as Markdown, for a model card."""
    head = ["benchmark", "metric", f"{ours.label} (95 % interval)"]
    head += [f"{paper} (published)"] if paper else []
    head += [other.label, "difference (95 % interval)"] if other else []
    lines = [head, ["---"] * len(head)]
    for n in numbers:
        for name, value in n.value.items():
            low, high = n.interval[name]
            cells = [n.part.benchmark.title, name, f"{value:.1f} ({low:.1f} to {high:.1f})"]
            if paper:
                published = n.part.benchmark.expected.get(paper, {})
                cells.append(f"{published[name]:.1f}" if name in published else "")
            if d := n.difference.get(name):
                change = f"{d['difference']:+.1f} ({d['low']:+.1f} to {d['high']:+.1f})"
                cells += [f"{d['other']:.1f}", change]
            lines.append(cells + [""] * (len(head) - len(cells)))
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")
