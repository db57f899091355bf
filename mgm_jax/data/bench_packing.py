"""How full the planner makes rows and picture slots, beside simpler ways, and what planning costs.

The indexes are drawn, not measured, so that figures can be compared: lognormal text lengths with
95 % (A) or 70 % (B) of the examples having one picture.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from mgm_jax.data.length_groups import modality_order
from mgm_jax.data.packing import best_fit, pack

ROWS, WINDOW = 4, 16384
SHORTEST = 16  # text, tokens
MICRO_ROWS, WORLD = 8, 8  # of the original: rows that a device takes at a time, devices


@dataclasses.dataclass(frozen=True)
class Case:
    """An index and the rows that it is packed into: `visual` tokens a picture, `length` a row."""

    pictured: float
    visual: int
    length: int

    def index(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, pictures) of n examples, int32. ValueError for rows too short for a picture."""
        if self.length - self.visual <= SHORTEST:
            raise ValueError(
                f"rows of {self.length} tokens, expected at least {self.visual + SHORTEST + 1}: a "
                f"picture has {self.visual}, the shortest text {SHORTEST}"
            )
        random = np.random.default_rng(0)
        pictures = (random.random(n) < self.pictured).astype(np.int32)
        with_picture, without = random.lognormal(5.3, 0.7, n), random.lognormal(6.0, 0.9, n)
        text = np.where(pictures, with_picture, without).round()
        text = np.clip(text, SHORTEST, self.length - self.visual - 1).astype(np.int32)
        return text + self.visual * pictures, pictures


CASES = {
    "A 2048": Case(0.95, 576, 2048),
    "A 4096": Case(0.95, 576, 4096),
    "B 2048": Case(0.70, 576, 2048),
    "B 4096": Case(0.70, 576, 4096),
    "A 4096 HD": Case(0.95, 2880, 4096),
    "B 4096 HD": Case(0.70, 2880, 4096),
}


def fills(case: Case, n: int) -> dict:
    """The planner's fills, and the token fill of two others: `best_fit`, which knows no groups and
    no slots, over as many examples at once; `padded`, the original's batches of alike lengths."""
    tokens, pictures = case.index(n)
    begin = time.perf_counter()
    packed = pack(tokens, pictures, length=case.length, rows=ROWS, window=WINDOW)
    seconds = time.perf_counter() - begin
    return {
        "token_fill": packed.token_fill,
        "slot_fill": packed.slot_fill,
        "slots": packed.slots,
        "best_fit": _best_fit_fill(tokens, case.length),
        "padded": _padded_fill(tokens, pictures),
        "seconds": seconds,
    }


def _best_fit_fill(tokens, length: int) -> float:
    order = np.random.default_rng(1).permutation(len(tokens))
    rows = 0
    for at in range(0, len(order), WINDOW):
        window = tokens[order[at : at + WINDOW]]
        rows += len(best_fit(window, np.zeros_like(window), length, 0))
    return float(tokens.sum(dtype=np.int64)) / (rows * length)


def _padded_fill(tokens, pictures) -> float:
    """Each device pads its rows to the longest of them; their order is `modality_order`."""
    lengths = np.where(pictures > 0, tokens, -tokens)
    ordered = tokens[modality_order(lengths, MICRO_ROWS, WORLD, seed=0)].astype(np.int64)
    starts = np.arange(0, len(ordered), MICRO_ROWS)
    rows = np.diff(np.append(starts, len(ordered)))
    return float(ordered.sum() / (np.maximum.reduceat(ordered, starts) * rows).sum())


def planning_cost(case: Case, n: int) -> tuple[float, float]:
    """(seconds, peak in GB) of planning n examples, in a process of its own. Linux counts a new
    process as at least as large as the one that starts it: to be called by a small one."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as pool:
        return pool.submit(_plan, case, n).result()


def _plan(case: Case, n: int) -> tuple[float, float]:
    tokens, pictures = case.index(n)
    begin = time.perf_counter()
    pack(tokens, pictures, length=case.length, rows=ROWS, window=WINDOW)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # given in KiB by Linux
    return seconds, peak / 1e9
