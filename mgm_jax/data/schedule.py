"""Which records stand in which row at a step: a pure function of the index, the seed, the step.

An epoch takes of each source what its weight says, in an order of its own, and makes units of it:
packed groups of rows, or padded rows. The units of all epochs follow each other, and a global batch
is the next of them. So the position in the data is the number of the step, on any number of hosts.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence

import numpy as np

from mgm_jax.data.length_groups import modality_order
from mgm_jax.data.lengths import Lengths
from mgm_jax.data.order import epoch_records, permutation
from mgm_jax.data.packing import Packed, choose_slots, pack

BATCHINGS = ("pack", "pad")


@dataclasses.dataclass(frozen=True)
class Epoch:
    """Its items: item i is record `record[i]` of source `source[i]`; and their rows."""

    source: np.ndarray  # int32 [n]
    record: np.ndarray  # int64 [n]
    packed: Packed


_planning = threading.RLock()  # an epoch is planned by one thread, and then known to all


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """Rows of all steps.

    `lengths`, `weights`: of each source; weight 1 is once an epoch (`order.epoch_records`).
    `length`: tokens of a row. A batch is `groups` groups of `rows` rows that share `slots` picture
    slots (None: `choose_slots`). `batching`: "pack" fills rows with several examples, "pad" has one
    in a row, in the original's order of lengths where `micro_rows`, the rows that a device took at
    a time, is given. `epochs`: the end, after which rows are empty; None: there is none.
    """

    lengths: tuple[Lengths, ...]
    weights: tuple[float, ...]
    visual_tokens: int
    length: int
    rows: int
    groups: int
    batching: str = "pack"
    micro_rows: int | None = None
    slots: int | None = None
    window: int = 16384
    seed: int = 0
    epochs: int | None = None
    # What has been planned: goes to worker processes, which plan only what is new.
    _plans: dict[int, Epoch] = dataclasses.field(default_factory=dict, repr=False)
    _counts: dict[int, int] = dataclasses.field(default_factory=dict, repr=False)

    def __post_init__(self):
        if self.slots is None:
            object.__setattr__(self, "slots", self._choose_slots())

    def steps(self) -> int:
        """Steps until the end of the last epoch; the last batch may have empty rows."""
        units = sum(map(self._count, range(self.epochs)))
        return -(-units // (self.groups * self._units))

    def at(self, step: int) -> tuple[int, float]:
        """(epoch, share of it that is done) at the beginning of a step."""
        epoch, unit = self._find(step * self.groups * self._units)
        return epoch, unit / self._count(epoch)

    def members(self, step: int, groups: Sequence[int]) -> list[list[tuple[int, int]]]:
        """(source, record) of the examples in each row of these groups of a batch, in order."""
        rows, every = [], range(self._units)
        wanted = [(step * self.groups + g) * self._units + u for g in groups for u in every]
        for number in wanted:
            epoch, unit = self._find(number)
            if self.epochs is not None and epoch >= self.epochs:
                rows += [[] for _ in range(self.rows // self._units)]
                continue
            found = self.epoch(epoch)
            for items in found.packed.group(unit):
                pairs = zip(found.source[items], found.record[items], strict=True)
                rows.append([(int(s), int(r)) for s, r in pairs])
        return rows

    def epoch(self, number: int) -> Epoch:
        """The plan of an epoch; those of the last two that were asked for are kept."""
        with _planning:
            if number not in self._plans:
                while len(self._plans) > 1:
                    del self._plans[next(iter(self._plans))]
                self._plans[number] = self._plan(number)
                self._counts[number] = self._plans[number].packed.groups
            return self._plans[number]

    def items(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(source, record) of everything in an epoch, in the order of the data."""
        found = [
            np.sort(epoch_records(len(lengths), weight, epoch, self.seed, "source", k))
            for k, (lengths, weight) in enumerate(zip(self.lengths, self.weights, strict=True))
        ]
        source = np.repeat(np.arange(len(found), dtype=np.int32), [len(r) for r in found])
        return source, np.concatenate(found)

    def column(self, name: str, source: np.ndarray, record: np.ndarray) -> np.ndarray:
        """A column of the index ("tokens", "pictures", "words") for items."""
        out = np.zeros(len(record), np.int32)
        for k, lengths in enumerate(self.lengths):
            of = lengths.tokens(self.visual_tokens) if name == "tokens" else getattr(lengths, name)
            out[source == k] = of[record[source == k]]
        return out

    def _choose_slots(self) -> int:
        source, record = self.items(0)
        pictures = self.column("pictures", source, record)
        if self.batching == "pad":
            return max(1, self.rows * int(pictures.max(initial=0)))
        return choose_slots(
            self.column("tokens", source, record),
            pictures,
            length=self.length,
            rows=self.rows,
            window=self.window,
            seed=self.seed,
        )

    @property
    def _units(self) -> int:
        """Units of a group: packed rows belong together, padded ones do not."""
        return 1 if self.batching == "pack" else self.rows

    def _count(self, epoch: int) -> int:
        """Units of an epoch."""
        return self._counts[epoch] if epoch in self._counts else self.epoch(epoch).packed.groups

    def _find(self, unit: int) -> tuple[int, int]:
        """(epoch, unit in it) of a unit's number in the whole run."""
        epoch = 0
        while self.epochs is None or epoch < self.epochs:
            count = self._count(epoch)
            if unit < count:
                return epoch, unit
            unit, epoch = unit - count, epoch + 1
        return epoch, unit

    def _plan(self, number: int) -> Epoch:
        source, record = self.items(number)
        tokens, pictures = (self.column(name, source, record) for name in ("tokens", "pictures"))
        if self.batching == "pack":
            options = dict(length=self.length, rows=self.rows, slots=self.slots, seed=self.seed)
            packed = pack(tokens, pictures, window=self.window, epoch=number, **options)
            return Epoch(source, record, packed)
        if self.micro_rows is None:
            order = permutation(len(record), self.seed, number, "pad")
        else:
            words = self.column("words", source, record)
            world = self.rows * self.groups // self.micro_rows
            order = modality_order(words, self.micro_rows, world, self.seed + number)
        return Epoch(source, record, _one_a_row(order, tokens, pictures, self))


def _one_a_row(order, tokens, pictures, schedule: Schedule) -> Packed:
    most, rows = int(pictures.max(initial=0)), schedule.rows
    if schedule.slots < rows * most:
        raise ValueError(
            f"{schedule.slots} picture slots, expected at least {rows * most}: {rows} padded rows "
            f"with up to {most} pictures share them"
        )
    slots = schedule.slots // rows
    return Packed(
        examples=order,
        starts=np.arange(len(order) + 1),
        rows=1,
        slots=slots,
        token_fill=float(tokens.sum(dtype=np.int64)) / max(len(order) * schedule.length, 1),
        slot_fill=float(pictures.sum(dtype=np.int64)) / max(len(order) * slots, 1),
    )
