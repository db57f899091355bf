"""Two ways to the same greedy answers: where they part, and whether rounding explains it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

CLOSE = 1e-4  # a margin of the two best logits below which another order of summation decides


class Difference(NamedTuple):
    """The first step at which two answers to a request differ; an id is None behind the end."""

    request: int
    step: int
    ids: tuple[int | None, int | None]
    margin: float

    @property
    def explained(self) -> bool:
        """Whether the two best logits of the step were so close that either may win."""
        return self.margin < CLOSE


def explain_difference(
    one: Sequence[int], other: Sequence[int], margins: Sequence[float], request: int = 0
) -> Difference | None:
    """Ids of two answers to a request, and the top-two margins of the steps of the first -> where
    they part; None if they are the same.

    What follows that step may differ in any way, as it continues another text.
    """
    for step in range(max(len(one), len(other))):
        ids = tuple(x[step] if step < len(x) else None for x in (one, other))
        if ids[0] != ids[1]:
            margin = margins[step] if step < len(margins) else float("inf")
            return Difference(request, step, ids, margin)
    return None


def unexplained(
    answers: Iterable[tuple[Sequence[int], Sequence[int], Sequence[float]]],
) -> tuple[list[Difference], list[Difference]]:
    """(ids, other ids, margins) of many requests -> (differences, those that rounding does not
    explain)."""
    found = [explain_difference(*a, request=i) for i, a in enumerate(answers)]
    found = [d for d in found if d]
    return found, [d for d in found if not d.explained]
