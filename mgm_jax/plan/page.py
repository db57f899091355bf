"""A report as one small HTML page: bars for memory and for time."""

from __future__ import annotations

from html import escape
from pathlib import Path

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;width:100%}td{padding:.15rem .5rem;vertical-align:middle}"
    "td.n{text-align:right;white-space:nowrap}.bar{background:#3b6ea5;height:.9rem}"
    "h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:1.6rem}.no{color:#b00020}"
)


def write(path: str | Path, title: str, report: dict) -> None:
    """Writes the page; needs no other file and no network."""
    verdict = "fits" if report["fits"] else "does not fit"
    parts = [
        f"<h1>{escape(title)} on {escape(report['topology'])}</h1>",
        f"<p class={'yes' if report['fits'] else 'no'}><b>{verdict}</b>: "
        f"{report['hbm_peak_gib']:.2f} of {report['hbm_limit_gib']} GiB a chip, "
        f"mesh {escape(str(report['mesh']))}</p>",
        "<h2>Memory of a chip</h2>",
        _bars(report["hbm_by_kind"], report["hbm_limit_gib"], "GiB", 1),
    ]
    if report.get("step_seconds_estimate"):
        seconds = report["step_seconds_estimate"]
        parts.append(
            f"<h2>Time of a step: {seconds * 1e3:.0f} ms, MFU {report['mfu_estimate']:.1%}</h2>"
        )
        parts += [
            f"<h3>By {what}</h3>" + _bars(report[key], seconds, "ms", 1e3)
            for what, key in (("kind", "split"), ("module", "modules"))
        ]
        waited = {k: v["exposed_seconds"] for k, v in report["collectives"].items()}
        parts.append("<h3>Collectives that are waited for</h3>")
        parts.append(_bars(waited, seconds, "ms", 1e3))
    body = "\n".join(parts)
    text = f"<!doctype html><meta charset=utf-8><title>{escape(title)}</title>"
    Path(path).write_text(f"{text}<style>{STYLE}</style><body>{body}</body>\n")


def _bars(values: dict[str, float], whole: float, unit: str, scale: float) -> str:
    rows = [
        f"<tr><td>{escape(name)}</td><td class=n>{value * scale:.2f} {unit}</td>"
        f"<td style='width:60%'><div class=bar style='width:{min(1, value / whole):.2%}'></div>"
        "</td></tr>"
        for name, value in values.items()
    ]
    return f"<table>{''.join(rows)}</table>"
