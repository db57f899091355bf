"""One record as token arrays: text ids, next-token targets, loss weights, places of visual tokens.

Arrays of length L (the example), later cut into the batch contract of ARCHITECTURE.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mgm_jax.data.records import Picture
from mgm_jax.text import IGNORE, IMAGE_ID


@dataclasses.dataclass(frozen=True)
class Example:
    """tokens, targets, visual (picture * N + n, or -1) int32 [L]; loss_weights float32 [L]."""

    tokens: np.ndarray
    targets: np.ndarray
    loss_weights: np.ndarray
    visual: np.ndarray
    images: tuple[Picture, ...]

    def __len__(self) -> int:
        return len(self.tokens)


def expand(ids, labels, visual_tokens: int, images=()) -> Example:
    """ids with IMAGE_ID placeholders and their labels -> an Example.

    Each placeholder becomes `visual_tokens` positions without loss; targets are the next position's
    token, weighted 1 where that position's label is not IGNORE.
    """
    ids, labels = np.asarray(ids), np.asarray(labels)
    repeats = np.where(ids == IMAGE_ID, visual_tokens, 1)
    is_image = np.repeat(ids == IMAGE_ID, repeats)
    tokens = np.where(is_image, 0, np.repeat(ids, repeats)).astype(np.int32)
    supervised = np.repeat((labels != IGNORE) & (ids != IMAGE_ID), repeats)
    visual = np.where(is_image, np.cumsum(is_image) - 1, -1).astype(np.int32)
    return Example(
        tokens=tokens,
        targets=np.append(tokens[1:], 0).astype(np.int32),
        loss_weights=np.append(supervised[1:], False).astype(np.float32),
        visual=visual,
        images=tuple(images),
    )


def cut(example: Example, length: int | None) -> Example:
    """The first `length` positions (MGM_SPEC 2.4); a cut can go through a picture.

    What the last position predicts is gone: it carries no loss.
    """
    if length is None or len(example) <= length:
        return example
    names = ("tokens", "targets", "loss_weights", "visual")
    found = dataclasses.replace(example, **{n: getattr(example, n)[:length].copy() for n in names})
    found.targets[-1:], found.loss_weights[-1:] = 0, 0
    return found


def batch_rows(rows, *, length: int, groups: int, slots: int, visual_tokens: int):
    """Rows, each a list of Examples -> (arrays of the batch contract without pictures, [G][M]).

    The examples of a row follow each other: segments 1, 2, ..., positions from 0 in each. The
    second value is the picture of each slot, or None; a group's slots are taken in order.
    ValueError if a row is longer than `length`, if the rows do not divide into `groups`, or if a
    group needs more than `slots`.
    """
    count = len(rows)
    if count % groups:
        raise ValueError(f"{count} rows do not divide into {groups} groups")
    batch = {
        "tokens": np.zeros((count, length), np.int32),
        "targets": np.zeros((count, length), np.int32),
        "loss_weights": np.zeros((count, length), np.float32),
        "positions": np.zeros((count, length), np.int32),
        "segments": np.zeros((count, length), np.int32),
        "visual_index": np.full((count, length), -1, np.int32),
    }
    pictures = [[None] * slots for _ in range(groups)]
    taken = [0] * groups
    for row, examples in enumerate(rows):
        group, at = row // (count // groups), 0
        for number, example in enumerate(examples, 1):
            here = slice(at, at := at + len(example))
            if at > length:
                raise ValueError(f"a row has {at} tokens, more than data.length {length}")
            first = taken[group]
            taken[group] += len(example.images)
            if taken[group] > slots:
                raise ValueError(f"group {group} needs {taken[group]} picture slots, has {slots}")
            pictures[group][first : taken[group]] = example.images
            batch["tokens"][row, here] = example.tokens
            batch["targets"][row, here] = example.targets
            batch["loss_weights"][row, here] = example.loss_weights
            batch["positions"][row, here] = np.arange(len(example))
            batch["segments"][row, here] = number
            shifted = example.visual + first * visual_tokens
            batch["visual_index"][row, here] = np.where(example.visual >= 0, shifted, -1)
    return batch, pictures
