"""Bootstrap intervals of benchmark numbers, and of the difference of two checkpoints.

Clusters of verdicts are drawn with replacement, and the benchmark's own `summary` is taken of each
draw (Efron and Tibshirani, 1993: percentile intervals). The same seed gives the same draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

DRAWS, LEVEL = 1000, 0.95

Verdicts = list[dict[str, Any]]
Summary = Callable[[Verdicts], dict[str, float]]


def clusters(verdicts: Verdicts) -> list[list[int]]:
    """Places of verdicts that are drawn together: those of one `cluster`; else each alone."""
    found: dict[Any, list[int]] = {}
    for i, v in enumerate(verdicts):
        name = v.get("cluster")
        found.setdefault(i if name is None else ("cluster", name), []).append(i)
    return list(found.values())


def draws(groups: Sequence[Sequence[int]], count: int, seed: int) -> Iterator[np.ndarray]:
    """`count` times: as many groups as there are, with replacement, as places in a row."""
    random = np.random.default_rng(seed)
    alone = all(len(g) == 1 for g in groups)
    places = np.array([g[0] for g in groups]) if alone else [np.array(g) for g in groups]
    for _ in range(count):
        picked = random.integers(len(groups), size=len(groups))
        yield places[picked] if alone else np.concatenate([places[g] for g in picked])


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The middle 95 % of drawn numbers."""
    tail = 50 * (1 - LEVEL)
    low, high = np.nanpercentile(values, (tail, 100 - tail))
    return float(low), float(high)


def intervals(summary: Summary, verdicts: Verdicts, count: int = DRAWS, seed: int = 0) -> dict:
    """{name: (low, high)} of the numbers of `summary`."""
    names = list(summary(verdicts))
    drawn = np.array(
        [
            [found.get(name, np.nan) for name in names]
            for found in (
                summary([verdicts[i] for i in places])
                for places in draws(clusters(verdicts), count, seed)
            )
        ]
    )
    return {name: interval(column) for name, column in zip(names, drawn.T, strict=True)}


def differences(
    summary: Summary,
    first: Verdicts,
    second: Verdicts,
    count: int = DRAWS,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """{name: {difference, low, high}} of first - second, whose i-th verdicts are about the same
    question: both are drawn together, so what is hard for both does not widen the interval."""
    whole = _minus(summary(first), summary(second))
    drawn: dict[str, list[float]] = {name: [] for name in whole}
    for places in draws(clusters(first), count, seed):
        found = _minus(summary([first[i] for i in places]), summary([second[i] for i in places]))
        for name in whole:
            drawn[name].append(found.get(name, np.nan))
    table = {}
    for name, value in whole.items():
        low, high = interval(drawn[name])
        table[name] = {"difference": value, "low": low, "high": high}
    return table


def group_interval(verdicts: Verdicts, count: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """The interval of the mean score of a group of verdicts, in percent."""
    groups = clusters(verdicts)
    scores = np.array([v["score"] for v in verdicts], float)
    sums = np.array([scores[g].sum() for g in groups])
    sizes = np.array([len(g) for g in groups], float)
    random, means = np.random.default_rng(seed), []
    for _ in range(count):
        picked = random.integers(len(groups), size=len(groups))
        means.append(100 * sums[picked].sum() / sizes[picked].sum())
    return interval(means)


def _minus(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    return {name: first[name] - second[name] for name in first if name in second}
