"""Packing with pictures: which examples share a row, and which rows a pool of picture slots.

Two constraints at once: a row holds `length` tokens, visual ones included; a group of `rows`
neighbouring rows shares `slots` picture slots (ARCHITECTURE 3). The shuffled examples are packed
window by window. In a window, rows are made by best fit, largest example first; then rows are dealt
to groups, those with most pictures first, each to the group that has fewest, and groups that got
too many swap rows with others. What does not fill a group waits for the next window, so that hardly
anything is padded but at an epoch's end.
"""

from __future__ import annotations

import dataclasses
import heapq

import numpy as np

from mgm_jax.data.order import permutation


@dataclasses.dataclass(frozen=True)
class Packed:
    """Row r holds the examples `examples[starts[r] : starts[r + 1]]`, maybe none; group g is the
    rows g * rows ... (g + 1) * rows - 1. The fills are shares of all rows' tokens and all slots."""

    examples: np.ndarray  # int64 [n], each example once
    starts: np.ndarray  # int64 [groups * rows + 1]
    rows: int
    slots: int
    token_fill: float
    slot_fill: float

    @property
    def groups(self) -> int:
        return (len(self.starts) - 1) // self.rows

    def group(self, g: int) -> list[np.ndarray]:
        """The examples of each row of a group."""
        first = g * self.rows
        return [
            self.examples[self.starts[r] : self.starts[r + 1]]
            for r in range(first, first + self.rows)
        ]


def pack(
    tokens: np.ndarray,
    pictures: np.ndarray,
    *,
    length: int,
    rows: int,
    slots: int | None = None,
    window: int = 16384,
    seed: int = 0,
    epoch: int = 0,
) -> Packed:
    """Examples (`tokens` with their visual ones, `pictures`; int [n]) into rows and groups.

    `slots` None: `choose_slots`. A function of its arguments alone; cost and memory grow linearly.
    ValueError for an example that no row or no group can hold.
    """
    _check(tokens, pictures, length, rows, window)
    if slots is None:
        slots = choose_slots(tokens, pictures, length=length, rows=rows, window=window, seed=seed)
    if len(pictures) and pictures.max() > slots:
        i = int(pictures.argmax())
        raise ValueError(f"example {i} has {pictures[i]} pictures, more than {slots} picture slots")
    order = permutation(len(tokens), seed, epoch, "pack")
    packed: list[list[int]] = []  # groups * rows rows
    waiting: list[int] = []
    starts = range(0, len(order), window)
    for at in starts:
        pool = np.concatenate([np.asarray(waiting, np.int64), order[at : at + window]])
        made = best_fit(tokens[pool], pictures[pool], length, slots)
        groups, left = deal(made, rows, slots, last=at == starts[-1])
        numbers = pool.tolist()
        waiting = [numbers[i] for row in left for i in row.examples]
        for g in permutation(len(groups), seed, epoch, "groups", at):
            packed += [[numbers[i] for i in row.examples] for row in groups[g]]
    counts = np.fromiter(map(len, packed), np.int64, len(packed))
    total = max(len(packed), 1)
    return Packed(
        examples=np.fromiter((i for row in packed for i in row), np.int64, len(order)),
        starts=np.concatenate([[0], np.cumsum(counts)]),
        rows=rows,
        slots=slots,
        token_fill=float(tokens.sum(dtype=np.int64)) / (total * length),
        slot_fill=float(pictures.sum(dtype=np.int64)) / (total // rows * slots or 1),
    )


def choose_slots(tokens, pictures, *, length: int, rows: int, window: int, seed: int = 0) -> int:
    """The picture slots of a group: the fewest that cost at most 0.25 % more rows.

    Judged by packing a sample of four windows.
    """
    most = int(pictures.max(initial=1))
    sample = permutation(len(tokens), seed, "slots")[: 4 * window]
    tokens, pictures = tokens[sample], pictures[sample]
    total = int(pictures.sum())
    free = len(best_fit(tokens, pictures, length, total))
    enough = 1.0025 * free / rows + 1
    slots = max(-(-total * rows // max(free, 1)), most)  # pictures never ask for more groups
    while len(deal(best_fit(tokens, pictures, length, slots), rows, slots)[0]) > enough:
        slots += 1
    return slots


@dataclasses.dataclass(slots=True)
class Row:
    """Example numbers, the tokens that are free, the pictures that it holds."""

    examples: list[int]
    space: int
    pictures: int


def best_fit(tokens, pictures, length: int, slots: int) -> list[Row]:
    """Each example, largest first, into the fullest row that holds it.

    A row holds at most `length` tokens and `slots` pictures.
    """
    rows: list[Row] = []
    open_rows: list[list[Row]] = [[] for _ in range(length + 1)]  # by their space
    spaces = 0  # bit s is set if open_rows[s] is not empty
    order = np.argsort(-np.asarray(tokens, np.int64), kind="stable").tolist()
    sizes, counts = np.asarray(tokens).tolist(), np.asarray(pictures).tolist()
    for i in order:
        size, count = sizes[i], counts[i]
        fitting = spaces >> size
        while fitting:
            space = size + (fitting & -fitting).bit_length() - 1
            row = open_rows[space][-1]
            if row.pictures + count <= slots:
                open_rows[space].pop()
                if not open_rows[space]:
                    spaces ^= 1 << space
                break
            fitting &= fitting - 1
        else:
            row = Row([], length, 0)
            rows.append(row)
        row.examples.append(i)
        row.space -= size
        row.pictures += count
        open_rows[row.space].append(row)
        spaces |= 1 << row.space
    return rows


def deal(
    made: list[Row], rows: int, slots: int, last: bool = True
) -> tuple[list[list[Row]], list[Row]]:
    """Rows into groups of `rows` that hold at most `slots` pictures -> (groups, rows that wait).

    As many groups as rows and pictures need: rounded down, or up at the `last` window, where none
    may wait. Groups that get fewer rows are filled with empty ones.
    """
    # Of rows with as many pictures the emptiest comes last: it is the one that may wait.
    made = sorted(made, key=lambda row: (-row.pictures, row.space))
    need = max(len(made) / rows, sum(row.pictures for row in made) / slots)
    count = int(np.ceil(need)) if last else int(need)
    while True:
        groups: list[list[Row]] = [[] for _ in range(count)]
        heap = [(0, g) for g in range(count)]  # (pictures, group) that has room for a row
        for row in made[: count * rows]:
            held, g = heapq.heappop(heap)
            groups[g].append(row)
            if len(groups[g]) < rows:
                heapq.heappush(heap, (held + row.pictures, g))
        for group in groups:
            group += [Row([], 0, 0)] * (rows - len(group))
        waiting = made[count * rows :] + _relieve(groups, slots)
        if not (last and waiting):
            return groups, waiting
        count += -(-len(waiting) // rows)


def _relieve(groups: list[list[Row]], slots: int) -> list[Row]:
    """Swaps rows of groups with more than `slots` pictures for rows of groups with few; what no
    swap can mend is taken out and returned. `groups` is changed."""
    sums = [sum(row.pictures for row in group) for group in groups]
    order = iter(sorted(range(len(groups)), key=lambda g: sums[g]))
    light = next(order, None)
    out = []
    for heavy in [g for g, held in enumerate(sums) if held > slots]:
        while sums[heavy] > slots and light is not None and sums[light] < slots:
            room = min(slots - sums[light], sums[heavy] - slots)
            swaps = (
                (x.pictures - y.pictures, i, j)
                for i, x in enumerate(groups[heavy])
                for j, y in enumerate(groups[light])
                if x.pictures - y.pictures <= room
            )
            gain, a, b = max(swaps, default=(0, 0, 0))
            if gain > 0:
                groups[heavy][a], groups[light][b] = groups[light][b], groups[heavy][a]
                sums[heavy] -= gain
                sums[light] += gain
            if gain <= 0 or sums[light] == slots:
                light = next(order, None)
        while sums[heavy] > slots:
            a = max(range(len(groups[heavy])), key=lambda i: groups[heavy][i].pictures)
            sums[heavy] -= groups[heavy][a].pictures
            out.append(groups[heavy][a])
            groups[heavy][a] = Row([], 0, 0)
    return out


def _check(tokens, pictures, length, rows, window) -> None:
    if rows < 1 or window < 1:
        raise ValueError(f"rows {rows} and window {window}: expected at least 1")
    bad = np.flatnonzero((np.asarray(tokens) < 1) | (np.asarray(tokens) > length))
    if len(bad):
        i = int(bad[0])
        raise ValueError(
            f"example {i} has {tokens[i]} tokens and {pictures[i]} pictures, expected 1 to "
            f"{length} tokens"
        )
