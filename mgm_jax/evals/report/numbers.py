"""What a report counts of one benchmark: its numbers, their intervals, categories, differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mgm_jax.evals.common import mean
from mgm_jax.evals.report.bootstrap import differences, group_interval, intervals
from mgm_jax.evals.report.finished import Part, Row, pair


@dataclass(frozen=True)
class Group:
    """Verdicts of one category: the mean score in percent, its interval, the other's mean."""

    name: str
    count: int
    value: float
    low: float
    high: float
    other: float | None


@dataclass(frozen=True)
class Numbers:
    """What is counted of one benchmark.

    value, interval: the benchmark's `summary`, and the 95 % of each; {} without verdicts.
    difference: {metric: {other, difference, low, high}} over the `paired` questions that the other
        evaluation has, too; `other` is the other's number over all of its questions.
    gained, lost: paired questions with a higher and a lower score than the other's.
    groups: {breakdown: its groups}.
    """

    part: Part
    others: Sequence[Row | None]
    value: Mapping[str, float]
    interval: Mapping[str, tuple[float, float]]
    difference: Mapping[str, Mapping[str, float]]
    paired: int
    gained: int
    lost: int
    groups: Mapping[str, list[Group]]


def count(part: Part, other: Part | None, draws: int) -> Numbers:
    """The numbers of a benchmark, and their differences from another evaluation's."""
    if other is not None and other.benchmark is not part.benchmark:
        raise ValueError(
            f"{other.folder}: this is {other.benchmark.name}, expected {part.benchmark.name} as in "
            f"{part.folder}"
        )
    others = [None] * len(part.rows) if other is None else pair(part, other)
    pairs = paired_verdicts(part, others)
    summary = part.benchmark.summary
    difference: dict[str, Mapping[str, float]] = {}
    if pairs:
        theirs = summary(other.verdicts)
        found = differences(summary, *map(list, zip(*pairs, strict=True)), draws)
        difference = {name: {"other": theirs[name]} | d for name, d in found.items()}
    return Numbers(
        part=part,
        others=others,
        value=summary(part.verdicts) if part.verdicts else {},
        interval=intervals(summary, part.verdicts, draws) if part.verdicts else {},
        difference=difference,
        paired=len(pairs),
        gained=sum(a["score"] > b["score"] for a, b in pairs),
        lost=sum(a["score"] < b["score"] for a, b in pairs),
        groups=groups(part, pairs, draws),
    )


def paired_verdicts(part: Part, others: Sequence[Row | None]) -> list[tuple[dict, dict]]:
    """Verdicts about the same question of both evaluations, in the order of ours."""
    theirs = {
        id(row.verdict): other.verdict
        for row, other in zip(part.rows, others, strict=True)
        if row.verdict is not None and other is not None and other.verdict is not None
    }
    return [(v, theirs[id(v)]) for v in part.verdicts if id(v) in theirs]


def groups(part: Part, pairs, draws: int) -> dict[str, list[Group]]:
    """Of each of the benchmark's breakdowns that tells verdicts apart."""
    theirs = {id(v): other for v, other in pairs}
    found = {}
    for name in part.benchmark.breakdowns:
        each = [(v, value) for v in part.verdicts for value in values(v, name)]
        inside: dict[str, list[dict]] = {}
        for v, value in each:
            inside.setdefault(value, []).append(v)
        if len(inside) > 1:
            found[name] = [_group(k, inside[k], theirs, draws) for k in sorted(inside)]
    return found


def values(verdict: Mapping[str, Any], name: str) -> list[str]:
    """The groups of a verdict in a breakdown: none, one, or several (skills of a question)."""
    value = verdict.get(name)
    return [str(v) for v in (value if isinstance(value, list) else [value]) if v is not None]


def _group(name: str, verdicts: list[dict], theirs: Mapping[int, dict], draws: int) -> Group:
    value = 100 * mean(v["score"] for v in verdicts)
    other = [theirs[id(v)]["score"] for v in verdicts if id(v) in theirs]
    low, high = group_interval(verdicts, draws)
    return Group(name, len(verdicts), value, low, high, 100 * mean(other) if other else None)
