"""Records to batches through grain. The batch at a step is a pure function of (config, step)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import grain
import numpy as np
from absl import flags

from mgm_jax.data.examples import Example, batch_rows, cut, expand
from mgm_jax.data.images import load_image, to_hr
from mgm_jax.data.records import Picture, Record, Source
from mgm_jax.data.schedule import Schedule
from mgm_jax.models.config import ImageSpec
from mgm_jax.text import IMAGE_ID, encode_record


@dataclasses.dataclass(frozen=True)
class Encoder:
    """record -> Example, with what that takes: template, tokenizer, visual tokens, row length."""

    template: str
    tokenizer: object
    visual_tokens: int
    length: int
    switches: Mapping[str, object] = dataclasses.field(default_factory=dict)  # of encode_record

    def __call__(self, record: Record) -> Example:
        """ValueError, naming the record, for what does not fit a row or what a switch excludes."""
        ids, labels = self._encode(record)
        pictures = [dataclasses.replace(p, where=record.where) for p in record.images]
        return cut(expand(ids, labels, self.visual_tokens, pictures), self.length)

    def measure(self, record: Record) -> tuple[int, int]:
        """(ids of text, placeholders) of the same example; its errors too."""
        ids, _ = self._encode(record)
        placeholders = ids.count(IMAGE_ID)
        text = len(ids) - placeholders
        if (excess := text + placeholders * self.visual_tokens - self.length) > 0:
            text -= excess  # what `cut` leaves
        return text, placeholders

    def identity(self) -> tuple:
        """What lengths depend on, beside the records."""
        switches = sorted(self.switches.items())
        return self.template, self.tokenizer.fingerprint, self.visual_tokens, self.length, switches

    def _encode(self, record: Record) -> tuple[list[int], list[int]]:
        pictures, where = len(record.images), record.where
        if pictures > 1 and not self.switches.get("multi_image_training", True):
            raise ValueError(
                f"{where}: {pictures} pictures, expected at most one (multi_image_training is "
                "False, as in the original, which trained on another record in its place)"
            )
        ids, labels = encode_record(
            record.to_dict(),
            self.template,
            self.tokenizer,
            self.length,
            where=where,
            **self.switches,
        )
        if (found := ids.count(IMAGE_ID)) > pictures:
            raise ValueError(f"{where}: {found} placeholders, but {pictures} picture(s)")
        tokens = len(ids) + found * (self.visual_tokens - 1)
        if tokens > self.length and self.switches.get("input_policy") != "accept":
            raise ValueError(
                f"{where}: {tokens} tokens with {pictures} picture(s), "
                f"more than data.length {self.length}"
            )
        return ids, labels


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures of a batch [G][M] -> {"images": uint8 [G, M, H, W, 3], "image_mask": [G, M]}."""

    spec: ImageSpec

    def __call__(self, pictures: Sequence[Sequence[Picture | None]]) -> dict[str, np.ndarray]:
        size = self.spec.hr_size
        mask = np.array([[p is not None for p in group] for group in pictures])
        images = np.zeros((*mask.shape, size, size, 3), np.uint8)
        for g, m in np.argwhere(mask):
            picture = pictures[g][m]
            images[g, m] = to_hr(load_image(picture), self.spec, picture.where)
        return {"images": images, "image_mask": mask}


@dataclasses.dataclass(frozen=True)
class Batches:
    """Batches by step, for grain: element i is `batch(first + i)` of `groups` alone.

    `pictures` turns the pictures [G][M] of a batch into its picture arrays (`Pictures`, or a cache
    of tower features).
    """

    schedule: Schedule
    sources: tuple[Source, ...]
    encoder: Encoder
    pictures: Callable
    groups: tuple[int, ...]
    first: int = 0

    def __len__(self) -> int:
        return 2**31 - 1 - self.first  # there is always a next epoch

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        members = self.schedule.members(self.first + i, self.groups)
        rows = [[self.encoder(self.sources[s][r]) for s, r in row] for row in members]
        arrays, pictures = batch_rows(
            rows,
            length=self.schedule.length,
            groups=len(self.groups),
            slots=self.schedule.slots,
            visual_tokens=self.encoder.visual_tokens,
        )
        return arrays | self.pictures(pictures)


def iterate(batches: Batches, first: int, *, threads: int = 0, workers: int = 0) -> Iterator[dict]:
    """Batches of steps `first`, `first + 1`, ..., read ahead by `workers` processes or `threads`.

    A batch is made by one thread or process; with 0 and 0 it is made when it is asked for.
    """
    options = grain.ReadOptions(
        num_threads=0 if workers else threads, prefetch_buffer_size=2 * threads
    )
    source = dataclasses.replace(batches, first=batches.first + first)
    dataset = grain.MapDataset.source(source).to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain's worker processes read flags of its own
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(dataset)


def ahead(items: Iterator, count: int) -> Iterator:
    """The same items; the next `count` have been asked for when one is handed out."""
    waiting: list = []
    for item in itertools.chain(items, itertools.repeat(None, count)):
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.pop(0)
