"""A batch read back: which example lies where in its rows, and what it takes up.

All is taken from the arrays of the batch contract (ARCHITECTURE 3), so it is what training gets;
only the records' names come from beside. B rows of T tokens, G groups, N visual tokens a picture.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

Batch = Mapping[str, np.ndarray]
Member = tuple[str, int, str]  # name of the source, number of the record in it, what messages say


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Positions start ... stop - 1 of a row that are alike. `kind` is "prompt" (text without loss),
    "loss" (text that is predicted with loss) or "image" (of one picture, whose slot is `slot`)."""

    kind: str
    start: int
    stop: int
    slot: int = -1


@dataclasses.dataclass(frozen=True)
class Segment:
    """One example in a row: positions start ... stop - 1, made of `stretches`."""

    row: int
    group: int
    number: int  # as in `segments`
    start: int
    stop: int
    member: Member
    stretches: tuple[Stretch, ...]
    loss_tokens: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def slots(self) -> tuple[int, ...]:
        """The slots of its pictures in the group's pool, in order."""
        return tuple(dict.fromkeys(s.slot for s in self.stretches if s.kind == "image"))


def read(
    batch: Batch, members: Sequence[Sequence[Member]], visual_tokens: int
) -> list[list[Segment]]:
    """The segments of each row.

    `members`: the records of each row in the order of its segments. ValueError if they are not as
    many as the row's segments.
    """
    rows, groups = len(batch["tokens"]), len(batch["image_mask"])
    if len(members) != rows:
        raise ValueError(f"the batch has {rows} rows, but records are named for {len(members)}")
    learnt, _ = supervised(batch)
    found = []
    for row, names in enumerate(members):
        numbers = batch["segments"][row]
        spans = [(a, b) for a, b in _alike(np.diff(numbers) != 0) if numbers[a] > 0]
        if len(spans) != len(names):
            raise ValueError(f"row {row} has {len(spans)} segments, but {len(names)} records")
        found.append(
            [
                Segment(
                    row=row,
                    group=row // (rows // groups),
                    number=int(numbers[start]),
                    start=start,
                    stop=stop,
                    member=member,
                    stretches=_stretches(
                        learnt[row, start:stop],
                        batch["visual_index"][row, start:stop],
                        visual_tokens,
                        start,
                    ),
                    loss_tokens=int((batch["loss_weights"][row, start:stop] > 0).sum()),
                )
                for (start, stop), member in zip(spans, names, strict=True)
            ]
        )
    return found


def supervised(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """(tokens that a position before them predicts with loss, positions that have a weight but a
    target that is not the text token behind them); bool [B, T]. A sound batch has none of the
    second."""
    tokens, segments = batch["tokens"], batch["segments"]
    weighed = batch["loss_weights"] > 0
    sound = np.zeros_like(weighed)
    sound[:, :-1] = (
        (segments[:, :-1] > 0)
        & (segments[:, :-1] == segments[:, 1:])
        & (batch["targets"][:, :-1] == tokens[:, 1:])
        & (batch["visual_index"][:, 1:] < 0)
    )
    learnt = np.zeros_like(weighed)
    learnt[:, 1:] = (weighed & sound)[:, :-1]
    return learnt, weighed & ~sound


def totals(batch: Batch) -> dict[str, int | float]:
    """Counts of a whole batch; `token_fill` and `slot_fill` are shares of all positions, slots."""
    segments, mask = batch["segments"], batch["image_mask"]
    starts = np.diff(segments, axis=1, prepend=0) != 0
    return {
        "rows": segments.shape[0],
        "length": segments.shape[1],
        "groups": mask.shape[0],
        "slots": mask.shape[1],
        "examples": int((starts & (segments > 0)).sum()),
        "pictures": int(mask.sum()),
        "tokens": int((segments > 0).sum()),
        "loss_tokens": int((batch["loss_weights"] > 0).sum()),
        "token_fill": float((segments > 0).mean()),
        "slot_fill": float(mask.mean()),
    }


def digest(batch: Batch) -> str:
    """sha256 of every array in the order of their names: name, dtype, shape and contents."""
    found = hashlib.sha256()
    for name in sorted(batch):
        array = np.ascontiguousarray(batch[name])
        found.update(f"{name} {array.dtype} {array.shape}\n".encode())
        found.update(array.reshape(-1).view(np.uint8))
    return found.hexdigest()


def _alike(cuts: np.ndarray) -> list[tuple[int, int]]:
    """Spans between the places where `cuts` (bool [n - 1]) says that the next position differs."""
    return list(pairwise([0, *(np.flatnonzero(cuts) + 1).tolist(), len(cuts) + 1]))


def _stretches(learnt, visual, visual_tokens: int, first: int) -> tuple[Stretch, ...]:
    """Stretches of one segment, whose positions start at `first`."""
    image = visual >= 0
    follows = image[1:] & (visual[1:] == visual[:-1] + 1) & (visual[1:] % visual_tokens > 0)
    same_text = ~image[1:] & ~image[:-1] & (learnt[1:] == learnt[:-1])
    return tuple(
        Stretch(
            "image" if image[a] else "loss" if learnt[a] else "prompt",
            first + a,
            first + b,
            int(visual[a]) // visual_tokens if image[a] else -1,
        )
        for a, b in _alike(~(follows | same_text))
    )
