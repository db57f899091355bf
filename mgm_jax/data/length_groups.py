"""The original's order of a run that groups by modality and length (MGM_SPEC 6.5), for parity.

A global batch then holds either records with pictures or text-only ones, of similar lengths; the
only mixed one is the last of an epoch.
"""

from __future__ import annotations

import numpy as np


class TorchRandom:
    """`torch.manual_seed(seed)` and the `torch.randperm` calls that follow it, without torch."""

    def __init__(self, seed: int):
        self._bits = np.random.RandomState(seed % 2**32)._bit_generator

    def permutation(self, n: int) -> list[int]:
        """What torch.randperm(n) returns, for n below 2**32 / 20."""
        found = list(range(n))
        for i, number in enumerate(self._bits.random_raw(max(n - 1, 0)).tolist()):
            j = i + number % (n - i)
            found[i], found[j] = found[j], found[i]
        return found


def modality_order(lengths, batch: int, world: int, seed: int) -> np.ndarray:
    """The records of an epoch in the original's order; int64 [n], a permutation.

    `lengths` [n]: words of each record, negative if it has no picture (never 0). `batch`: rows that
    a device takes at a time; `world`: devices times accumulated steps. Consecutive batch * world
    records are a global batch. ValueError for a length of 0.
    """
    lengths = np.asarray(lengths, np.int64)
    if (lengths == 0).any():
        i = int(np.flatnonzero(lengths == 0)[0])
        raise ValueError(f"record {i} has no words, expected a text in each record")
    random, size = TorchRandom(seed), batch * world
    kinds = [np.flatnonzero(lengths > 0), np.flatnonzero(lengths < 0)]
    kinds = [kind for kind in kinds if len(kind)]
    orders = [kind[_grouped(np.abs(lengths[kind]), size, world, random)] for kind in kinds]
    if len(orders) < 2:
        return np.concatenate([*orders, np.zeros(0, np.int64)])
    cut = [[order[i : i + size] for i in range(0, len(order), size)] for order in orders]
    whole = [chunk for chunks in cut for chunk in chunks[:-1]]
    rest = np.sort(np.concatenate([chunks[-1] for chunks in cut]))
    return np.concatenate([*(whole[i] for i in random.permutation(len(whole))), rest])


def _grouped(lengths, size: int, world: int, random: TorchRandom) -> np.ndarray:
    """Shuffled, cut into pieces of `size`, each spread over `world` devices by length."""
    order = np.asarray(random.permutation(len(lengths)), np.int64)
    found = []
    for at in range(0, len(order), size):
        piece = order[at : at + size]
        piece = piece[np.argsort(-lengths[piece], kind="stable")]
        found += _even(piece.tolist(), lengths, world)
    return np.asarray(found, np.int64)


def _even(piece: list[int], lengths, world: int) -> list[int]:
    """A sorted piece, the records of each device together: of about the same total length."""
    if len(piece) % world:
        return [i for device in range(world) for i in piece[device::world]]
    each = len(piece) // world
    chunks: list[list[int]] = [[] for _ in range(world)]
    totals = [0.0] * world
    for i in piece:
        device = totals.index(min(totals))
        chunks[device].append(i)
        totals[device] += float(lengths[i])
        if len(chunks[device]) == each:
            totals[device] = float("inf")
    return [i for chunk in chunks for i in chunk]
