"""The report of `mgm-jax convert verify` as one HTML page that needs no other file."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mgm_jax.convert.verify import MODULES

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1000px; color: #222;
  padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0; width: 100% }
td, th { padding: .3em .8em; text-align: right } td:first-child, th:first-child { text-align: left }
tr { border-bottom: 1px solid #ddd } code { font-size: 90%; overflow-wrap: anywhere }
.good { color: #0a7d32 } .bad { color: #b3261e }
"""


def number(value: float | None, form: str = ".2e") -> str:
    return "not finite" if value is None else format(value, form)


def rows(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table; cells are HTML."""
    lines = ["<tr>" + "".join(f"<th>{h}" for h in head)]
    lines += ["<tr>" + "".join(f"<td>{cell}" for cell in line) for line in body]
    return f"<table>{''.join(lines)}</table>"


def verdict(ok: bool, good: str = "within", bad: str = "beyond") -> str:
    return f"<span class={'good' if ok else 'bad'}>{good if ok else bad}</span>"


def page(report: Mapping[str, Any]) -> str:
    """The page's text."""
    a, b = (html.escape(report[k]) for k in "ab")
    modules = rows(
        ("module", "max-abs", "limit", "relative error", "cosine", ""),
        (
            (
                MODULES[key],
                number(m["max_abs"]),
                number(m["limit"]),
                number(m["relative"]),
                number(m["cosine"], ".8f"),
                verdict(m["ok"]),
            )
            for key, m in report["modules"].items()
        ),
    )
    cases = rows(
        ("prompt", "positions", "same most likely token"),
        (
            (case, str(c["positions"]), f"{c['agree']} ({c['agree'] / c['positions']:.1%})")
            for case, c in report["cases"].items()
        ),
    )
    differing = "".join(f"<li>{html.escape(line)}" for line in report["config"])
    sums = rows(
        ("file of A's source", "sha256"),
        (
            (html.escape(name), f"<code>{html.escape(value)}</code>")
            for name, value in report["source"]["sha256"].items()
        ),
    )
    limit = report["tolerance"]
    title = verdict(report["ok"], "The two agree", "The two do not agree")
    return f"""<!doctype html><html lang=en><meta charset=utf-8>
<meta name=viewport content="width=device-width"><title>Parity report</title>
<style>{STYLE}</style><h1>Parity report</h1>
<h2>{title}</h2>
<p>A, the reference: <code>{a}</code>{" run by PyTorch (transformers)" if report["against"] else ""}
<br>B: <code>{b}</code></p>
<p>Both in float32 on the same fixed prompts ({html.escape(report["prompts"])}) and pictures. A
module is within tolerance if its largest difference is at most {limit["features"]:g} (logits
{limit["logits"]:g}) times the root mean square of the reference, where that is above 1. The
relative error is the norm of the difference by the norm of the reference.</p>
{modules}<h2>Next tokens</h2>{cases}
<h2>Weights</h2>{_weights(report["weights"])}
<h2>Configuration</h2>{f"<ul>{differing}</ul>" if differing else "<p>No difference.</p>"}
<h2>Source</h2>{sums}</html>
"""


def _weights(weights: Mapping[str, Any] | None) -> str:
    if weights is None:
        return "<p>Both sides ran the same files.</p>"
    text = f"<p>{weights['different']} of {weights['count']} tensors differ"
    text += f", {weights['other_dtype']} have another dtype.</p>"
    only = [(n, side.upper()) for side in "ab" for n in weights[f"only_in_{side}"]]
    text += "".join(f"<p><code>{html.escape(n)}</code> is only in {side}.</p>" for n, side in only)
    if not weights["worst"]:
        return text
    worst = (
        (f"<code>{html.escape(w['name'])}</code>", number(w["max_abs"]), number(w["relative"]))
        for w in weights["worst"]
    )
    return text + rows(("those that differ most", "max-abs", "relative error"), worst)
