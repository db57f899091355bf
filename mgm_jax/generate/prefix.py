"""Results kept for who asks the same again, bounded in bytes: a picture's visual tokens, and the
keys and values of a prompt's beginning up to its last picture.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import numpy as np

from mgm_jax.data.examples import Example


class Lru:
    """Key -> a tree of arrays; those longest unused go when there are more than `limit` bytes.

    What is larger than `limit` by itself is not kept: a limit of 0 keeps nothing.
    """

    def __init__(self, limit: int):
        self.limit, self.bytes = limit, 0
        self.hits = self.misses = 0
        self._entries: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()

    def get(self, key: Hashable) -> Any:
        """The tree, or None."""
        if key not in self._entries:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return self._entries[key]

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def put(self, key: Hashable, tree: Any) -> None:
        size = _bytes(tree)
        if key in self._entries or size > self.limit:
            return
        self._entries[key] = tree
        self.bytes += size
        while self.bytes > self.limit:
            self.bytes -= _bytes(self._entries.popitem(last=False)[1])


def _bytes(tree: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def picture_hash(pixels: np.ndarray) -> str:
    """Of a picture's pixels [H, W, 3] as the model sees them."""
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def prefix_of(prompt: Example, pictures: Sequence[str]) -> tuple[int, tuple] | None:
    """A prompt and its pictures' hashes -> (length, key) of its beginning up to its last picture.

    None where there is no picture, or nothing behind the last one to begin an answer from.
    """
    places = np.flatnonzero(prompt.visual >= 0)
    if not len(places) or places[-1] + 1 >= len(prompt):
        return None
    length = int(places[-1]) + 1
    tokens = hashlib.sha256(prompt.tokens[:length].tobytes() + prompt.visual[:length].tobytes())
    return length, (tokens.hexdigest(), *pictures)
