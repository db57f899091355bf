"""The report of `mgm-jax data check` as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

from mgm_jax.data.check_report import COUNTED, Report, totals
from mgm_jax.data.findings import KINDS, Finding, printable
from mgm_jax.data.images import load_image
from mgm_jax.data.records import Source

THUMBNAIL = 144  # pixels of the longer side
STYLE = """
:root { color-scheme: light dark; --ink: #1d2125; --soft: #5d6670; --line: #dfe3e7; --page: #fff;
  --card: #f5f7f9; --error: #b3261e; --warning: #8a5a00; --good: #0a7d32 }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --soft: #9aa4ae; --line: #363c43;
  --page: #16191c; --card: #1f2428; --error: #ff8a80; --warning: #f0bd5a; --good: #6fd08c } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2.5em auto; max-width: 1080px;
  padding: 0 1.2em; color: var(--ink); background: var(--page) }
h1 { font-size: 1.7em; margin: 0 } h2 { font-size: 1.2em; margin: 2em 0 .3em }
h3 { font-size: 1.05em; margin: 2.2em 0 .2em } p { margin: .2em 0 }
.verdict { font-size: 1.15em; font-weight: 600 } .soft { color: var(--soft) }
.error { color: var(--error) } .warning { color: var(--warning) } .good { color: var(--good) }
code { font: 13px/1.45 ui-monospace, monospace; overflow-wrap: anywhere }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: .6em }
dl div { background: var(--card); border-radius: 6px; padding: .5em .8em }
dt { color: var(--soft); font-size: .85em } dd { margin: 0; font-variant-numeric: tabular-nums }
table { border-collapse: collapse; width: 100%; margin: .6em 0 }
th { color: var(--soft); font-weight: 500; font-size: .85em } a { color: inherit }
td, th { padding: .35em .8em .35em 0; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: middle }
.number { text-align: right; font-variant-numeric: tabular-nums; width: 6em }
.thumbnail { width: 144px } img { display: block; max-width: 144px; max-height: 144px;
  border-radius: 3px }
.none { display: grid; place-items: center; width: 142px; height: 44px; text-align: center;
  border: 1px dashed var(--soft); border-radius: 3px; color: var(--soft); font-size: .8em }
"""


def page(
    summary: Mapping[str, Any],
    report: Report,
    sources: Sequence[Source],
    paths: Sequence[str],
) -> str:
    """The page's text; `paths` are the sources' as the user named them."""
    verdict = "<p class='verdict good'>No errors</p>"
    if summary["errors"]:
        bad = f"in {summary['bad_records']:,} of {summary['records']:,} records"
        verdict = f"<p class='verdict error'>{summary['errors']:,} errors {bad}</p>"
    checked = "<br>".join(
        f"{_code(printable(path))} <span class=soft>{len(source):,} records, "
        f"fingerprint {html.escape(source.fingerprint[:16])}</span>"
        for path, source in zip(paths, sources, strict=True)
    )
    cards = "".join(f"<div><dt>{name}<dd>{value}</div>" for name, value in totals(summary))
    kinds = _table(
        (("", "kind"), ("", "level"), ("number", "findings")),
        (
            (
                f"<a href='#{kind}'>{html.escape(KINDS[kind].title)}</a>",
                _level(report, kind),
                f"{count:,}",
            )
            for kind, count in summary["kinds"].items()
        ),
    )
    folders = _table(
        (("", "folder"), *(("number", name) for name in COUNTED)),
        (
            (f"<code>{html.escape(name)}</code>", *(f"{n:,}" for n in counts.values()))
            for name, counts in summary["sources"].items()
        ),
    )
    sections = "".join(_section(kind, report, sources) for kind in summary["kinds"])
    return f"""<!doctype html><html lang=en><meta charset=utf-8>
<meta name=viewport content="width=device-width"><title>Data check</title>
<style>{STYLE}</style><h1>Data check</h1>{verdict}<p>{checked}</p>
<dl>{cards}</dl>
<h2>Findings</h2>{kinds if summary["kinds"] else "<p>None.</p>"}
<h2>Folders</h2><p class=soft>The top folder of a record's first picture.</p>{folders}
{sections}</html>
"""


def _section(kind: str, report: Report, sources: Sequence[Source]) -> str:
    row, examples, count = KINDS[kind], report.examples[kind], report.kinds[kind]
    shown = f"the first {len(examples):,} of {count:,}" if len(examples) < count else f"{count:,}"
    columns, rows = [("", "")], [[_code(finding.text)] for finding in examples]
    if any(finding.picture >= 0 for finding in examples):
        columns.insert(0, ("thumbnail", ""))
        rows = [[_thumbnail(f, sources), *cells] for f, cells in zip(examples, rows, strict=True)]
    return f"""<h3 id={kind}>{html.escape(row.title)} {_level(report, kind)}
<span class=soft>{shown}</span></h3>
<p>{html.escape(row.meaning)} <span class=soft>What to do: {html.escape(row.remedy)}.</span></p>
{_table(columns, rows)}"""


def _level(report: Report, kind: str) -> str:
    return f"<span class={report.levels[kind]}>{report.levels[kind]}</span>"


def _code(text: str) -> str:
    return f"<code>{html.escape(text)}</code>"


def _table(columns: Iterable[tuple[str, str]], rows: Iterable[Sequence[str]]) -> str:
    """A table of HTML cells; a column has a class and a head. No row of heads if all are empty."""
    columns = tuple(columns)
    heads = "".join(f"<th class='{c}'>{head}" for c, head in columns)
    lines = [f"<tr>{heads}"] if any(head for _, head in columns) else []
    for row in rows:
        cells = zip(columns, row, strict=True)
        lines.append("<tr>" + "".join(f"<td class='{c}'>{cell}" for (c, _), cell in cells))
    return f"<table>{''.join(lines)}</table>"


def _thumbnail(finding: Finding, sources: Sequence[Source]) -> str:
    """An <img> of the picture that a finding is about, or a box that says why there is none."""
    if finding.picture < 0:
        return ""
    box = f"<div class=none>{html.escape(KINDS[finding.kind].title)}</div>"
    if finding.kind == "too_many_pixels":
        return box
    try:
        record = sources[finding.source][finding.number]
        picture = load_image(record.images[finding.picture])
    except (ValueError, OSError):
        return box
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    data = base64.b64encode(file.getvalue()).decode()
    return f"<img alt='' src='data:image/jpeg;base64,{data}'>"
