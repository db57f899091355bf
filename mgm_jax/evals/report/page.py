"""The page of a report: results, categories, and a place for its predictions (page.js)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources

from mgm_jax.data.page_style import BASE
from mgm_jax.evals.report.charts import chart, diamond, link, strip, text
from mgm_jax.evals.report.finished import Finished
from mgm_jax.evals.report.numbers import Numbers


def page(
    ours: Finished,
    other: Finished | None,
    numbers: Sequence[Numbers],
    files: Sequence[str],
    paper: str | None,
) -> str:
    """The page's text. `files`: the script of each benchmark's rows."""
    title = f"Evaluation of {ours.label}"
    parts = [
        {"name": n.part.name, "title": n.part.benchmark.title, "rows": len(n.part.rows), "file": f}
        for n, f in zip(numbers, files, strict=True)
    ]
    data = {"parts": parts, "label": ours.label, "other": other and other.label}
    charts = "".join(chart(i, n, name) for i, n in enumerate(numbers) for name in n.groups)
    return f"""<!doctype html><html lang=en><meta charset=utf-8>
<meta name=viewport content="width=device-width,initial-scale=1">
<title>{text(title)}</title><style>{BASE}{_file("page.css")}</style>
<header><h1>{text(title)}</h1><p>{_subject(ours)}</p>
{f"<p>against {text(other.label)} {_subject(other)}</p>" if other else ""}
<nav><a href=#results>Results</a><a href=#categories>Categories</a>
<a href=#predictions>Predictions</a></nav></header>
<section id=results><h2>Results</h2>{results(ours, other, numbers, paper)}</section>
<section id=categories><h2>Categories <small>mean score in percent, 95 % interval, questions{
        f"; {diamond()} {text(other.label)}, on the questions of both" if other else ""
    }</small></h2>
<div class=charts>{charts or "<p class=dim>No benchmark here has categories.</p>"}</div></section>
{_file("predictions.html")}
<script type=application/json id=report>{_json(data)}</script>
<script>{_file("page.js")}</script></html>
"""


def _file(name: str) -> str:
    return resources.files("mgm_jax.evals.report").joinpath(name).read_text(encoding="utf-8")


def _json(value) -> str:
    """JSON that may stand in a <script>."""
    return json.dumps(value).replace("<", "\\u003c")


def _subject(run: Finished) -> str:
    facts = [f"<code>{text(run.results.get('checkpoint', run.folder))}</code>"]
    facts += [f"template {text(run.results['template'])}"] if "template" in run.results else []
    asked = sum(len(part.rows) for part in run.parts.values())
    return f"<span class=dim>{', '.join([*facts, f'{asked:,} questions'])}</span>"


def results(
    ours: Finished, other: Finished | None, numbers: Sequence[Numbers], paper: str | None
) -> str:
    """The table of all numbers; page.js fills what depends on the published model."""
    published = dict.fromkeys(v for n in numbers for v in n.part.benchmark.expected)
    choices = "".join(
        f"<option{' selected' if v == paper else ''}>{text(v)}</option>" for v in published
    )
    head = f"<th>benchmark<th>metric<th class=n>{text(ours.label)}<th>95 % interval"
    if published:
        head += "<th class=n><select id=paper title='published model'><option value=''>published"
        head += f"</option>{choices}</select>"
    if other:
        head += f"<th class=n>{text(other.label)}<th class=n>difference<th>gained, lost"
    body = "".join(_result(i, n, bool(published), other) for i, n in enumerate(numbers))
    notes = "".join(
        f"<li><b>{text(n.part.benchmark.title)}</b>: {text(note)}"
        for n in numbers
        for note in n.part.scores.get("notes", [])
    )
    return (
        f"<div class=wide><table><thead><tr>{head}</thead><tbody>{body}</tbody></table></div>"
        f"{notes and f'<ul class=dim>{notes}</ul>'}"
    )


def _result(i: int, n: Numbers, published: bool, other: Finished | None) -> str:
    title = f"<a href='{link(i)}'>{text(n.part.benchmark.title)}</a>"
    if n.part.name != n.part.benchmark.name:
        title += f" <small>{text(n.part.name)}</small>"
    title = f"<td rowspan={max(1, len(n.value))}>{title}<small>{_counts(n)}</small>"
    rows = []
    for name, value in n.value.items():
        low, high = n.interval[name]
        cells = f"<td>{text(name)}<td class='n big'>{value:.1f}<td>{strip(n, name)}"
        cells += f"<small>{low:.1f} to {high:.1f}</small>"
        if published:
            table = {m: v[name] for m, v in n.part.benchmark.expected.items() if name in v}
            tolerance = n.part.benchmark.tolerance.get(name)
            facts = {"value": value, "tolerance": tolerance, "of": table}
            cells += f"<td class='n paper' data-paper='{text(json.dumps(facts))}'>"
        if other:
            cells += _difference(i, n, name)
        rows.append(f"<tr>{title if not rows else ''}{cells}")
    span = 3 + published + 3 * bool(other)
    return "".join(rows) or f"<tr>{title}<td colspan={span} class=dim>not scored"


def _counts(n: Numbers) -> str:
    errors = sum(bool(row.item.get("error")) for row in n.part.rows)
    counts = f"{len(n.part.rows):,} questions"
    return counts + (f", {errors:,} could not be asked" if errors else "")


def _difference(i: int, n: Numbers, name: str) -> str:
    d = n.difference.get(name)
    if d is None:
        return "<td colspan=3 class=dim>no questions in common"
    sure = "good" if d["low"] > 0 else "bad" if d["high"] < 0 else "dim"
    cells = f"<td class=n>{d['other']:.1f}<td class=n>"
    if d["difference"] == d["low"] == d["high"] == 0:
        cells += "<span class=dim>none</span>"
    else:
        cells += f"<b class={sure}>{d['difference']:+.1f}</b>"
        cells += f"<small>{d['low']:+.1f} to {d['high']:+.1f}</small>"
    if name != next(iter(n.value)):
        return f"{cells}<td>"
    counts = ", ".join(
        f"<a class={kind} href='{link(i, change=what)}'>{count:,} {what}</a>"
        if count
        else f"<span class=dim>0 {what}</span>"
        for kind, what, count in (("good", "gained", n.gained), ("bad", "lost", n.lost))
    )
    return f"{cells}<td>{counts}<small>{n.paired:,} questions in both</small>"
