"""Order as a function of a key: the same on every machine and with every version of numpy."""

from __future__ import annotations

import hashlib
from fractions import Fraction

import numpy as np


def permutation(n: int, *key) -> np.ndarray:
    """The numbers 0 ... n - 1 in an order that depends on the key alone; int64 [n].

    Sorted by a hash of (key, number), the output function of the SplitMix64 generator.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    x = np.arange(n, dtype=np.uint64) + np.uint64(int.from_bytes(digest[:8], "little"))
    x *= np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(x ^ (x >> np.uint64(31)), kind="stable")


def epoch_records(n: int, weight: float, epoch: int, *key) -> np.ndarray:
    """What one source of `n` records gives to an epoch; int64 [about weight * n].

    A source is read pass by pass, each pass a permutation of all its records; an epoch takes the
    next weight * n of them. So with weight 1 each epoch has every record once, with 0.5 two epochs
    together, with 2 each epoch twice.
    """
    share = Fraction(str(weight)) * n
    start, stop = int(share * epoch), int(share * (epoch + 1))
    passes = range(start // n, -(-stop // n))
    order = [permutation(n, *key, number) for number in passes]
    first = passes.start * n
    return np.concatenate([*order, np.zeros(0, np.int64)])[start - first : stop - first]
