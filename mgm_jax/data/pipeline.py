"""Records to batches through grain. The batch at a step is a pure function of (seed, step)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import grain
import numpy as np

from mgm_jax.data.examples import Example, batch_rows, cut, expand
from mgm_jax.data.images import load_image, to_hr
from mgm_jax.data.sources import LlavaJson
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

    def __call__(self, record) -> Example:
        """ValueError, naming the record, for what does not fit a row or what a switch excludes."""
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
        example = expand(ids, labels, self.visual_tokens, record.images)
        if self.switches.get("input_policy") == "accept":
            return cut(example, self.length)
        if len(example) > self.length:
            raise ValueError(
                f"{where}: {len(example)} tokens with {pictures} picture(s), "
                f"more than data.length {self.length}"
            )
        return example


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Paths of a batch [G][M] -> {"images": uint8 [G, M, H, W, 3], "image_mask": [G, M]}."""

    spec: ImageSpec

    def __call__(self, paths: Sequence[Sequence[str | None]]) -> dict[str, np.ndarray]:
        size = self.spec.hr_size
        mask = np.array([[p is not None for p in group] for group in paths])
        images = np.zeros((*mask.shape, size, size, 3), np.uint8)
        for g, m in np.argwhere(mask):
            images[g, m] = to_hr(load_image(paths[g][m]), self.spec)
        return {"images": images, "image_mask": mask}


def make_dataset(
    source: LlavaJson,
    encoder: Encoder,
    pictures: Callable,
    *,
    batch: int,
    groups: int,
    seed: int,
) -> grain.MapDataset:
    """An endless dataset whose element i is the batch of step i: shuffled anew each epoch.

    `pictures` turns the paths [G][M] of a batch into its picture arrays (`Pictures`, or a cache of
    tower features).
    """
    slots = max(1, max(len(r.images) for r in source)) * (batch // groups)

    def collate(examples):
        arrays, paths = batch_rows(
            examples,
            length=encoder.length,
            groups=groups,
            slots=slots,
            visual_tokens=encoder.visual_tokens,
        )
        return arrays | pictures(paths)

    return (
        grain.MapDataset.source(source)
        .seed(seed)
        .shuffle()
        .repeat()
        .map(encoder)
        .batch(batch, batch_fn=collate)
    )


def batches(dataset: grain.MapDataset, start: int, *, threads: int) -> Iterator[dict]:
    """Batches of steps `start`, `start + 1`, ...; `threads` read ahead (0: none)."""
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    iterator = iter(dataset.to_iter_dataset(options))
    iterator.set_state({"next_index": start})
    return iterator
