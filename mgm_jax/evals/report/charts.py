"""Drawings of a report, as SVG: an interval on its scale, and the categories of a benchmark."""

from __future__ import annotations

import html
from urllib.parse import urlencode

from mgm_jax.evals.report.numbers import Group, Numbers

WIDTH, LABEL, BAR, STEP = 560, 190, 270, 24  # of a chart: whole, names, bars, a row's height


def text(value) -> str:
    """A value as text of a page."""
    return html.escape(str(value))


def link(part: int, **filters) -> str:
    """A link to predictions, as page.js reads it."""
    return f"#{urlencode({'part': part, **filters})}"


def strip(n: Numbers, name: str) -> str:
    """A dot with its interval on a scale that also holds the published numbers, as ticks."""
    published = [v[name] for v in n.part.benchmark.expected.values() if name in v]
    low, high = n.interval[name]
    ends = [*published, low, high, n.value[name]]
    ends += [n.difference[name]["other"]] if name in n.difference else []
    first, last = (min(ends), max(ends)) if published else (0.0, max(100.0, high))
    span = (last - first) or 1.0

    def x(value: float) -> str:
        return f"{4 + 172 * (value - first) / span:.1f}"

    ticks = "".join(
        f"<line class=tick data-model='{text(model)}' x1={x(v[name])} x2={x(v[name])} y1=4 y2=14>"
        f"<title>{text(model)}: {v[name]:g}</title></line>"
        for model, v in n.part.benchmark.expected.items()
        if name in v
    )
    theirs = ""
    if name in n.difference:
        theirs = _rhombus(float(x(n.difference[name]["other"])), 9)
    return (
        "<svg class=strip viewBox='0 0 180 18' width=180 height=18>"
        f"<line class=axis x1=4 x2=176 y1=9 y2=9 />{ticks}"
        f"<line class=interval x1={x(low)} x2={x(high)} y1=9 y2=9 />"
        f"{theirs}<circle class=dot cx={x(n.value[name])} cy=9 r=4 /></svg>"
    )


def diamond() -> str:
    """The other's mark, in a text."""
    return f"<svg class=mark viewBox='0 0 10 10' width=10 height=10>{_rhombus(5, 5)}</svg>"


def _rhombus(x: float, y: float) -> str:
    corners = f"M{x - 4:.1f} {y}L{x:.1f} {y - 4}L{x + 4:.1f} {y}L{x:.1f} {y + 4}z"
    return f"<path class=other d='{corners}' />"


def chart(i: int, n: Numbers, breakdown: str) -> str:
    """One breakdown of a benchmark as bars; each leads to its predictions."""
    rows = n.groups[breakdown]
    height = STEP * len(rows) + 18
    scale = "".join(
        f"<line class=axis x1={LABEL + BAR * v / 100} x2={LABEL + BAR * v / 100} y1=0 "
        f"y2={height - 16} /><text class=scale x={LABEL + BAR * v / 100} y={height - 3}>{v}</text>"
        for v in (0, 25, 50, 75, 100)
    )
    bars = "".join(_bar(i, breakdown, r, group) for r, group in enumerate(rows))
    title = f"{text(n.part.benchmark.title)} <small>{text(breakdown)}</small>"
    return (
        f"<figure class=chart><h3>{title}</h3><svg viewBox='0 0 {WIDTH} {height}' role=img>"
        f"{scale}{bars}</svg></figure>"
    )


def _bar(i: int, breakdown: str, r: int, g: Group) -> str:
    def x(value: float) -> float:
        return round(LABEL + BAR * min(100.0, value) / 100, 1)

    middle, length = STEP * r + STEP / 2, x(g.value) - LABEL
    name = g.name if len(g.name) <= 26 else f"{g.name[:25]}…"
    theirs = "" if g.other is None else _rhombus(x(g.other), middle)
    said = f"{g.name}: {g.value:.1f} ({g.low:.1f} to {g.high:.1f}), {g.count:,} questions"
    said += "" if g.other is None else f"; the other {g.other:.1f}"
    return (
        f"<a href='{text(link(i, group=f'{breakdown}:{g.name}'))}'><title>{text(said)}</title>"
        f"<rect class=hit x=0 y={STEP * r} width={WIDTH} height={STEP} />"
        f"<text class=name x={LABEL - 8} y={middle + 4}>{text(name)}</text>"
        f"<rect class=bar x={LABEL} y={middle - 7} width={length:.1f} height=14 />"
        f"<line class=whisker x1={x(g.low)} x2={x(g.high)} y1={middle} y2={middle} />{theirs}"
        f"<text class=value x={LABEL + BAR + 46} y={middle + 4}>{g.value:.1f}</text>"
        f"<text class=count x={WIDTH - 2} y={middle + 4}>{g.count:,}</text></a>"
    )
