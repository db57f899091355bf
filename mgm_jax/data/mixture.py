"""Text-only records that lie in two sources of a mixture, and so would be trained on twice.

Mini-Gemini's generation data is inside its instruction data (`recipes`), and people mixed both.
Found by content, whatever files are called.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mgm_jax.data.records import Record, Source

FEW = 64  # records that tell whether a source is text-only
MOST = 200_000  # records of the smaller source that are compared
PROBES = 4096  # records of the larger source that are looked up
SHARE = 0.05  # of the smaller source in the larger one: below it, chance repeats of short texts
THREADS = 16  # remote storage answers slowly


def check_mixture(sources: Mapping[str, Source]) -> list[str]:
    """One warning for each pair of sources that share text-only records; [] if all is well.

    Of two sources the smaller one must be text-only. Its records are hashed (all of them up to
    MOST), and PROBES records of the larger one are looked up among them, drawn with a fixed seed:
    a few seconds. A source that is wholly inside another one is missed with a probability of 1e-8
    if it is 1/190 of it, and 3e-4 if it is 1/500. (The generation data has 1/46 of the bytes of
    the instruction data; nobody published its number of records.)
    """
    found = []
    hashes: dict[str, set[bytes]] = {}
    by_size = sorted(sources, key=lambda name: len(sources[name]))
    for small, large in itertools.combinations(by_size, 2):
        if small not in hashes:
            text_only = None not in _hashes(sources[small], FEW)
            hashes[small] = set(_hashes(sources[small], MOST)) - {None} if text_only else set()
        if hashes[small]:
            probed = _hashes(sources[large], PROBES)
            hits = sum(value in hashes[small] for value in probed)
            # of the small source's records so many are in the large one, by proportion
            inside = hits / len(probed) * len(sources[large]) / len(hashes[small])
            if inside >= SHARE:
                found.append(
                    f"data.sources.{small} and data.sources.{large} overlap: about "
                    f"{min(1, inside):.0%} of the {len(sources[small])} text-only records of the "
                    f"first are in the second too ({hits} of {len(probed)} records looked at), and "
                    f"would be trained on twice; leave {small} out"
                )
    return found


def _hashes(source: Source, most: int) -> list[bytes | None]:
    """Hash of each record's conversation (None: it has pictures), of at most `most` records."""
    numbers = range(len(source))
    if len(source) > most:
        numbers = np.sort(np.random.default_rng(0).choice(len(source), most, replace=False))
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda i: _hash(source[int(i)]), numbers))


def _hash(record: Record) -> bytes | None:
    if record.images:
        return None
    turns = ((turn["from"], turn["value"].strip()) for turn in record.conversations)
    return hashlib.blake2b(repr(list(turns)).encode(), digest_size=16).digest()
